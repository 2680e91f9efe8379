//! An issuing certificate that somebody else made: three PEM files, checked as a whole, and followed when they change.
//! Bad ones change nothing, and are refused at the start.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result, bail, ensure};
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use weft_policy::convert::MAX_ROOTS;

use super::{
    files::read_secret,
    signer::{Info, Signer, date, seconds},
};

/// No file with certificates is larger.
const MAX: u64 = 1024 * 1024;

/// The files.
#[derive(Clone, Debug)]
pub struct Files {
    /// The issuing certificate, then what lies between it and the root.
    pub certificate: PathBuf,
    /// Its key, readable by nobody else.
    pub key: PathBuf,
    /// The roots that the mesh trusts.
    pub roots: PathBuf,
    stamp: Stamp,
}

/// By what a changed file is known.
type Stamp = Vec<Option<(SystemTime, u64, u64)>>;

/// What is in them.
pub struct External {
    /// What issues.
    pub signer: Signer,
    /// What is trusted.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Files {
    /// These files.
    #[must_use]
    pub fn new(certificate: PathBuf, key: PathBuf, roots: PathBuf) -> Self {
        Self { certificate, key, roots, stamp: Stamp::new() }
    }

    /// Reads and checks them.
    ///
    /// # Errors
    /// The file, and what is wrong with it.
    pub fn load(&self, trust_domain: &str, now: SystemTime) -> Result<External> {
        let certificate = || format!("--ca-cert {}", self.certificate.display());
        let chain = certificates(&self.certificate).with_context(certificate)?;
        let roots_flag = || format!("--ca-roots {}", self.roots.display());
        let roots = certificates(&self.roots).with_context(roots_flag)?;
        ensure!(roots.len() <= MAX_ROOTS, "{}: {} roots are more than {MAX_ROOTS}", roots_flag(), roots.len());
        for (number, root) in roots.iter().enumerate() {
            let info = Info::of(root).and_then(|info| info.may_sign(trust_domain, seconds(now)));
            info.with_context(|| format!("{}: certificate {}", roots_flag(), number + 1))?;
        }
        let key_flag = || format!("--ca-key {}", self.key.display());
        let text = read_secret(&self.key).context("--ca-key")?;
        if !text.contains("PRIVATE KEY-----") {
            bail!("{}: there is no private key in it", key_flag());
        }
        let key = KeyPair::from_pem(&text).with_context(|| {
            format!("{}: not a key that can be used here: PKCS #8 with ECDSA, Ed25519 or RSA", key_flag())
        })?;
        if let Some(first) = chain.first()
            && !Info::of(first).with_context(certificate)?.is_key(&key)
        {
            bail!("{}: not the key of the first certificate of {}", key_flag(), certificate());
        }
        // A root that issues by itself is no intermediate: it is not sent.
        let chain = chain.into_iter().filter(|certificate| !roots.contains(certificate)).collect::<Vec<_>>();
        ensure!(
            !chain.is_empty(),
            "{}: it is one of the roots: give an issuing certificate below it, so that the root's key can stay away",
            certificate()
        );
        let signer = Signer::new(chain, key, &roots, trust_domain, now).with_context(certificate)?;
        Ok(External { signer, roots })
    }

    /// Whether they may have changed since they were last found good.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.stamp != self.stamps()
    }

    /// The same files, as of now; taken before they are read, so that what changes meanwhile is a change.
    #[must_use]
    pub fn stamped(&self) -> Self {
        Self { stamp: self.stamps(), ..self.clone() }
    }

    fn stamps(&self) -> Stamp {
        use std::os::unix::fs::MetadataExt;
        let of = |file: &PathBuf| {
            let metadata = std::fs::metadata(file).ok()?;
            Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
        };
        [&self.certificate, &self.key, &self.roots].map(of).to_vec()
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let size = std::fs::metadata(file).context("it cannot be read")?.len();
    ensure!(size <= MAX, "{size} bytes are more than {MAX}");
    let text = std::fs::read(file).context("it cannot be read")?;
    let read = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|error| anyhow::anyhow!("it is not PEM: {error}"))?;
    ensure!(!read.is_empty(), "there is no certificate in it");
    Ok(read)
}

/// What is to be told of an issuing certificate from files that will end soon, if it will.
#[must_use]
pub fn warning(signer: &Signer, now: i64) -> Option<String> {
    let life = signer.not_after - signer.not_before;
    let due = signer.not_after - life / 5;
    (now >= due).then(|| {
        format!("the issuing certificate ends at {}: put a new one into the files of --ca-cert", date(signer.not_after))
    })
}
