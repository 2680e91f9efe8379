//! A WebSocket through the chain: each app opens one to the next and passes on what comes, the last one gives it back.
//! Nobody here looks at frames, and neither does the mesh.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use super::chain::{Field, field};
use crate::net::connect;

/// Whether a request asks for a WebSocket.
pub fn asks(fields: &[Field]) -> bool {
    field(fields, "upgrade") == Some("websocket")
}

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Opens one: the connection after the handshake, or the status that came instead.
pub fn open(address: SocketAddr, host: &str, target: &str, fields: &[Field]) -> Result<TcpStream, u16> {
    let mut stream = connect(address).expect("a connection");
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    );
    stream.write_all(head.as_bytes()).expect("open");
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while !answer.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).expect("an answer"), 1, "{}", String::from_utf8_lossy(&answer));
        answer.extend(byte);
    }
    let text = String::from_utf8_lossy(&answer);
    match text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status") {
        101 => Ok(stream),
        status => Err(status),
    }
}

/// Sends this and reads as much, then ends the session and waits for the other side's end.
pub fn talk(mut stream: TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("open");
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).expect("an echo");
    assert_eq!(back, bytes);
    stream.shutdown(Shutdown::Write).expect("open");
    assert_eq!(stream.read(&mut [0; 16]).expect("an end"), 0);
}

/// The last app: switches, and gives back what comes.
pub fn echo(mut stream: TcpStream) {
    if stream.write_all(SWITCH.as_bytes()).is_ok() {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            if stream.write_all(&bytes[..length]).is_err() {
                return;
            }
        }
    }
}

/// An app in between: opens one to the next app, switches, and copies both ways.
pub fn pass(mut stream: TcpStream, address: SocketAddr, service: &str, target: &str, fields: &[Field]) {
    let next = match open(address, service, target, fields) {
        Ok(next) => next,
        Err(status) => {
            let _ = write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return;
        }
    };
    if stream.write_all(SWITCH.as_bytes()).is_err() {
        return;
    }
    let (Ok(near), Ok(far)) = (stream.try_clone(), next.try_clone()) else { return };
    let back = std::thread::spawn(move || copy(far, near));
    copy(stream, next);
    let _ = back.join();
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
