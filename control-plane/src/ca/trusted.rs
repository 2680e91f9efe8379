//! The files by which others learn the roots: `root.pem` for clients of the API, and the development token, which goes
//! with the roots that its holder is to trust. While the root is changed they have both, so that a new sidecar can enrol
//! in any phase.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rand::RngCore;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::files::{Directory, runtime_dir, write_private};

/// The files, and what was written last.
pub struct TrustedFiles {
    root: PathBuf,
    token: Option<Token>,
    /// Roots that are in all of the files; none after a failure.
    written: Option<Vec<CertificateDer<'static>>>,
    /// The last failure that was told.
    pub told: Option<String>,
}

struct Token {
    text: Zeroizing<String>,
    trust_domain: String,
    files: Vec<PathBuf>,
    /// Held for as long as sidecars of this machine are to find the token: another control plane of the same port, at
    /// another address or in another network namespace, must not put its own in the place.
    _place: Option<File>,
}

impl TrustedFiles {
    /// With the roots in this file.
    pub fn new(root: PathBuf) -> Self {
        Self { root, token: None, written: None, told: None }
    }

    /// The file of the roots alone.
    pub fn root_file(&self) -> &Path {
        &self.root
    }

    /// The development token, from the data directory or made; from now on it is written with the roots: into the data
    /// directory, and to where sidecars look that call `port` on loopback, unless another control plane has that place.
    ///
    /// # Errors
    /// When the directory for it cannot be used.
    pub fn dev_token(
        &mut self,
        directory: &Directory,
        trust_domain: &str,
        port: Option<u16>,
    ) -> Result<Zeroizing<String>> {
        const FILE: &str = "dev-token";
        let kept =
            directory.read(FILE)?.and_then(|text| text.lines().next().map(|line| Zeroizing::new(line.to_owned())));
        let text = kept.filter(|text| text.starts_with("weft1.")).unwrap_or_else(new_token);
        let mut files = vec![directory.path(FILE)];
        let place = port.map(|port| place(&runtime_dir()?, port)).transpose()?.flatten();
        let place = place.map(|(file, lock)| {
            files.push(file);
            lock
        });
        self.token = Some(Token { text: text.clone(), trust_domain: trust_domain.into(), files, _place: place });
        self.written = None;
        Ok(text)
    }

    /// Writes the files, if these roots are not in them.
    ///
    /// # Errors
    /// When one cannot be written; the next call tries again.
    pub fn write(&mut self, roots: &[CertificateDer<'static>]) -> Result<()> {
        if self.written.as_deref() == Some(roots) {
            return Ok(());
        }
        self.written = None;
        let pem: String = roots.iter().map(|root| pem("CERTIFICATE", root)).collect();
        write_private(&self.root, pem.as_bytes())?;
        if let Some(Token { text, trust_domain, files, .. }) = &self.token {
            let text = Zeroizing::new(format!("{}\n# trust-domain: {trust_domain}\n{pem}", text.as_str()));
            for file in files {
                write_private(file, text.as_bytes())?;
            }
        }
        self.written = Some(roots.to_vec());
        Ok(())
    }
}

/// Where sidecars look for the token of this port, and the lock that says whose it is.
fn place(directory: &Path, port: u16) -> Result<Option<(PathBuf, File)>> {
    let (file, lock) = (directory.join(format!("dev-{port}.token")), directory.join(format!("dev-{port}.lock")));
    let opened = File::options().create(true).truncate(false).write(true).open(&lock);
    let opened = opened.with_context(|| format!("open {}", lock.display()))?;
    match opened.try_lock() {
        Ok(()) => Ok(Some((file, opened))),
        Err(TryLockError::WouldBlock) => {
            tracing::warn!(
                file = %file.display(),
                "another control plane's development token is there: sidecars of this one need --token FILE, the file \
                 dev-token of the data directory"
            );
            Ok(None)
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", lock.display())),
    }
}

fn new_token() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::rng().fill_bytes(bytes.as_mut());
    Zeroizing::new(format!("weft1.{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// PEM (RFC 7468) of a certificate.
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for start in (0..text.len()).step_by(64) {
        pem.push_str(&text[start..text.len().min(start + 64)]);
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_control_planes_with_one_port_the_first_has_the_place_until_it_ends() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = place(directory.path(), 15012).expect("usable");
        assert_eq!(first.as_ref().map(|(file, _)| file.clone()), Some(directory.path().join("dev-15012.token")));
        assert!(place(directory.path(), 15012).expect("usable").is_none());
        assert!(place(directory.path(), 15013).expect("usable").is_some());
        drop(first);
        assert!(place(directory.path(), 15012).expect("usable").is_some());
    }
}
