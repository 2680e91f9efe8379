//! Requests as bytes: HTTP/1.1 and HTTP/2 frames without a library that would set them right.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::bypass::corpus::Mutant;

/// How long a server may think about a request that has no end.
const PATIENCE: Duration = Duration::from_secs(20);

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Everything that comes back for these bytes on a connection of its own.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(address);
    let mut answer = Vec::new();
    // A server may close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => return answer,
            Ok(length) => answer.extend(&part[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("no end of the answer to {}", String::from_utf8_lossy(bytes))
            }
            Err(_) => return answer,
        }
    }
}

/// A request of HTTP/1.1.
pub fn http1(mutant: &Mutant) -> Vec<u8> {
    let mut bytes = [&mutant.method, b" ".as_slice(), &mutant.target, b" HTTP/1.1\r\nHost: ", &mutant.host].concat();
    for (name, value) in &mutant.fields {
        bytes.extend([b"\r\n", name.as_slice(), b": ", value].concat());
    }
    bytes.extend(b"\r\nConnection: close\r\n\r\n");
    bytes
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// RFC 7541 section 6.2.2: a field that is in no table, without Huffman's code.
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let text = |bytes: &[u8]| {
        let length = bytes.len();
        let mut coded = match u8::try_from(length) {
            Ok(short @ ..127) => vec![short],
            _ => vec![
                127,
                u8::try_from((length - 127) & 0x7f).expect("7 bits") | 0x80,
                u8::try_from((length - 127) >> 7).expect("short"),
            ],
        };
        coded.extend(bytes);
        coded
    };
    [vec![0], text(name), text(value)].concat()
}

/// One request of HTTP/2 on a connection of its own, with trailers if there are any: all frames of the answer.
pub fn http2(address: SocketAddr, mutant: &Mutant, trailers: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut head = [
        literal(b":method", &mutant.method),
        literal(b":scheme", b"http"),
        literal(b":authority", &mutant.host),
        literal(b":path", &mutant.target),
    ]
    .concat();
    head.extend(mutant.fields.iter().flat_map(|(name, value)| literal(&name.to_ascii_lowercase(), value)));
    let mut bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    if trailers.is_empty() {
        bytes.extend(frame(1, 5, 1, &head));
    } else {
        bytes.extend(frame(1, 4, 1, &head));
        bytes.extend(frame(0, 0, 1, b"body"));
        let fields: Vec<u8> = trailers.iter().flat_map(|(name, value)| literal(name, value)).collect();
        bytes.extend(frame(1, 5, 1, &fields));
    }
    let mut stream = connect(address);
    let mut answer = Vec::new();
    if stream.write_all(&bytes).is_err() {
        return answer;
    }
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            return answer;
        }
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        if stream.read_exact(&mut payload).is_err() {
            return answer;
        }
        answer.extend(&payload);
        let (kind, flags, ours) = (head[3], head[4], head[8] == 1);
        // GOAWAY, RST_STREAM, or the end of the stream.
        if kind == 7 || ours && (kind == 3 || kind <= 1 && flags & 1 != 0) {
            return answer;
        }
    }
}
