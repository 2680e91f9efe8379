//! Fields that say who calls: only the mesh's own may reach an app, so those of a caller are removed, however they are
//! written. An app behind CGI, WSGI or PHP sees `x_forwarded_client_cert` as it sees `X-Forwarded-Client-Cert`.

use http::{HeaderMap, HeaderName};

use crate::deadline::TIMEOUT_MS;

/// Names that claim an identity: Envoy's and ours, and Linkerd's.
const NAMES: [&[u8]; 2] = [b"x-forwarded-client-cert", b"l5d-client-id"];
/// What begins so is the mesh's own; the deadline is for the app too.
const OWN: &[u8] = b"x-weft-";

/// Whether a field, or one that some server takes for the same, claims an identity or is the mesh's own.
#[must_use]
pub fn is_identity(name: &HeaderName) -> bool {
    if *name == TIMEOUT_MS {
        return false;
    }
    let name = name.as_str().as_bytes();
    // Field names are lower-case here. Servers that make variables of them keep letters and digits only.
    let same = |a: &u8, b: &u8| a == b || *b == b'-' && !a.is_ascii_alphanumeric();
    let begins = |with: &[u8]| name.len() >= with.len() && name.iter().zip(with).all(|(a, b)| same(a, b));
    begins(OWN) || NAMES.iter().any(|known| known.len() == name.len() && begins(known))
}

/// Removes the fields that [`is_identity`] finds.
pub fn strip_identity(headers: &mut HeaderMap) {
    // In most requests there is none.
    while let Some(name) = headers.keys().find(|name| is_identity(name)).cloned() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Every way to write `name` with another of these in place of each hyphen, in lower and upper case.
    fn spellings(name: &str) -> Vec<String> {
        let mut all = vec![String::new()];
        for character in name.chars() {
            let ways: &[char] = if character == '-' { &['-', '_', '.', '~'] } else { &[character] };
            all = all.iter().flat_map(|begun| ways.iter().map(move |way| format!("{begun}{way}"))).collect();
        }
        let upper: Vec<_> = all.iter().map(|name| name.to_ascii_uppercase()).collect();
        all.into_iter().chain(upper).collect()
    }

    #[test]
    fn every_spelling_of_an_identity_field_is_removed_with_all_its_values() {
        let mut count = 0;
        for name in ["x-forwarded-client-cert", "l5d-client-id", "x-weft-caller-version", "x-weft-peer"] {
            for spelling in spellings(name) {
                let mut headers = HeaderMap::new();
                let name = HeaderName::try_from(&spelling).expect("a name");
                headers.append(&name, HeaderValue::from_static("By=admin"));
                headers.append(&name, HeaderValue::from_static("By=root"));
                headers.insert("x-forwarded-for", HeaderValue::from_static("10.0.0.1"));
                strip_identity(&mut headers);
                assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-forwarded-for"], "{spelling}");
                count += 1;
            }
        }
        assert!(count > 300, "{count} spellings");
    }

    #[test]
    fn what_only_looks_alike_stays() {
        let names = [
            "x-forwarded-client-certs",
            "x-forwarded-client",
            "xx-weft-a",
            "x-wefty",
            "client-id",
            "x-weft",
            "x-weft-timeout-ms",
        ];
        for name in names {
            assert!(!is_identity(&HeaderName::try_from(name).expect("a name")), "{name}");
        }
    }
}
