//! The certificate of the operator API: files that somebody else renews, or one of the control plane's own authority,
//! made anew at half of its life.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::NoServerSessionStorage,
    version::{TLS12, TLS13},
};
use tokio_rustls::TlsAcceptor;

use crate::ca::{Active, Ca};

/// Life of a certificate of our own.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked at whether there is to be another.
const LOOK: Duration = Duration::from_secs(10);

/// Where the certificate comes from.
pub enum Source {
    /// PEM files: chain and key.
    Files {
        /// Chain, leaf first.
        certificate: PathBuf,
        /// Key.
        key: PathBuf,
    },
    /// Our own authority, for these names and addresses.
    Own {
        /// The authority.
        ca: Arc<Ca>,
        /// DNS names and addresses.
        names: Vec<String>,
    },
}

/// The present certificate, and its renewal.
pub struct Https {
    source: Source,
    acceptor: TlsAcceptor,
    /// When it was made, or when its files were changed.
    made: Vec<SystemTime>,
    looked: SystemTime,
    /// The authority that signed it, if it is ours.
    active: Option<Arc<Active>>,
}

impl Https {
    /// The first certificate.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(source: Source, now: SystemTime) -> Result<Self> {
        let (made, active) = (source.made(now)?, source.active());
        let acceptor = source.acceptor()?;
        Ok(Self { source, acceptor, made, looked: now, active })
    }

    /// The certificate for the next connection: renewed when it is time, the old one when that fails.
    pub fn acceptor(&mut self, now: SystemTime) -> TlsAcceptor {
        // The wall clock, as certificates have it: it goes on while a machine sleeps, and it may go back.
        let early = now.duration_since(self.looked).is_ok_and(|since| since < LOOK);
        if early && same(self.active.as_ref(), self.source.active().as_ref()) {
            return self.acceptor.clone();
        }
        self.looked = now;
        match self.renewed(now) {
            Ok(true) => tracing::info!("the operator API has a new certificate"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "no new certificate for the operator API; the old one stays"
                );
            }
        }
        self.acceptor.clone()
    }

    fn renewed(&mut self, now: SystemTime) -> Result<bool> {
        let (made, active) = (self.source.made(now)?, self.source.active());
        let due = match &self.source {
            Source::Files { .. } => made != self.made,
            Source::Own { .. } => {
                !same(self.active.as_ref(), active.as_ref())
                    || self.made.iter().any(|made| now.duration_since(*made).map_or(true, |age| age >= LIFE / 2))
            }
        };
        if due {
            self.acceptor = self.source.acceptor()?;
            (self.made, self.active) = (made, active);
        }
        Ok(due)
    }
}

/// Whether nothing has changed about who issues.
fn same(old: Option<&Arc<Active>>, new: Option<&Arc<Active>>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
        (None, None) => true,
        _ => false,
    }
}

impl Source {
    fn active(&self) -> Option<Arc<Active>> {
        if let Self::Own { ca, .. } = self { Some(ca.active()) } else { None }
    }

    fn made(&self, now: SystemTime) -> Result<Vec<SystemTime>> {
        let Self::Files { certificate, key } = self else { return Ok(vec![now]) };
        let modified = |file: &PathBuf| -> Result<SystemTime> {
            let metadata = std::fs::metadata(file).and_then(|metadata| metadata.modified());
            metadata.with_context(|| format!("read {}", file.display()))
        };
        Ok(vec![modified(certificate)?, modified(key)?])
    }

    fn acceptor(&self) -> Result<TlsAcceptor> {
        let (chain, key) = match self {
            Self::Files { certificate, key } => {
                let chain = CertificateDer::pem_file_iter(certificate)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .with_context(|| format!("--api-tls-cert {}", certificate.display()))?;
                if chain.is_empty() {
                    bail!("--api-tls-cert {}: there is no certificate in it", certificate.display());
                }
                let key =
                    PrivateKeyDer::from_pem_file(key).with_context(|| format!("--api-tls-key {}", key.display()))?;
                (chain, key)
            }
            Self::Own { ca, names } => {
                let (chain, key) = ca.https(names, LIFE)?;
                (chain, PrivatePkcs8KeyDer::from(key.to_vec()).into())
            }
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        // kubectl and browsers of today speak 1.3; 1.2 is for what lies between them and us.
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("certificate and key of the operator API")?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// The names under which the API is reached: this machine's, the address that it listens on, and what is `given`.
#[must_use]
pub fn names(listen: SocketAddr, host: &str, given: &[String]) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    }
    // A host may have a name that is none in DNS.
    let host = host.to_ascii_lowercase();
    if !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')) {
        names.push(host);
    }
    names.extend(given.iter().cloned());
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn leaf(acceptor: &TlsAcceptor) -> *const ServerConfig {
        Arc::as_ptr(acceptor.config())
    }

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn own(directory: &tempfile::TempDir) -> Source {
        let ca = Ca::open(directory.path(), "weft.local", HOUR).expect("an authority");
        Source::Own { ca: Arc::new(ca), names: names("127.0.0.1:1".parse().unwrap(), "box", &[]) }
    }

    #[test]
    fn a_certificate_of_our_own_is_renewed_at_half_of_its_life_and_when_the_clock_went_back() {
        let directory = directory();
        let start = SystemTime::now();
        let mut https = Https::new(own(&directory), start).expect("a certificate");
        let first = leaf(&https.acceptor);
        assert_eq!(leaf(&https.acceptor(start + HOUR * 11)), first);
        let second = https.acceptor(start + HOUR * 12);
        assert_ne!(leaf(&second), first);
        assert_eq!(leaf(&https.acceptor(start + HOUR * 23)), leaf(&second));
        let third = https.acceptor(start - HOUR * 24 * 3650);
        assert_ne!(leaf(&third), leaf(&second), "it would not be valid yet");
        let soon = start - HOUR * 24 * 3650 + LOOK;
        assert_eq!(leaf(&https.acceptor(soon)), leaf(&third), "once is enough");
    }

    #[test]
    fn files_are_read_again_when_they_change_and_bad_ones_keep_the_old() {
        let directory = directory();
        let (certificate, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
        let write = || {
            let made = rcgen::generate_simple_self_signed(vec!["weft.example".into()]).expect("a certificate");
            std::fs::write(&certificate, made.cert.pem()).expect("written");
            std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
        };
        write();
        let start = SystemTime::now();
        let source = Source::Files { certificate: certificate.clone(), key: key.clone() };
        let mut https = Https::new(source, start).expect("a certificate");
        let touch = |seconds| {
            let file = std::fs::File::options().append(true).open(&certificate).expect("opened");
            file.set_modified(start + Duration::from_secs(seconds)).expect("set");
        };
        let first = leaf(&https.acceptor);
        assert_eq!(leaf(&https.acceptor(start + LOOK)), first);
        std::fs::write(&certificate, "nonsense").expect("written");
        touch(100);
        assert_eq!(leaf(&https.acceptor(start + LOOK * 2)), first);
        write();
        touch(200);
        assert_ne!(leaf(&https.acceptor(start + LOOK * 3)), first);
        std::fs::remove_file(&key).expect("removed");
        assert!(Https::new(Source::Files { certificate, key }, start).is_err());
    }

    #[test]
    fn a_key_that_is_not_the_certificates_is_refused() {
        let directory = directory();
        let (certificate, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
        let make = || rcgen::generate_simple_self_signed(vec!["weft.example".into()]).expect("a certificate");
        std::fs::write(&certificate, make().cert.pem()).expect("written");
        std::fs::write(&key, make().signing_key.serialize_pem()).expect("written");
        assert!(Https::new(Source::Files { certificate, key }, SystemTime::now()).is_err());
    }

    #[test]
    fn the_names_are_those_of_this_machine_the_listener_and_what_is_given() {
        let all = ["localhost", "127.0.0.1", "::1", "10.0.0.7", "box", "weft.example"];
        assert_eq!(names("10.0.0.7:1".parse().unwrap(), "Box", &["weft.example".into()]), all);
        assert_eq!(names("0.0.0.0:1".parse().unwrap(), "my_box", &[]), all[..3]);
    }
}
