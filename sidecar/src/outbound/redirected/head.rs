//! The name that the first bytes of a connection give for where it goes: the Host of a request, the SNI of a TLS
//! handshake. More is read until it is there, up to a bound.

use std::io;

use bytes::BytesMut;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use weft_policy::canonical::Authority;

/// Bytes that are looked at: a request head may be so long, a ClientHello is shorter.
const BYTES: usize = 64 * 1024;
/// Fields of a request head.
const FIELDS: usize = 128;

/// The host of an HTTP/1.1 request, lower-case and without a port.
pub async fn host(io: &mut (impl AsyncRead + Unpin), prefix: &mut BytesMut) -> Option<String> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut head = httparse::Request::new(&mut fields);
        match head.parse(prefix) {
            Ok(httparse::Status::Complete(_)) => {
                let mut hosts = head.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
                return Authority::parse(hosts.next()?.value).ok().map(|authority| authority.host.to_string());
            }
            Ok(httparse::Status::Partial) if prefix.len() < BYTES => {}
            Ok(httparse::Status::Partial) | Err(_) => return None,
        }
        if io.read_buf(prefix).await.ok()? == 0 {
            return None;
        }
    }
}

/// The name that a TLS client asks for, lower-case.
pub async fn sni(io: &mut (impl AsyncRead + Unpin), prefix: &mut BytesMut) -> Option<String> {
    let (mut acceptor, mut seen) = (Acceptor::default(), 0);
    loop {
        while seen < prefix.len() {
            let read = acceptor.read_tls(&mut io::Cursor::new(&prefix[seen..])).ok()?;
            seen += read;
            if let Some(accepted) = acceptor.accept().ok()? {
                return accepted.client_hello().server_name().map(str::to_ascii_lowercase);
            }
            if read == 0 {
                return None;
            }
        }
        if prefix.len() >= BYTES || io.read_buf(prefix).await.ok()? == 0 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Looks at bytes that come in pieces of this length, after a first one.
    async fn looked_at<F>(bytes: &[u8], piece: usize, look: F) -> (Option<String>, BytesMut)
    where
        F: AsyncFnOnce(&mut tokio::io::DuplexStream, &mut BytesMut) -> Option<String>,
    {
        let (mut near, mut far) = tokio::io::duplex(BYTES * 2);
        let mut prefix = BytesMut::from(&bytes[..1]);
        let write = async {
            for part in bytes[1..].chunks(piece) {
                far.write_all(part).await.expect("open");
                tokio::task::yield_now().await;
            }
            drop(far);
        };
        let (found, ()) = tokio::join!(look(&mut near, &mut prefix), write);
        (found, prefix)
    }

    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("known");
        let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = name.to_owned().try_into().expect("a name");
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).expect("made").write_tls(&mut bytes).expect("written");
        bytes
    }

    #[tokio::test]
    async fn a_host_is_found_in_however_many_pieces_it_comes() {
        let head = b"GET / HTTP/1.1\r\nAccept: */*\r\nHOST: Web.Shop:8080\r\n\r\nrest";
        for piece in [1, 7, 100] {
            let (found, prefix) = looked_at(head, piece, host).await;
            assert_eq!(found.as_deref(), Some("web.shop"), "{piece}");
            assert!(head.starts_with(&prefix), "nothing is lost");
        }
        for none in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", b"GET / HTTP/1.1\r\nHo", b"G\0"]
        {
            assert_eq!(looked_at(none, 100, host).await.0, None, "{:?}", String::from_utf8_lossy(none));
        }
        let endless = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'a'; BYTES]].concat();
        assert_eq!(looked_at(&endless, 4096, host).await.0, None);
    }

    #[tokio::test]
    async fn the_name_of_a_handshake_is_found_in_however_many_pieces_it_comes() {
        let bytes = hello("web.shop.mesh");
        for piece in [1, 100, 10_000] {
            let (found, prefix) = looked_at(&bytes, piece, sni).await;
            assert_eq!(found.as_deref(), Some("web.shop.mesh"), "{piece}");
            assert!(bytes.starts_with(&prefix), "nothing is lost");
        }
        assert_eq!(looked_at(&hello("10.0.0.1"), 100, sni).await.0, None, "an address is no name");
        assert_eq!(looked_at(&bytes[..bytes.len() - 1], 100, sni).await.0, None, "cut");
        assert_eq!(looked_at(&[0x16, 3, 1, 0, 2, 9, 9], 100, sni).await.0, None, "no handshake");
    }
}
