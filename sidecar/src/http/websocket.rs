//! The opening handshake of WebSocket where the two legs speak different versions of HTTP: HTTP/1.1 has a key and an
//! accept value (RFC 6455 section 4), extended CONNECT has neither (RFC 8441 section 5).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, header};
use sha1::{Digest as _, Sha1};

/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// An HTTP/1.1 server needs a key; a caller in HTTP/2 has sent none.
pub fn ensure_key(headers: &mut HeaderMap) {
    if headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        return;
    }
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    if let Ok(key) = HeaderValue::from_str(&key) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
}

/// An HTTP/1.1 caller checks the accept value; a server in HTTP/2 has sent none.
pub fn ensure_accept(headers: &mut HeaderMap, key: &HeaderValue) {
    if headers.contains_key(header::SEC_WEBSOCKET_ACCEPT) {
        return;
    }
    let accept = STANDARD.encode(Sha1::new().chain_update(key.as_bytes()).chain_update(GUID).finalize());
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        let mut headers = HeaderMap::new();
        ensure_accept(&mut headers, &HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(headers[header::SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn what_the_peers_have_said_stays() {
        let mut headers = HeaderMap::new();
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("k"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("a"));
        ensure_key(&mut headers);
        ensure_accept(&mut headers, &HeaderValue::from_static("k"));
        assert_eq!((headers[header::SEC_WEBSOCKET_KEY].as_bytes(), headers.len()), (&b"k"[..], 2));
        assert_eq!(headers[header::SEC_WEBSOCKET_ACCEPT], "a");
    }

    #[test]
    fn a_made_key_is_sixteen_random_bytes() {
        let (mut one, mut two) = (HeaderMap::new(), HeaderMap::new());
        ensure_key(&mut one);
        ensure_key(&mut two);
        let key = one[header::SEC_WEBSOCKET_KEY].as_bytes();
        assert_eq!(STANDARD.decode(key).map(|bytes| bytes.len()), Ok(16));
        assert_ne!(key, two[header::SEC_WEBSOCKET_KEY].as_bytes());
    }
}
