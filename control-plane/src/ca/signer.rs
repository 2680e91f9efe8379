//! Certificates that sign: making roots and issuing certificates, checking that one is what it must be, and signing
//! leaves with it. What has been made into a [`Signer`] has proved that sidecars accept its leaves.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use super::presented::{Presented, Serial};

/// notBefore lies this far in the past, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(300);
/// Life of a root that is made here.
pub const ROOT_LIFE: Duration = Duration::from_secs(3650 * 86_400);
/// Life of an issuing certificate that is made here; it is followed by another at 80 % of it.
pub const ISSUER_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Certificates between leaf and root; a peer refuses chains of more than eight.
const MAX_CHAIN: usize = 5;

/// What a certificate that signs says of itself.
#[derive(Clone, Debug)]
pub struct Info {
    /// Serial number.
    pub serial: Serial,
    /// Seconds since the Unix epoch.
    pub not_before: i64,
    /// Seconds since the Unix epoch.
    pub not_after: i64,
    ca: bool,
    signs: bool,
    uris: Vec<String>,
    public_key: Vec<u8>,
}

impl Info {
    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self> {
        let parsed = match X509Certificate::from_der(certificate) {
            Ok(([], parsed)) => parsed,
            _ => bail!("not an X.509 certificate"),
        };
        let (mut ca, mut signs, mut uris) = (false, false, Vec::new());
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(constraints) => ca = constraints.ca,
                ParsedExtension::KeyUsage(usage) => signs = usage.key_cert_sign(),
                ParsedExtension::SubjectAlternativeName(names) => {
                    uris.extend(names.general_names.iter().filter_map(|name| match name {
                        GeneralName::URI(uri) => Some((*uri).to_owned()),
                        _ => None,
                    }));
                }
                _ => {}
            }
        }
        Ok(Self {
            serial: Serial::new(parsed.raw_serial()),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            ca,
            signs,
            uris,
            public_key: parsed.public_key().raw.to_vec(),
        })
    }

    /// Whether it may sign certificates of this trust domain now.
    ///
    /// # Errors
    /// Why not.
    pub fn may_sign(&self, trust_domain: &str, now: i64) -> Result<()> {
        ensure!(self.ca, "it is no CA: its basic constraints must say CA:TRUE");
        ensure!(self.signs, "it may not sign certificates: its key usage must have keyCertSign");
        ensure!(now >= self.not_before, "it is not valid before {}", date(self.not_before));
        ensure!(now < self.not_after, "it expired at {}", date(self.not_after));
        let own = format!("spiffe://{trust_domain}");
        for uri in self.uris.iter().filter(|uri| uri.to_ascii_lowercase().starts_with("spiffe:")) {
            ensure!(*uri == own, "it is of {uri} and not of the trust domain {own}");
        }
        Ok(())
    }

    /// Whether this is the certificate's key.
    #[must_use]
    pub fn is_key(&self, key: &KeyPair) -> bool {
        key.subject_public_key_info() == self.public_key
    }
}

/// An issuing certificate with its key and the way to its root.
pub struct Signer {
    /// The issuing certificate and what lies between it and the root, which is not in it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Serial numbers of the chain.
    pub serials: Vec<Serial>,
    /// No leaf begins before this: seconds since the Unix epoch.
    pub not_before: i64,
    /// No leaf ends after this: the first end of the chain and the root, seconds since the Unix epoch.
    pub not_after: i64,
    /// What its leaves name as the key that signed them.
    pub key_id: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// Between which moments a certificate is valid, in seconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// notBefore.
    pub from: i64,
    /// notAfter.
    pub to: i64,
}

impl Signer {
    /// Takes an issuing certificate when everything about it is right.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: KeyPair,
        roots: &[CertificateDer<'static>],
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<Self> {
        let seconds = seconds(now);
        ensure!(chain.len() <= MAX_CHAIN, "{} certificates are more than {MAX_CHAIN}", chain.len());
        let infos = chain.iter().map(Info::of).collect::<Result<Vec<_>>>()?;
        let first = infos.first().context("there is no certificate")?;
        ensure!(first.is_key(&key), "the key is not that of the issuing certificate");
        for (number, info) in infos.iter().enumerate() {
            info.may_sign(trust_domain, seconds).with_context(|| format!("certificate {}", number + 1))?;
        }
        let issuer = Issuer::from_ca_cert_der(&chain[0], key).context("issuing certificate")?;
        let not_before = infos.iter().map(|info| info.not_before).max().unwrap_or(seconds);
        let not_after = infos.iter().map(|info| info.not_after).min().unwrap_or(seconds);
        let serials = infos.into_iter().map(|info| info.serial).collect();
        let mut signer = Self { chain, serials, not_before, not_after, key_id: Vec::new(), issuer };
        let root = signer.prove(roots, trust_domain, now)?;
        signer.not_after = signer.not_after.min(root.not_after);
        Ok(signer)
    }

    /// Signs a leaf and verifies it as sidecars do; gives the root that it led to.
    fn prove(&mut self, roots: &[CertificateDer<'static>], trust_domain: &str, now: SystemTime) -> Result<Info> {
        let id = format!("spiffe://{trust_domain}/ns/weft-system/sa/probe");
        let life = Life { from: self.not_before, to: self.not_after };
        let probe = self.leaf(&KeyPair::generate()?, &id, None, life)?;
        self.key_id = Presented::of(&probe.chain[..1]).context("a certificate of our own")?.issuer;
        let anchors = roots.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>();
        let anchors = anchors.map_err(|error| anyhow::anyhow!("a root is no certificate: {error}"))?;
        let leaf = EndEntityCert::try_from(&probe.chain[0]).map_err(|error| anyhow::anyhow!("{error}"))?;
        let at = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let mut anchor = Vec::new();
        for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
            let path = leaf.verify_for_usage(algorithms, &anchors, &probe.chain[1..], at, usage, None, None);
            let path = path.map_err(|error| match error {
                webpki::Error::UnknownIssuer => {
                    anyhow::anyhow!("it does not chain to any of the roots: add what lies between, or the right root")
                }
                error => anyhow::anyhow!("sidecars would refuse what it signs: {error}"),
            })?;
            anchor = path.anchor().subject_public_key_info.to_vec();
        }
        // The anchor's key without the outer SEQUENCE is the tail of the certificate's.
        let infos = roots.iter().map(Info::of).collect::<Result<Vec<_>>>()?;
        infos.into_iter().find(|info| info.public_key.ends_with(&anchor)).context("its root is not among the roots")
    }

    /// Signs an SVID.
    ///
    /// # Errors
    /// When the id cannot be written into a certificate.
    pub fn leaf(
        &self,
        key: &impl PublicKeyData,
        id: &str,
        extension: Option<CustomExtension>,
        life: Life,
    ) -> Result<Leaf> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.custom_extensions = extension.into_iter().collect();
        self.sign(params, key, life)
    }

    /// Signs a certificate for HTTPS with these names and addresses. It is no SVID: it has no SPIFFE id.
    ///
    /// # Errors
    /// When a name is no DNS name.
    pub fn https(&self, key: &impl PublicKeyData, names: &[String], life: Life) -> Result<Leaf> {
        // An entry that is an address becomes one.
        let mut params = CertificateParams::new(names.to_vec()).context("names of the API's certificate")?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "weft control plane");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, key, life)
    }

    fn sign(&self, mut params: CertificateParams, key: &impl PublicKeyData, life: Life) -> Result<Leaf> {
        let serial = serial();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = (offset(life.from)?, offset(life.to)?);
        let leaf = params.signed_by(key, &self.issuer)?.der().clone();
        let chain = std::iter::once(leaf).chain(self.chain.iter().cloned()).collect();
        Ok(Leaf { chain, serial: Serial::new(&serial), life })
    }
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its serial number.
    pub serial: Serial,
    /// When it is valid.
    pub life: Life,
}

impl Leaf {
    /// Its end.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(self.life.to).unwrap_or(0))
    }
}

/// Makes a root: its certificate, signed by its key.
///
/// # Errors
/// When the trust domain cannot be written into a certificate.
pub fn make_root(key: &KeyPair, trust_domain: &str, now: SystemTime) -> Result<CertificateDer<'static>> {
    let serial = serial();
    let shown = Serial::new(&serial).to_string();
    let mut params = authority(trust_domain, &format!("weft root {} of {trust_domain}", &shown[..8]))?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.not_before, params.not_after) = (offset(seconds(now - BACKDATE))?, offset(seconds(now + ROOT_LIFE))?);
    Ok(params.self_signed(key)?.der().clone())
}

/// Makes an issuing certificate below a root, whose key must be `root_key`.
///
/// # Errors
/// When the root cannot be read or has expired.
pub fn make_issuer(
    key: &KeyPair,
    root: &CertificateDer<'static>,
    root_key: KeyPair,
    trust_domain: &str,
    now: SystemTime,
) -> Result<CertificateDer<'static>> {
    let info = Info::of(root).context("root")?;
    ensure!(info.is_key(&root_key), "the key is not that of the root certificate");
    info.may_sign(trust_domain, seconds(now)).context("root")?;
    let serial = serial();
    let shown = Serial::new(&serial).to_string();
    let mut params = authority(trust_domain, &format!("weft issuer {} of {trust_domain}", &shown[..8]))?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    params.not_before = offset(seconds(now - BACKDATE).max(info.not_before))?;
    params.not_after = offset(seconds(now + ISSUER_LIFE).min(info.not_after))?;
    let root = Issuer::from_ca_cert_der(root, root_key).context("root")?;
    Ok(params.signed_by(key, &root)?.der().clone())
}

fn authority(trust_domain: &str, name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").as_str().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Random, positive and of one length.
fn serial() -> [u8; 16] {
    let mut serial = [0; 16];
    rand::rng().fill_bytes(&mut serial);
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

/// Whole seconds since the Unix epoch; 0 for what lies before.
#[must_use]
pub fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn offset(seconds: i64) -> Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds).context("a time that no certificate can hold")
}

/// RFC 3339.
#[must_use]
pub fn date(seconds: i64) -> String {
    super::audit::rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}
