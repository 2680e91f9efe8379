//! The certificate as it is stored: chain, key, the roots that came with it, and when it was obtained.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::CertificateDer;
use weft_policy::SpiffeId;
use weft_svid::Svid;
use zeroize::Zeroizing;

use super::{
    Owner, Refused,
    codec::{Reader, Writer},
    duration,
};

/// A certificate with all that is needed to use and to renew it.
#[derive(Clone, Debug)]
pub struct StoredIdentity {
    /// `namespace/name` of the workload.
    pub workload: String,
    /// Chain and key.
    pub svid: Arc<Svid>,
    /// DER roots of the trust domain, as of when it was written.
    pub roots: Vec<Vec<u8>>,
    /// When it was obtained, by the wall clock: its life counts from there.
    pub obtained: SystemTime,
    /// When the file was written.
    pub saved: SystemTime,
}

impl StoredIdentity {
    /// The body of the file.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let (id, key) = (self.svid.identity.id.as_str(), self.svid.pkcs8());
        let obtained = self.obtained.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let certificates = self.svid.chain.iter().map(|der| der.len()).chain(self.roots.iter().map(Vec::len));
        let size = certificates.map(|length| length + 4).sum::<usize>() + self.workload.len() + id.len() + key.len();
        let mut writer = Writer::with_capacity(size + 256);
        writer.bytes(self.workload.as_bytes()).bytes(id.as_bytes());
        writer.bytes(&u64::try_from(obtained).unwrap_or(u64::MAX).to_be_bytes());
        writer.list(&self.svid.chain).list(&self.roots).bytes(key);
        writer.finish()
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When it is malformed, the chain is no SVID, or the key is not its.
    pub fn decode(body: &[u8], saved: SystemTime) -> Result<Self, Refused> {
        let mut reader = Reader::new(body);
        let (workload, spiffe_id) = (reader.text()?, reader.text()?);
        let obtained = <[u8; 8]>::try_from(reader.bytes()?).map_err(|_| content("its time of issue is none"))?;
        let obtained = UNIX_EPOCH.checked_add(Duration::from_millis(u64::from_be_bytes(obtained)));
        let chain = reader.list(|reader| Ok(CertificateDer::from(reader.bytes()?.to_vec())))?;
        let roots = reader.list(|reader| Ok(reader.bytes()?.to_vec()))?;
        let key = Zeroizing::new(reader.bytes()?.to_vec());
        reader.end()?;
        let svid = Svid::new(chain, key).map_err(|error| content(&format!("its certificate: {error}")))?;
        svid.check_key().map_err(|error| content(&format!("its key: {error}")))?;
        if svid.identity.id.as_str() != spiffe_id {
            return Err(content("its certificate is of another identity than it says"));
        }
        let obtained = obtained.ok_or_else(|| content("its time of issue is none"))?;
        Ok(Self { workload, svid: Arc::new(svid), roots, obtained, saved })
    }

    /// Whether it is this workload's and still good.
    ///
    /// # Errors
    /// [`Refused::Foreign`], [`Refused::Expired`].
    pub fn check(&self, owner: &Owner, now: SystemTime) -> Result<(), Refused> {
        owner.check(&self.workload, self.svid.identity.id.as_str())?;
        match now.duration_since(self.svid.identity.not_after) {
            Ok(ago) => Err(Refused::Expired(duration(ago))),
            Err(_) => Ok(()),
        }
    }
}

impl Owner {
    /// Whether a file of this workload and identity is ours.
    pub(super) fn check(&self, workload: &str, spiffe_id: &str) -> Result<(), Refused> {
        let foreign = |theirs: &str, ours: String| Err(Refused::Foreign(theirs.into(), ours));
        if workload != self.workload {
            return foreign(&format!("workload {workload:?}"), format!("{:?}", self.workload));
        }
        let id = SpiffeId::parse(spiffe_id).map_err(|error| content(&format!("{spiffe_id:?}: {error}")))?;
        let domain = self.trust_domain.as_deref().unwrap_or_else(|| id.trust_domain());
        match SpiffeId::workload(domain, &self.namespace, &self.account) {
            Some(ours) if ours == id => Ok(()),
            Some(ours) => foreign(spiffe_id, ours.to_string()),
            None => foreign(spiffe_id, format!("{}/{}", self.namespace, self.account)),
        }
    }
}

fn content(text: &str) -> Refused {
    Refused::Content(text.into())
}
