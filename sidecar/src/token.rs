//! What a sidecar enrols with: the token in its file, the roots by which it knows the control plane, and the key that a
//! token is used for. How and when it enrols is `identity`'s; whom the development token is believed of is `trusted`'s.

mod trusted;

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use zeroize::{Zeroize as _, Zeroizing};

/// The secret, and the roots that the control plane must prove.
pub struct Token {
    /// As the control plane wants it.
    pub secret: Zeroizing<String>,
    /// In DER, at least one.
    pub roots: Vec<Vec<u8>>,
}

/// The key of an enrolment, kept until its certificate is there: a join token is used up for one key, and when the answer
/// gets lost the same key gets the same certificate.
#[derive(Default)]
pub struct PendingKey(Mutex<Option<Zeroizing<Vec<u8>>>>);

/// Reads a token file: a join token or the development token, or a JWT as Kubernetes projects it, which it rotates, so the
/// file is read at each enrolment. The roots are those in `roots`, else those behind the token.
///
/// # Errors
/// What is wrong with the files.
pub fn load_token(path: &Path, roots: Option<&Path>) -> Result<Token> {
    parse(&Zeroizing::new(text(path).context("token")?), path, roots)
}

/// Reads the development token, which the control plane leaves where others could have left one.
///
/// # Errors
/// As [`load_token`], and when somebody else could have written it.
pub fn load_dev_token(path: &Path, roots: Option<&Path>) -> Result<Token> {
    parse(&trusted::read(path).context("development token")?, path, roots)
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn parse(text: &str, path: &Path, roots: Option<&Path>) -> Result<Token> {
    let secret =
        text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or_default();
    if secret.starts_with("weft1a.") {
        bail!(
            "token {}: this is an operator's token, which gets no certificate: make one with \
             weft token create --service-account",
            path.display()
        );
    }
    if !(secret.starts_with("weft1.") || secret.starts_with("weft1j.") || is_jwt(secret)) {
        bail!("token {}: the first line must be a token (weft1j...., or a JWT of Kubernetes)", path.display());
    }
    let found = match roots {
        Some(file) => {
            certificates(&self::text(file).context("roots")?).with_context(|| format!("roots {}", file.display()))?
        }
        None => certificates(text).with_context(|| format!("token {}", path.display()))?,
    };
    if found.is_empty() {
        let file = roots.unwrap_or(path).display();
        bail!("{file}: no root certificate in PEM, by which to know the control plane: give --roots FILE");
    }
    Ok(Token { secret: Zeroizing::new(secret.to_owned()), roots: found })
}

fn certificates(pem: &str) -> Result<Vec<Vec<u8>>> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes());
    all.map(|der| Ok(der.map_err(|error| anyhow::anyhow!("PEM: {error}"))?.to_vec())).collect()
}

/// Three parts in base64url.
fn is_jwt(token: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    token.split('.').count() == 3 && token.split('.').all(part)
}

impl PendingKey {
    /// The key that has no certificate yet, PKCS #8, and a signing request for it.
    ///
    /// # Errors
    /// When none can be made.
    pub fn request(&self) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>)> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = match pending.as_ref() {
            Some(der) => rcgen::KeyPair::try_from(der.as_slice())?,
            None => rcgen::KeyPair::generate()?,
        };
        let private = pending.get_or_insert_with(|| Zeroizing::new(key.serialize_der())).clone();
        let csr = rcgen::CertificateParams::default().serialize_request(&key);
        key.zeroize();
        Ok((private, csr?.der().to_vec()))
    }

    /// It has one: the next request is for a new key.
    pub fn certified(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a directory"))
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        }
    }

    fn root() -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        rcgen::CertificateParams::default().self_signed(&key).expect("signed").pem()
    }

    #[test]
    fn a_token_file_has_a_token_and_roots_or_the_roots_have_a_file_of_their_own() {
        let (files, own, other) = (Files::new(), root(), root());
        let token = files.write("token", &format!("# made today\n\nweft1j.0123.abc \n{own}"));
        let roots = files.write("roots", &format!("{other}{own}"));
        let read = load_token(&token, None).expect("valid");
        assert_eq!((read.secret.as_str(), read.roots.len()), ("weft1j.0123.abc", 1));
        assert_eq!(load_token(&token, Some(&roots)).expect("valid").roots.len(), 2, "the file wins");
        let jwt = files.write("jwt", "eyJ.eyJ-_.c2ln");
        assert_eq!(load_token(&jwt, Some(&roots)).expect("valid").secret.as_str(), "eyJ.eyJ-_.c2ln");
        files.write("jwt", "eyK.eyJ.c2ln\n");
        assert_eq!(load_token(&jwt, Some(&roots)).expect("rotated").secret.as_str(), "eyK.eyJ.c2ln");
    }

    #[test]
    fn what_is_wrong_with_a_token_file_is_told_and_no_secret() {
        let (files, own) = (Files::new(), root());
        let roots = files.write("roots", &own);
        let cut = &own[..own.len() / 2];
        for (text, roots, part) in [
            ("", Some(&roots), "the first line must be a token"),
            ("secret\n", Some(&roots), "the first line must be a token"),
            ("a.b\n", Some(&roots), "the first line must be a token"),
            ("a.b.c.secret\n", Some(&roots), "the first line must be a token"),
            ("weft1a.0123.secret", Some(&roots), "weft token create --service-account"),
            ("weft1j.0123.secret\n", None, "give --roots FILE"),
            ("a.secret.c\n", None, "give --roots FILE"),
            (&format!("weft1j.0123.secret\n{cut}"), None, "PEM"),
            ("weft1j.0123.secret\n", Some(&files.write("cut", cut)), "PEM"),
            ("weft1j.0123.secret\n", Some(&files.write("none", "x")), "give --roots FILE"),
            ("weft1j.0123.secret\n", Some(&files.0.path().join("missing")), "roots: read"),
        ] {
            let token = files.write("token", text);
            let error = load_token(&token, roots.map(PathBuf::as_path)).err().unwrap_or_else(|| panic!("{text}"));
            let error = format!("{error:#}");
            assert!(error.contains(part) && !error.contains("secret"), "{text}: {error}");
        }
        assert!(load_token(&files.0.path().join("missing"), None).is_err());
    }

    #[test]
    fn a_key_is_kept_until_it_has_a_certificate() {
        let pending = PendingKey::default();
        let (first, csr) = pending.request().expect("made");
        let (again, other) = pending.request().expect("made");
        let key = |csr: &Vec<u8>| {
            let der = rustls::pki_types::CertificateSigningRequestDer::from(csr.as_slice());
            rcgen::CertificateSigningRequestParams::from_der(&der).expect("a request").public_key
        };
        assert!(first == again && key(&csr) == key(&other));
        pending.certified();
        let (next, csr) = pending.request().expect("made");
        assert!(next != first && key(&csr) != key(&other));
    }
}
