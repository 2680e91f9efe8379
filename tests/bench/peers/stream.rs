//! Many small gRPC messages in both directions of long streams: an echo server and its client.
//!
//! Usage: `stream serve HOST:PORT`, which ends when it is killed, and `stream call HOST:PORT CONNECTIONS SECONDS`, which prints
//! one line of JSON. HTTP/2 by hand (RFC 9113) with the standard library alone, a thread for each connection, no HPACK
//! table: header blocks are constants, and those of the other end are not looked into. Each message is a DATA frame of its
//! own; a client has one stream and at most [`AHEAD`] messages that have not come back.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// gRPC's prefix (not compressed, length) and 50 bytes.
const MESSAGE: &[u8] = b"\0\0\0\0\x32xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
/// Messages of a client that are on their way.
const AHEAD: usize = 32;
/// The window that each end gives to a stream, and more of it to the connection.
const WINDOW: u32 = 1 << 20;
/// `:status: 200`, `content-type: application/grpc`.
const ANSWER: &[u8] = b"\x88\x0f\x10\x10application/grpc";
/// `grpc-status: 0`.
const TRAILERS: &[u8] = b"\x00\x0bgrpc-status\x010";
/// `:method: POST`, `:scheme: http`, `:path`, `:authority`, `content-type`, `te`.
const CALL: &[u8] = b"\x83\x86\x04\x10/weft.Bench/Echo\x01\x03app\x0f\x10\x10application/grpc\x00\x02te\x08trailers";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
const PADDED: u8 = 8;

/// What the other end said on a stream.
enum Event {
    Headers { stream: u32, end: bool },
    Data { stream: u32, bytes: Vec<u8>, end: bool },
    Reset { stream: u32 },
}

/// One end of a connection: what came in parts, and what waits for a window.
struct Wire {
    socket: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// What may still be sent, by stream; that of the connection is number 0.
    windows: BTreeMap<u32, i64>,
    first_window: i64,
    waiting: BTreeMap<u32, VecDeque<Vec<u8>>>,
    /// What was read and not yet given back as a window.
    taken: BTreeMap<u32, u32>,
}

impl Wire {
    fn new(socket: TcpStream) -> std::io::Result<Self> {
        socket.set_nodelay(true)?;
        let mut wire = Self {
            socket,
            input: Vec::new(),
            output: Vec::new(),
            windows: BTreeMap::from([(0, 65_535)]),
            first_window: 65_535,
            waiting: BTreeMap::new(),
            taken: BTreeMap::new(),
        };
        // SETTINGS_INITIAL_WINDOW_SIZE.
        let settings = [&[0, 4], WINDOW.to_be_bytes().as_slice()].concat();
        wire.frame(SETTINGS, 0, 0, &settings);
        wire.frame(WINDOW_UPDATE, 0, 0, &(8 * WINDOW).to_be_bytes());
        Ok(wire)
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
        self.output.extend_from_slice(&length[1..]);
        self.output.extend_from_slice(&[kind, flags]);
        self.output.extend_from_slice(&stream.to_be_bytes());
        self.output.extend_from_slice(payload);
    }

    fn data(&mut self, stream: u32, bytes: Vec<u8>) {
        self.waiting.entry(stream).or_default().push_back(bytes);
    }

    /// Whether nothing of a stream waits for a window.
    fn sent(&self, stream: u32) -> bool {
        self.waiting.get(&stream).is_none_or(VecDeque::is_empty)
    }

    /// Writes what the windows allow; a frame goes whole or not yet.
    fn flush(&mut self) -> std::io::Result<()> {
        for (stream, mut queue) in std::mem::take(&mut self.waiting) {
            while let Some(next) = queue.front() {
                let size = i64::try_from(next.len()).unwrap_or(i64::MAX);
                let own = self.windows.get(&stream).copied().unwrap_or(self.first_window);
                let all = self.windows.get(&0).copied().unwrap_or_default();
                if size > own || size > all {
                    break;
                }
                self.windows.insert(stream, own - size);
                self.windows.insert(0, all - size);
                let bytes = queue.pop_front().unwrap_or_default();
                self.frame(DATA, 0, stream, &bytes);
            }
            if !queue.is_empty() {
                self.waiting.insert(stream, queue);
            }
        }
        self.socket.write_all(&self.output)?;
        self.output.clear();
        Ok(())
    }

    /// Reads once, and gives what has come whole.
    fn events(&mut self) -> std::io::Result<Vec<Event>> {
        let mut buffer = [0; 65_536];
        let read = self.socket.read(&mut buffer)?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.input.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let mut events = Vec::new();
        let mut done = 0;
        while let Some(&[a, b, c, kind, flags, d, e, f, g]) = self.input.get(done..done + 9) {
            let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
            let stream = u32::from_be_bytes([d & 0x7f, e, f, g]);
            let Some(payload) = self.input.get(done + 9..done + 9 + length).map(<[u8]>::to_vec) else { break };
            done += 9 + length;
            events.extend(self.take(kind, flags, stream, payload)?);
        }
        self.input.drain(..done);
        Ok(events)
    }

    fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: Vec<u8>) -> std::io::Result<Option<Event>> {
        let end = flags & END_STREAM != 0;
        match kind {
            DATA => {
                self.give_back(0, payload.len());
                self.give_back(stream, payload.len());
                let padding = payload.first().copied().filter(|_| flags & PADDED != 0).map(usize::from);
                let bytes =
                    padding.map_or(Some(payload.as_slice()), |size| payload.get(1..payload.len().saturating_sub(size)));
                return Ok(Some(Event::Data { stream, bytes: bytes.unwrap_or_default().to_vec(), end }));
            }
            HEADERS => return Ok(Some(Event::Headers { stream, end })),
            RESET => return Ok(Some(Event::Reset { stream })),
            GOAWAY if payload.get(4..8) != Some(&[0; 4]) => return Err(ErrorKind::ConnectionAborted.into()),
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    if let &[0, 4, a, b, c, d] = setting {
                        let now = i64::from(u32::from_be_bytes([a, b, c, d]));
                        let more = now - std::mem::replace(&mut self.first_window, now);
                        self.windows
                            .iter_mut()
                            .filter(|(stream, _)| **stream != 0)
                            .for_each(|(_, window)| *window += more);
                    }
                }
                self.frame(SETTINGS, ACK, 0, &[]);
            }
            PING if flags & ACK == 0 => self.frame(PING, ACK, 0, &payload),
            WINDOW_UPDATE => {
                if let &[a, b, c, d] = payload.as_slice() {
                    let first = self.first_window;
                    *self.windows.entry(stream).or_insert(first) += i64::from(u32::from_be_bytes([a & 0x7f, b, c, d]));
                }
            }
            _ => {}
        }
        Ok(None)
    }

    /// A quarter of a window at a time.
    fn give_back(&mut self, stream: u32, size: usize) {
        let taken = self.taken.entry(stream).or_default();
        *taken += u32::try_from(size).unwrap_or_default();
        if *taken >= WINDOW / 4 {
            let size = std::mem::take(taken).to_be_bytes();
            self.frame(WINDOW_UPDATE, 0, stream, &size);
        }
    }

    fn forget(&mut self, stream: u32) {
        self.windows.remove(&stream);
        self.waiting.remove(&stream);
        self.taken.remove(&stream);
    }
}

/// Answers each message with itself until the other end goes.
fn serve(mut socket: TcpStream) -> std::io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    socket.read_exact(&mut preface)?;
    let mut wire = Wire::new(socket)?;
    let mut ending = Vec::new();
    loop {
        wire.flush()?;
        // Trailers follow when all that came before them is sent.
        let (over, still): (Vec<u32>, Vec<u32>) = ending.into_iter().partition(|stream| wire.sent(*stream));
        ending = still;
        for stream in over {
            wire.frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS);
            wire.forget(stream);
        }
        wire.flush()?;
        for event in wire.events()? {
            let (stream, end) = match event {
                Event::Headers { stream, end } => {
                    wire.frame(HEADERS, END_HEADERS, stream, ANSWER);
                    (stream, end)
                }
                Event::Data { stream, bytes, end } => {
                    if !bytes.is_empty() {
                        wire.data(stream, bytes);
                    }
                    (stream, end)
                }
                Event::Reset { stream } => {
                    wire.forget(stream);
                    (stream, false)
                }
            };
            if end {
                ending.push(stream);
            }
        }
    }
}

/// The messages that came back on one stream within `time`.
fn call(address: &str, time: Duration) -> std::io::Result<usize> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.write_all(PREFACE)?;
    let mut wire = Wire::new(socket)?;
    wire.frame(HEADERS, END_HEADERS, 1, CALL);
    let (mut sent, mut echoed, mut over, mut counted) = (0, 0, false, 0);
    let deadline = Instant::now() + time;
    loop {
        if !over && Instant::now() >= deadline {
            (over, counted) = (true, echoed / MESSAGE.len());
        }
        while !over && sent < echoed / MESSAGE.len() + AHEAD {
            wire.data(1, MESSAGE.to_vec());
            sent += 1;
        }
        wire.flush()?;
        if over && echoed == sent * MESSAGE.len() {
            break;
        }
        for event in wire.events()? {
            match event {
                Event::Data { bytes, end: false, .. } => echoed += bytes.len(),
                Event::Headers { end: false, .. } => {}
                // The stream ended before its time.
                _ => return Err(ErrorKind::ConnectionReset.into()),
            }
        }
    }
    wire.frame(DATA, END_STREAM, 1, &[]);
    wire.flush()?;
    loop {
        for event in wire.events()? {
            match event {
                Event::Headers { end: true, .. } | Event::Data { end: true, .. } => return Ok(counted),
                Event::Reset { .. } => return Err(ErrorKind::ConnectionReset.into()),
                _ => {}
            }
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", address] => {
            for socket in TcpListener::bind(address)?.incoming() {
                let socket = socket?;
                // An end is the other side's business.
                thread::spawn(move || drop(serve(socket)));
            }
        }
        ["call", address, connections, seconds] => {
            let (connections, seconds): (usize, u64) = (connections.parse()?, seconds.parse()?);
            if connections == 0 || connections > 256 || seconds == 0 || seconds > 600 {
                return Err("1 to 256 connections, 1 to 600 s".into());
            }
            let threads: Vec<_> = (0..connections)
                .map(|_| {
                    let address = (*address).to_owned();
                    thread::spawn(move || call(&address, Duration::from_secs(seconds)))
                })
                .collect();
            let mut messages = 0;
            for thread in threads {
                messages += thread.join().map_err(|_| "a connection's thread panicked")??;
            }
            println!("{{\"requests\": {messages}, \"seconds\": {seconds}, \"errors\": 0}}");
        }
        _ => return Err("usage: stream serve HOST:PORT | stream call HOST:PORT CONNECTIONS SECONDS".into()),
    }
    Ok(())
}
