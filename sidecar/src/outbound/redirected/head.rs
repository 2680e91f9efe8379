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
