//! `--state-key`: 32 bytes, from which one key seals the certificate's file and another one authenticates the
//! configuration.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::{
    aead::{AES_256_GCM, RandomizedNonceKey},
    hkdf, hmac,
};
use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use zeroize::Zeroizing;

/// Bytes of the secret.
const LENGTH: usize = 32;
/// The longest form of it, with some white space.
const MAX_FILE: u64 = 256;

/// What is derived from the secret; the secret itself is gone.
pub struct StateKey {
    pub(super) seal: RandomizedNonceKey,
    pub(super) mac: hmac::Key,
}

impl std::fmt::Debug for StateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StateKey")
    }
}

impl StateKey {
    /// Reads a key file: 32 bytes as they are, in hexadecimal or in base64.
    ///
    /// # Errors
    /// When it cannot be read, is open to others, or holds no such key.
    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("--state-key {shown}"))?;
        // A link is followed (secrets are often mounted so); what counts is the file behind it.
        let stat = rustix::fs::fstat(&file).with_context(|| format!("--state-key {shown}"))?;
        let (own, mode) = (rustix::process::geteuid().as_raw(), stat.st_mode & 0o777);
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            bail!("--state-key {shown}: it is not a file");
        }
        if stat.st_uid != own && stat.st_uid != 0 {
            bail!("--state-key {shown}: it belongs to user {} and not to this user ({own}) or root", stat.st_uid);
        }
        if mode & 0o077 != 0 {
            bail!("--state-key {shown}: it is open to others (mode {mode:04o}); chmod go= it, and make another key");
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(512));
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).with_context(|| format!("--state-key {shown}"))?;
        let secret = parse(&bytes).with_context(|| {
            format!(
                "--state-key {shown}: expected 32 bytes, raw, in hexadecimal or in base64 (make one with `openssl rand \
                 -hex 32`)"
            )
        })?;
        Self::new(&secret)
    }

    /// Derives both keys (HKDF, RFC 5869).
    ///
    /// # Errors
    /// Only when the library fails.
    pub fn new(secret: &[u8; LENGTH]) -> Result<Self> {
        let derive = |purpose: &[u8]| -> Result<Zeroizing<[u8; LENGTH]>, aws_lc_rs::error::Unspecified> {
            let mut key = Zeroizing::new([0; LENGTH]);
            let random = hkdf::Salt::new(hkdf::HKDF_SHA256, b"weft sidecar state 1").extract(secret);
            random.expand(&[purpose], hkdf::HKDF_SHA256)?.fill(key.as_mut())?;
            Ok(key)
        };
        let seal = RandomizedNonceKey::new(&AES_256_GCM, &derive(b"seal identity")?[..])?;
        let mac = hmac::Key::new(hmac::HMAC_SHA256, &derive(b"authenticate configuration")?[..]);
        Ok(Self { seal, mac })
    }
}

/// The secret in any of its three forms.
fn parse(bytes: &[u8]) -> Option<Zeroizing<[u8; LENGTH]>> {
    let mut secret = Zeroizing::new([0; LENGTH]);
    if bytes.len() == LENGTH {
        secret.copy_from_slice(bytes);
        return Some(secret);
    }
    let text = bytes.trim_ascii();
    if text.len() == 2 * LENGTH {
        for (byte, pair) in secret.iter_mut().zip(text.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        // `from_str_radix` takes a sign.
        return text.iter().all(u8::is_ascii_hexdigit).then_some(secret);
    }
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = |alphabet| GeneralPurpose::new(alphabet, config);
    // The estimate of a decoder is a multiple of 3.
    let mut decoded = Zeroizing::new([0; LENGTH + 4]);
    [base64::alphabet::STANDARD, base64::alphabet::URL_SAFE]
        .iter()
        .find(|alphabet| engine(alphabet).decode_slice(text, decoded.as_mut()) == Ok(LENGTH))?;
    secret.copy_from_slice(&decoded[..LENGTH]);
    Some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_bytes_raw_in_hexadecimal_or_in_base64() {
        let secret: [u8; LENGTH] = std::array::from_fn(|index| u8::try_from(200 + index).expect("small"));
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let padded = base64::engine::general_purpose::STANDARD.encode(secret);
        let url = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret);
        assert_ne!(padded, url);
        for text in [secret.to_vec(), hex.clone().into(), format!("{hex}\n").into(), padded.into(), url.into()] {
            assert_eq!(parse(&text).as_deref(), Some(&secret), "{text:?}");
        }
        let plus = format!("+{}", &hex[1..]);
        for text in ["", "short", &hex[1..], &plus, &"x".repeat(64), &"-".repeat(44)] {
            assert!(parse(text.as_bytes()).is_none(), "{text:?}");
        }
    }
}
