//! Apps inside the test: small servers that do exactly what a test says.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::mpsc,
};

use crate::net::free;

/// An app that answers each connection with `answer` and closes it; what it was sent goes to the receiver. An empty
/// answer: the connection is closed at once. Lives as long as the test.
pub fn recorder(answer: &'static [u8]) -> (SocketAddr, mpsc::Receiver<String>) {
    let (sender, heads) = mpsc::channel();
    let listener = TcpListener::bind(free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut bytes = [0; 4096];
            // A probe connects and says nothing.
            let length = if answer.is_empty() { 0 } else { stream.read(&mut bytes).unwrap_or(0) };
            if length > 0 {
                let _ = sender.send(String::from_utf8_lossy(&bytes[..length]).to_lowercase());
                let _ = stream.write_all(answer);
            }
        }
    });
    (address, heads)
}
