//! The secret behind session persistence: one file of the data directory, from which each rule has its own key for the
//! tokens of its sessions. Sidecars get the keys of the rules that they follow, so that each reads what another made.

use std::{
    io::{ErrorKind, Read as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::{
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};

use crate::ca::{open_private, write_private};

/// Name of the file.
const NAME: &str = "sessions.key";
/// Bytes of it that are read: more than it has.
const MAX: u64 = 1024;
/// What is derived, so that the secret may serve another purpose some day.
const PURPOSE: &[u8] = b"weft session persistence 1\0";

/// What the keys of rules are made from. The default makes none: each sidecar then has its own.
#[derive(Clone, Default)]
pub struct Secret(Option<hmac::Key>);

impl Secret {
    /// The secret in `data_dir`, which is made when there is none.
    ///
    /// # Errors
    /// When it cannot be read or written, or is not what was written.
    pub fn open(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join(NAME);
        let bytes = match path.symlink_metadata() {
            Ok(_) => {
                let mut bytes = Vec::new();
                let file = open_private(&path, false)?;
                file.take(MAX).read_to_end(&mut bytes).with_context(|| format!("read {}", path.display()))?;
                bytes
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mut bytes = vec![0; 32];
                SystemRandom::new().fill(&mut bytes).ok().context("no random bytes from the system")?;
                write_private(&path, &bytes)?;
                bytes
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        if bytes.len() != 32 {
            let length = bytes.len();
            bail!("{} has {length} bytes and not 32: remove it, and sessions begin anew", path.display());
        }
        Ok(Self::of(&bytes))
    }

    fn of(bytes: &[u8]) -> Self {
        Self(Some(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// The key of a rule, `namespace/route#rule` of this kind of route; empty when there is no secret.
    #[must_use]
    pub fn key(&self, kind: &str, rule: &str) -> Vec<u8> {
        let Some(key) = &self.0 else { return Vec::new() };
        let mut context = hmac::Context::with_key(key);
        context.update(PURPOSE);
        context.update(kind.as_bytes());
        context.update(b"\0");
        context.update(rule.as_bytes());
        context.sign().as_ref().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn the_secret_is_made_once_in_a_private_file_and_keeps_its_keys() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Secret::open(dir.path()).expect("made").key("HTTPRoute", "shop/r#a");
        assert_eq!(Secret::open(dir.path()).expect("read").key("HTTPRoute", "shop/r#a"), first);
        let metadata = fs::metadata(dir.path().join(NAME)).expect("there");
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.len()), (0o600, 32));
        fs::write(dir.path().join(NAME), b"short").expect("written");
        let refused = Secret::open(dir.path()).err().expect("refused").to_string();
        assert!(refused.ends_with("has 5 bytes and not 32: remove it, and sessions begin anew"), "{refused}");
        fs::set_permissions(dir.path().join(NAME), fs::Permissions::from_mode(0o644)).expect("set");
        let refused = format!("{:#}", Secret::open(dir.path()).err().expect("refused"));
        assert!(refused.contains("chmod 600"), "{refused}");
    }

    #[test]
    fn each_rule_of_each_kind_has_its_own_key() {
        let secret = Secret::of(&[7; 32]);
        let keys = [("HTTPRoute", "a/r#0"), ("HTTPRoute", "a/r#1"), ("GRPCRoute", "a/r#0")];
        let keys = keys.map(|(kind, rule)| secret.key(kind, rule));
        assert!(keys.iter().all(|key| key.len() == 32));
        assert!(keys[0] != keys[1] && keys[0] != keys[2]);
        assert_ne!(Secret::of(&[8; 32]).key("HTTPRoute", "a/r#0"), keys[0]);
        assert!(Secret::default().key("HTTPRoute", "a/r#0").is_empty());
    }
}
