//! The embedded certificate authority: its root in the data directory, SVIDs for signing requests, and the
//! development token. Authorization of a request is [`service`]'s.

pub mod audit;
pub mod enrolment;
pub mod files;
mod presented;
pub mod service;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use weft_policy::SpiffeId;
use weft_svid::Svid;
use zeroize::Zeroizing;

pub(crate) use self::files::write_private;
use self::{
    enrolment::attested::{self, Attested},
    files::runtime_dir,
};
pub use self::{
    files::private_dir,
    presented::{Presented, Serial},
};

/// notBefore lies this far in the past, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(300);
const ROOT_LIFE: time::Duration = time::Duration::days(3650);

/// The authority of one trust domain.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
    trust_domain: String,
    lifetime: Duration,
}

impl Ca {
    /// Opens the authority in `data_dir`, or makes it.
    ///
    /// # Errors
    /// When the files cannot be read, written or understood.
    pub fn open(data_dir: &Path, trust_domain: &str, lifetime: Duration) -> Result<Self> {
        let (key_file, root_file) = (data_dir.join("ca.key"), data_dir.join("ca.crt"));
        let (key, root_pem) = if key_file.exists() {
            let key = std::fs::read_to_string(&key_file).with_context(|| format!("read {}", key_file.display()))?;
            let root = std::fs::read_to_string(&root_file).with_context(|| format!("read {}", root_file.display()))?;
            (KeyPair::from_pem(&key).with_context(|| format!("parse {}", key_file.display()))?, root)
        } else {
            let key = KeyPair::generate()?;
            let root = root_params(trust_domain)?.self_signed(&key)?.pem();
            write_private(&root_file, root.as_bytes())?;
            write_private(&key_file, Zeroizing::new(key.serialize_pem()).as_bytes())?;
            (key, root)
        };
        let root = rcgen_root(&root_pem).with_context(|| format!("parse {}", root_file.display()))?;
        let issuer = Issuer::from_ca_cert_der(&root, key)?;
        Ok(Self { issuer, root, root_pem, trust_domain: trust_domain.into(), lifetime })
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The roots, in DER.
    #[must_use]
    pub fn roots(&self) -> Vec<Vec<u8>> {
        vec![self.root.to_vec()]
    }

    /// The roots, in PEM.
    #[must_use]
    pub fn roots_pem(&self) -> &str {
        &self.root_pem
    }

    /// Signs a request: the key is the request's, everything else is ours. What is attested goes into the certificate.
    ///
    /// # Errors
    /// When the request is malformed, its signature is wrong or its key is not ECDSA on P-256 or P-384.
    pub fn issue(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        attested: &Attested,
        lifetime: Option<Duration>,
    ) -> Result<CertificateDer<'static>> {
        let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
            .context("certificate signing request")?;
        let algorithm = csr.public_key.algorithm();
        if *algorithm != PKCS_ECDSA_P256_SHA256 && *algorithm != PKCS_ECDSA_P384_SHA384 {
            bail!("certificate signing request: the key must be ECDSA on P-256 or P-384");
        }
        let extension = attested.extension()?;
        self.sign(&csr.public_key, id, extension, lifetime.unwrap_or(self.lifetime).min(self.lifetime))
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        attested: Option<Vec<u8>>,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>> {
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial());
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = now - BACKDATE;
        params.not_after = now + lifetime;
        let extension = |content| CustomExtension::from_oid_content(&attested::OID, content);
        params.custom_extensions = attested.map(extension).into_iter().collect();
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// A certificate of the control plane's own, for its discovery port.
    ///
    /// # Errors
    /// When the trust domain makes no valid id.
    pub fn own_svid(&self, lifetime: Duration) -> Result<Svid> {
        let id = weft_svid::control_plane_id(&self.trust_domain).context("trust domain")?;
        let key = KeyPair::generate()?;
        let leaf = self.sign(&key, &id, None, lifetime)?;
        Ok(Svid::new(vec![leaf], Zeroizing::new(key.serialize_der()))?)
    }

    /// A certificate for HTTPS with these names and addresses, and its key. It is no SVID: it has no SPIFFE id, so it
    /// proves nothing inside the mesh.
    ///
    /// # Errors
    /// When a name is no DNS name.
    pub fn https(&self, names: &[String], lifetime: Duration) -> Result<(CertificateDer<'static>, Zeroizing<Vec<u8>>)> {
        let key = KeyPair::generate()?;
        let now = OffsetDateTime::now_utc();
        // An entry that is an address becomes one.
        let mut params = CertificateParams::new(names.to_vec()).context("names of the API's certificate")?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "weft control plane");
        params.serial_number = Some(serial());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = now - BACKDATE;
        params.not_after = now + lifetime;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok((certificate, Zeroizing::new(key.serialize_der())))
    }

    /// Writes the root certificate to `root.pem` in `data_dir`, for clients; gives the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_root(&self, data_dir: &Path) -> Result<PathBuf> {
        let file = data_dir.join("root.pem");
        write_private(&file, self.root_pem.as_bytes())?;
        Ok(file)
    }

    /// The development token, kept in `data_dir` so that it survives a restart, and where `weft run` looks for it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn dev_token(&self, data_dir: &Path, xds_port: u16) -> Result<Zeroizing<String>> {
        let file = data_dir.join("dev-token");
        let token = match std::fs::read_to_string(&file) {
            Ok(text) => text.lines().next().unwrap_or_default().to_owned(),
            Err(_) => {
                let mut bytes = Zeroizing::new([0; 32]);
                rand::rng().fill_bytes(bytes.as_mut());
                format!("weft1.{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
        };
        let text = Zeroizing::new(format!("{token}\n{}", self.root_pem));
        write_private(&file, text.as_bytes())?;
        write_private(&runtime_dir()?.join(format!("dev-{xds_port}.token")), text.as_bytes())?;
        Ok(Zeroizing::new(token))
    }
}

/// Random, and positive.
fn serial() -> SerialNumber {
    let mut serial = [0; 16];
    rand::rng().fill_bytes(&mut serial);
    serial[0] &= 0x7f;
    SerialNumber::from_slice(&serial)
}

fn root_params(trust_domain: &str) -> Result<CertificateParams> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("weft root of {trust_domain}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").as_str().try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - BACKDATE;
    params.not_after = now + ROOT_LIFE;
    Ok(params)
}

fn rcgen_root(pem: &str) -> Result<CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| anyhow::anyhow!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("weft-ca-{}-{name}", std::process::id()));
            private_dir(&path).expect("a directory");
            Self(path)
        }

        fn open(&self) -> Ca {
            Ca::open(&self.0, "weft.local", Duration::from_secs(60)).expect("an authority")
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn id() -> SpiffeId {
        SpiffeId::workload("weft.local", "shop", "catalog").expect("valid")
    }

    fn csr(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            vec![SanType::URI("spiffe://weft.local/ns/shop/sa/admin".try_into().expect("ASCII"))];
        params.serialize_request(&key).expect("a request").der().to_vec()
    }

    #[test]
    fn the_root_survives_a_restart_and_its_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = Directory::new("restart");
        let first = directory.open();
        assert_eq!(first.roots(), directory.open().roots());
        let mode = std::fs::metadata(directory.0.join("ca.key")).expect("the key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn names_in_a_request_are_ignored_and_the_lifetime_is_clamped() {
        let directory = Directory::new("issue");
        let year = Some(Duration::from_secs(365 * 86_400));
        let leaf =
            directory.open().issue(&csr(&PKCS_ECDSA_P256_SHA256), &id(), &Attested::default(), year).expect("issued");
        let identity = weft_svid::peer_identity(std::slice::from_ref(&leaf)).expect("an SVID");
        assert_eq!(identity.id, id());
        assert_eq!(Attested::of(&leaf).expect("readable"), Attested::default());
        let left = identity.not_after.duration_since(std::time::SystemTime::now()).expect("in the future");
        assert!(left <= Duration::from_secs(60), "{left:?}");
    }

    #[test]
    fn what_is_attested_is_in_the_certificate_which_is_an_svid_all_the_same() {
        let ca = Directory::new("attested");
        let attested =
            Attested { name: Some("web".into()), labels: [("app".to_owned(), "web".to_owned())].into_iter().collect() };
        let leaf = ca.open().issue(&csr(&PKCS_ECDSA_P256_SHA256), &id(), &attested, None).expect("issued");
        assert_eq!(Attested::of(&leaf).expect("readable"), attested);
        assert_eq!(weft_svid::peer_identity(&[leaf]).expect("an SVID").id, id());
    }

    #[test]
    fn another_kind_of_key_and_a_damaged_request_are_refused() {
        let directory = Directory::new("refuse");
        let ca = directory.open();
        assert!(ca.issue(&csr(&rcgen::PKCS_ED25519), &id(), &Attested::default(), None).is_err());
        let mut damaged = csr(&PKCS_ECDSA_P256_SHA256);
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(ca.issue(&damaged, &id(), &Attested::default(), None).is_err(), "its signature is wrong");
    }
}
