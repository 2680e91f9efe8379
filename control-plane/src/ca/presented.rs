//! What a certificate chain says that decides whether it is revoked and whose it is.

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_parser::{
    extensions::ParsedExtension,
    prelude::{FromDer, X509Certificate},
};

/// A serial number without leading zeros; shown in lower-case hex.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Serial(Box<[u8]>);

impl Serial {
    /// Of big-endian bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes[zeros..].into())
    }

    /// Of hex digits, as `openssl` prints them too: colons between bytes and either case are fine. `None` when it is
    /// none, is 0 or has more than 20 bytes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|letter| *letter != ':').collect();
        let digits = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits };
        if digits.len() > 42 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let byte = |at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
        Some(Self::new(&bytes?)).filter(|serial| matches!(serial.0.len(), 1..=20))
    }

    /// Big-endian bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A chain that a peer presented.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Presented {
    /// Serial numbers, leaf first.
    pub serials: Vec<Serial>,
    /// notBefore of the leaf, seconds since the Unix epoch.
    pub not_before: i64,
    /// notAfter of the leaf, seconds since the Unix epoch.
    pub not_after: i64,
    /// The key by which the leaf was signed (authority key identifier); empty when it does not say.
    pub issuer: Vec<u8>,
    /// The chain itself, to be judged again.
    pub chain: Vec<CertificateDer<'static>>,
}

impl Presented {
    /// Reads a chain; `None` when a certificate of it cannot be read.
    #[must_use]
    pub fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let mut serials = Vec::with_capacity(chain.len());
        for certificate in chain {
            serials.push(Serial::new(parse(certificate)?.raw_serial()));
        }
        let leaf = parse(chain.first()?)?;
        let issuer = leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(key) => key.key_identifier.as_ref().map(|id| id.0.to_vec()),
            _ => None,
        });
        let (not_before, not_after) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
        Some(Self { serials, not_before, not_after, issuer: issuer.unwrap_or_default(), chain })
    }

    /// The leaf's serial number in hex.
    #[must_use]
    pub fn serial(&self) -> String {
        self.serials.first().map(ToString::to_string).unwrap_or_default()
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_has_one_form() {
        let shown = |text: &str| Serial::parse(text).map(|serial| serial.to_string());
        assert_eq!(shown("00AB:cd").as_deref(), Some("abcd"));
        assert_eq!(shown("7").as_deref(), Some("07"));
        let twenty = "ab".repeat(20);
        assert_eq!(shown(&format!("00{twenty}")).as_deref(), Some(twenty.as_str()));
        for bad in ["", "0", "00:00", "xyz", "+1", &"ab".repeat(21), "é"] {
            assert_eq!(shown(bad), None, "{bad}");
        }
        assert_eq!(Serial::new(&[0, 0, 1]), Serial::new(&[1]));
    }

    #[test]
    fn a_chain_is_read_leaf_first_and_garbage_is_not() {
        let mut params = rcgen::CertificateParams::default();
        params.serial_number = Some(vec![0, 7].into());
        let key = rcgen::KeyPair::generate().expect("a key");
        let leaf = params.self_signed(&key).expect("a certificate").der().clone();
        let read = Presented::of(std::slice::from_ref(&leaf)).expect("a certificate");
        assert_eq!((read.serial().as_str(), read.serials.len()), ("07", 1));
        assert_eq!(Presented::of(&[leaf, CertificateDer::from(vec![1])]), None);
        assert_eq!(Presented::of(&[]), None);
    }
}
