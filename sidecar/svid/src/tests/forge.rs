//! Certificates from their parts, right or wrong: what no library would make has to be written byte by byte.

use rcgen::{KeyPair, PublicKeyData, SigningKey};
use time::OffsetDateTime;

pub const SHA256_ECDSA: &[u64] = &[1, 2, 840, 10045, 4, 3, 2];
pub const SAN: &[u64] = &[2, 5, 29, 17];
pub const BASIC: &[u64] = &[2, 5, 29, 19];
pub const USAGE: &[u64] = &[2, 5, 29, 15];
pub const EXTENDED: &[u64] = &[2, 5, 29, 37];
pub const CONSTRAINTS: &[u64] = &[2, 5, 29, 30];

/// Tag, length, content.
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut der = vec![tag];
    match length {
        [] => der.push(0),
        [short @ 0..=127] => der.push(*short),
        long => {
            der.push(0x80 | u8::try_from(long.len()).expect("short"));
            der.extend(long);
        }
    }
    der.extend(content);
    der
}

pub fn seq(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

pub fn oid(arcs: &[u64]) -> Vec<u8> {
    let mut content = vec![u8::try_from(arcs[0] * 40 + arcs[1]).expect("small")];
    for arc in &arcs[2..] {
        let groups = (0..5).rev().map(|n| u8::try_from((arc >> (7 * n)) & 0x7f).expect("7 bits"));
        let mut groups: Vec<u8> = groups.skip_while(|group| *group == 0).collect();
        if groups.is_empty() {
            groups.push(0);
        }
        let last = groups.len() - 1;
        groups[..last].iter_mut().for_each(|group| *group |= 0x80);
        content.extend(groups);
    }
    tlv(6, &content)
}

/// A distinguished name of one common name.
pub fn name(common: &str) -> Vec<u8> {
    seq(&[tlv(0x31, &seq(&[oid(&[2, 5, 4, 3]), tlv(0x0c, common.as_bytes())]))])
}

pub fn algorithm(arcs: &[u64]) -> Vec<u8> {
    seq(&[oid(arcs)])
}

pub fn moment(time: OffsetDateTime) -> Vec<u8> {
    let (date, clock) = ((u8::from(time.month()), time.day()), time.to_hms());
    let rest = format!("{:02}{:02}{:02}{:02}{:02}Z", date.0, date.1, clock.0, clock.1, clock.2);
    match time.year() {
        year @ ..2050 => tlv(0x17, format!("{:02}{rest}", year % 100).as_bytes()),
        year => tlv(0x18, format!("{year}{rest}").as_bytes()),
    }
}

pub fn extension(id: &[u64], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { tlv(1, &[0xff]) } else { Vec::new() };
    seq(&[oid(id), critical, tlv(4, value)])
}

/// Subject alternative names: context tags and contents.
pub fn names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let names: Vec<_> = names.iter().map(|(tag, content)| tlv(*tag, content)).collect();
    extension(SAN, false, &seq(&names))
}

pub fn uris(uris: &[&str]) -> Vec<u8> {
    names(&uris.iter().map(|uri| (0x86, uri.as_bytes())).collect::<Vec<_>>())
}

/// Key usage from its bits, the highest first: digitalSignature 0x80, keyCertSign 0x04, cRLSign 0x02.
pub fn usage(critical: bool, bits: u8) -> Vec<u8> {
    let unused = u8::try_from(bits.trailing_zeros().min(7)).expect("small");
    extension(USAGE, critical, &tlv(3, &[unused, bits]))
}

/// Extended key usage: the last arc of each purpose (serverAuth 1, clientAuth 2).
pub fn purposes(last: &[u64]) -> Vec<u8> {
    let purposes: Vec<_> = last.iter().map(|last| oid(&[1, 3, 6, 1, 5, 5, 7, 3, *last])).collect();
    extension(EXTENDED, false, &seq(&purposes))
}

pub fn basic(ca: bool, length: Option<u8>) -> Vec<u8> {
    let ca = if ca { tlv(1, &[0xff]) } else { Vec::new() };
    extension(BASIC, true, &seq(&[ca, length.map(|length| tlv(2, &[length])).unwrap_or_default()]))
}

/// A public key of `bits` bits that nobody has: a signature is never asked of it.
pub fn rsa_of(bits: usize) -> Vec<u8> {
    let mut modulus = vec![0x55; bits.div_ceil(8)];
    modulus[0] = 0x80 >> ((8 - bits % 8) % 8);
    *modulus.last_mut().expect("not empty") |= 1;
    if modulus[0] & 0x80 != 0 {
        modulus.insert(0, 0);
    }
    let key = seq(&[tlv(2, &modulus), tlv(2, &[1, 0, 1])]);
    seq(&[seq(&[oid(&[1, 2, 840, 113_549, 1, 1, 1]), tlv(5, &[])]), tlv(3, &[&[0], key.as_slice()].concat())])
}

/// The form of a key on an elliptic curve, with a point of `bytes` per coordinate.
pub fn ec_of(curve: &[u64], bytes: usize) -> Vec<u8> {
    let point = [vec![0, 4], vec![0x11; 2 * bytes]].concat();
    seq(&[seq(&[oid(&[1, 2, 840, 10045, 2, 1]), oid(curve)]), tlv(3, &point)])
}

/// A certificate before it is signed; every part is DER.
#[derive(Clone)]
pub struct Cert {
    /// `None` leaves the version out, which says 1; 2 says 3.
    pub version: Option<u8>,
    /// Content of the INTEGER.
    pub serial: Vec<u8>,
    /// The algorithm inside and outside of what is signed.
    pub algorithms: [Vec<u8>; 2],
    pub issuer: Vec<u8>,
    pub validity: Vec<u8>,
    pub subject: Vec<u8>,
    pub key: Vec<u8>,
    pub extensions: Vec<Vec<u8>>,
    /// Bytes behind the extensions, inside of what is signed.
    pub more: Vec<u8>,
}

pub fn validity(from: time::Duration, to: time::Duration) -> Vec<u8> {
    let now = OffsetDateTime::now_utc();
    seq(&[moment(now + from), moment(now + to)])
}

impl Cert {
    /// Without extensions, for an hour.
    pub fn new(subject: &[u8], key: &KeyPair, issuer: &[u8]) -> Self {
        Self {
            version: Some(2),
            serial: vec![0x11, 0x22],
            algorithms: [algorithm(SHA256_ECDSA), algorithm(SHA256_ECDSA)],
            issuer: issuer.to_vec(),
            validity: validity(-time::Duration::minutes(5), time::Duration::hours(1)),
            subject: subject.to_vec(),
            key: key.subject_public_key_info(),
            extensions: Vec::new(),
            more: Vec::new(),
        }
    }

    pub fn signed(&self, by: &KeyPair) -> Vec<u8> {
        let version = self.version.map(|version| tlv(0xa0, &tlv(2, &[version]))).unwrap_or_default();
        let extensions = if self.extensions.is_empty() { Vec::new() } else { tlv(0xa3, &seq(&self.extensions)) };
        let content = [
            version,
            tlv(2, &self.serial),
            self.algorithms[0].clone(),
            self.issuer.clone(),
            self.validity.clone(),
            self.subject.clone(),
            self.key.clone(),
            extensions,
            self.more.clone(),
        ];
        let body = seq(&content);
        let signature = [vec![0], by.sign(&body).expect("signed")].concat();
        seq(&[body, self.algorithms[1].clone(), tlv(3, &signature)])
    }
}
