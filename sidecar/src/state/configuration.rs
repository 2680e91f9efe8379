//! The last known good configuration as it is stored: each resource as it came from the wire, and what is subscribed
//! to. What the resources mean is said by the same conversion as on the wire (`discovery::state`).

use bytes::Bytes;
use weft_proto::ResourceType;
use zeroize::Zeroizing;

use super::{
    Owner, Refused,
    codec::{Reader, Writer},
    identity::StoredIdentity,
};

/// One resource that was accepted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredResource {
    /// Its type.
    pub kind: ResourceType,
    /// Its canonical name.
    pub name: String,
    /// The control plane's version of it.
    pub version: String,
    /// The message.
    pub bytes: Bytes,
}

/// Everything that discovery holds, and whose it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct StoredConfiguration {
    /// `namespace/name` of the workload.
    pub workload: String,
    /// SPIFFE id under which it was received.
    pub spiffe_id: String,
    /// What is held.
    pub resources: Vec<StoredResource>,
    /// Services that are subscribed to.
    pub wanted: Vec<String>,
    /// Services that were answered as not existing.
    pub absent: Vec<String>,
}

impl StoredConfiguration {
    /// The body of the file.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let size: usize =
            self.resources.iter().map(|one| one.name.len() + one.version.len() + one.bytes.len() + 80).sum();
        let mut writer = Writer::with_capacity(size + 1024);
        writer.bytes(self.workload.as_bytes()).bytes(self.spiffe_id.as_bytes());
        writer.list(&self.wanted).list(&self.absent);
        for one in &self.resources {
            writer.bytes(one.kind.type_url().as_bytes()).bytes(one.name.as_bytes());
            writer.bytes(one.version.as_bytes()).bytes(&one.bytes);
        }
        writer.finish()
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When it is malformed or has a type that this version does not know.
    pub fn decode(body: &[u8]) -> Result<Self, Refused> {
        let mut reader = Reader::new(body);
        let mut configuration = Self {
            workload: reader.text()?,
            spiffe_id: reader.text()?,
            wanted: reader.list(Reader::text)?,
            absent: reader.list(Reader::text)?,
            resources: Vec::new(),
        };
        while reader.end().is_err() {
            let url = reader.text()?;
            let kind = ResourceType::from_type_url(&url)
                .ok_or_else(|| Refused::Content(format!("it has a resource of the unknown type {url:?}")))?;
            let (name, version) = (reader.text()?, reader.text()?);
            let bytes = Bytes::copy_from_slice(reader.bytes()?);
            configuration.resources.push(StoredResource { kind, name, version, bytes });
        }
        Ok(configuration)
    }

    /// Whether it is of this workload, and of the identity that is stored beside it.
    ///
    /// # Errors
    /// [`Refused::Foreign`].
    pub fn check(&self, owner: &Owner, identity: Option<&StoredIdentity>) -> Result<(), Refused> {
        owner.check(&self.workload, &self.spiffe_id)?;
        match identity {
            Some(stored) if stored.svid.identity.id.as_str() != self.spiffe_id => {
                Err(Refused::Foreign(self.spiffe_id.clone(), stored.svid.identity.id.to_string()))
            }
            _ => Ok(()),
        }
    }
}
