//! The envelope of a state file, version 1:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `weftconf` or `weftsvid` |
//! | 2 | version of the format, big-endian, as all numbers |
//! | 1 | 0: SHA-256; 1: HMAC-SHA-256; 2: AES-256-GCM |
//! | 1 | 0 |
//! | 8 | when it was last right, milliseconds since the Unix epoch |
//! | 4 | length of the body |
//! | | the body; with AES-256-GCM encrypted |
//! | 32 or 16 | checksum, code or tag over all of the above |
//! | 12 | with AES-256-GCM: the nonce |
//!
//! Without a key both files have a checksum, which finds accidents. With a key the configuration has a code and the
//! certificate's file is sealed; a file without is refused then.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{
    aead::{Aad, NONCE_LEN, Nonce},
    constant_time, digest, hmac,
};
use zeroize::Zeroizing;

use super::{Refused, key::StateKey};

/// The version that is written, and the only one that is read.
pub const VERSION: u16 = 1;
const HEADER: usize = 24;
const SUM: usize = 32;
const TAG: usize = 16;

/// Which file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The last known good configuration.
    Configuration,
    /// Certificate and key.
    Identity,
}

/// How a file is protected.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Protection {
    Checksum = 0,
    Code = 1,
    Sealed = 2,
}

/// A file that is whole and ours.
pub struct Opened {
    /// When its content was last right.
    pub saved: SystemTime,
    /// What is in it.
    pub body: Zeroizing<Vec<u8>>,
}

impl Kind {
    /// Its name in the state directory.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Identity => "identity",
        }
    }

    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Configuration => b"weftconf",
            Self::Identity => b"weftsvid",
        }
    }

    const fn protection(self, keyed: bool) -> Protection {
        match (keyed, self) {
            (false, _) => Protection::Checksum,
            (true, Self::Configuration) => Protection::Code,
            (true, Self::Identity) => Protection::Sealed,
        }
    }
}

/// The bytes of a file. Only a sealed one may be shown to anybody.
///
/// # Errors
/// When the body is beyond 4 GiB or the cipher fails.
pub fn seal(kind: Kind, saved: SystemTime, body: &[u8], key: Option<&StateKey>) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let millis = saved.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let length = u32::try_from(body.len()).map_err(|_| Refused::Content("it would be longer than 4 GiB".into()))?;
    // Made once in its full size: a buffer that grows leaves copies of the key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(HEADER + body.len() + NONCE_LEN + SUM));
    bytes.extend_from_slice(kind.magic());
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    let protection = kind.protection(key.is_some());
    bytes.extend_from_slice(&[protection as u8, 0]);
    bytes.extend_from_slice(&u64::try_from(millis).unwrap_or(u64::MAX).to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(body);
    match (protection, key) {
        (Protection::Code, Some(key)) => {
            let code = hmac::sign(&key.mac, &bytes);
            bytes.extend_from_slice(code.as_ref());
        }
        (Protection::Sealed, Some(key)) => {
            let (header, body) = bytes.split_at_mut(HEADER);
            let sealed = key.seal.seal_in_place_separate_tag(Aad::from(&*header), body);
            let (nonce, tag) = sealed.map_err(|_| Refused::Tampered("AES-256-GCM failed"))?;
            bytes.extend_from_slice(tag.as_ref());
            bytes.extend_from_slice(nonce.as_ref());
        }
        _ => {
            let sum = digest::digest(&digest::SHA256, &bytes);
            bytes.extend_from_slice(sum.as_ref());
        }
    }
    Ok(bytes)
}

/// Checks a file in whole before anything of its body is looked at.
///
/// # Errors
/// What is wrong with it.
pub fn open(kind: Kind, mut bytes: Zeroizing<Vec<u8>>, key: Option<&StateKey>) -> Result<Opened, Refused> {
    let header: [u8; HEADER] = *bytes.first_chunk::<HEADER>().ok_or_else(|| Refused::Truncated(bytes.len()))?;
    if !header.starts_with(kind.magic()) {
        return Err(Refused::Tampered("it does not begin as such a file does"));
    }
    let version = u16::from_be_bytes([header[8], header[9]]);
    if version != VERSION {
        return Err(Refused::Version(version, VERSION));
    }
    let wanted = kind.protection(key.is_some());
    if header[11] != 0 {
        return Err(Refused::Tampered("a byte that must be 0 is not"));
    }
    if header[10] != wanted as u8 {
        let keyed = kind.protection(true) as u8;
        return Err(match (header[10], key) {
            (0, Some(_)) => Refused::Unkeyed,
            (byte, None) if byte == keyed => Refused::KeyMissing,
            _ => Refused::Tampered("its protection is of an unknown kind"),
        });
    }
    let [.., l0, l1, l2, l3] = header;
    let body = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).map_err(|_| Refused::Truncated(bytes.len()))?;
    let trailer = if wanted == Protection::Sealed { NONCE_LEN + TAG } else { SUM };
    let expected = HEADER.saturating_add(body).saturating_add(trailer);
    if bytes.len() < expected {
        return Err(Refused::Truncated(bytes.len()));
    }
    if bytes.len() > expected {
        return Err(Refused::Tampered("it is longer than it says"));
    }
    match (wanted, key) {
        (Protection::Sealed, Some(key)) => unseal(key, &header, &mut bytes)?,
        (Protection::Code, Some(key)) => {
            let (content, code) = bytes.split_at(HEADER + body);
            hmac::verify(&key.mac, content, code)
                .map_err(|_| Refused::Tampered("it was changed, or written with another key"))?;
        }
        _ => {
            let (content, sum) = bytes.split_at(HEADER + body);
            constant_time::verify_slices_are_equal(digest::digest(&digest::SHA256, content).as_ref(), sum)
                .map_err(|_| Refused::Tampered("its checksum is wrong: it was changed or damaged"))?;
        }
    }
    let millis: [u8; 8] =
        [header[12], header[13], header[14], header[15], header[16], header[17], header[18], header[19]];
    let saved = UNIX_EPOCH.checked_add(Duration::from_millis(u64::from_be_bytes(millis)));
    let saved = saved.ok_or(Refused::Tampered("its time is none"))?;
    // In place, so that no second copy of a key is made.
    bytes.truncate(HEADER + body);
    bytes.drain(..HEADER);
    Ok(Opened { saved, body: bytes })
}

fn unseal(key: &StateKey, header: &[u8], bytes: &mut [u8]) -> Result<(), Refused> {
    const WRONG: Refused = Refused::Tampered("it was changed, or sealed with another key");
    let (sealed, nonce) = bytes.split_at_mut(bytes.len() - NONCE_LEN);
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| WRONG)?;
    key.seal.open_in_place(nonce, Aad::from(header), &mut sealed[HEADER..]).map(|_| ()).map_err(|_| WRONG)
}
