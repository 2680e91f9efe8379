//! Callers of a sidecar's local port in HTTP/1.1 with keep-alive, one or many at once.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::net::connect;

const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";

/// A caller with a connection that it keeps.
pub struct Caller {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

/// What a caller got.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and fields, in lower case.
    pub head: String,
}

/// What many requests came to.
#[derive(Debug, Default)]
pub struct Tally {
    pub total: usize,
    pub ok: usize,
    /// Everything else, by what was got, in short.
    pub failed: BTreeMap<String, usize>,
}

impl Caller {
    /// Connects with the first request.
    pub const fn new(address: SocketAddr) -> Self {
        Self { address, stream: None }
    }

    /// Sends a whole request and reads the answer, whose length must be told by a field.
    pub fn send(&mut self, request: &str) -> Result<Answer, String> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => BufReader::new(connect(self.address)?),
        };
        stream.get_mut().write_all(request.as_bytes()).map_err(|error| format!("write: {error}"))?;
        let answer = Answer::read(&mut stream)?;
        if !answer.head.contains("\r\nconnection: close") {
            self.stream = Some(stream);
        }
        Ok(answer)
    }

    /// A GET.
    pub fn get(&mut self) -> Result<Answer, String> {
        self.send(GET)
    }
}

impl Answer {
    /// Reads one.
    pub fn read(stream: &mut BufReader<TcpStream>) -> Result<Self, String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let length = stream.read_line(&mut head).map_err(|error| format!("read: {error}"))?;
            if length == 0 {
                return Err(format!("closed after {head:?}"));
            }
        }
        let head = head.to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| head.clone())?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.ok_or_else(|| format!("no length: {head}"))?];
        stream.read_exact(&mut body).map_err(|error| format!("body: {error}"))?;
        Ok(Self { status, head })
    }

    /// The reason that a sidecar gave, or the status.
    fn short(&self) -> String {
        let reason = self.head.lines().find_map(|line| line.strip_prefix("proxy-status: "));
        format!("{} {}", self.status, reason.unwrap_or_default())
    }
}

impl Tally {
    /// Counts one result.
    pub fn count(&mut self, result: &Result<Answer, String>) {
        self.total += 1;
        match result {
            Ok(answer) if answer.status == 200 => self.ok += 1,
            Ok(answer) => *self.failed.entry(answer.short()).or_default() += 1,
            Err(error) => *self.failed.entry(error.clone()).or_default() += 1,
        }
    }

    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.total += other.total;
        self.ok += other.ok;
        for (what, count) in other.failed {
            *self.failed.entry(what).or_default() += count;
        }
    }

    /// Requests that were not answered with 200.
    pub const fn failures(&self) -> usize {
        self.total - self.ok
    }
}

/// GETs by `callers` at once, `count` in all.
pub fn gets(address: SocketAddr, callers: usize, count: usize) -> Tally {
    let next = AtomicUsize::new(0);
    while_running(callers, address, |_| (next.fetch_add(1, Relaxed) < count).then(|| String::from(GET)))
}

/// Requests by `callers` at once, each for as long as `request`, which gets the caller's number, has one.
pub fn while_running(callers: usize, address: SocketAddr, request: impl Fn(usize) -> Option<String> + Sync) -> Tally {
    std::thread::scope(|scope| {
        let run = |number: usize| {
            let (mut caller, mut tally) = (Caller::new(address), Tally::default());
            while let Some(request) = request(number) {
                tally.count(&caller.send(&request));
            }
            tally
        };
        let running: Vec<_> = (0..callers).map(|number| scope.spawn(move || run(number))).collect();
        let mut sum = Tally::default();
        running.into_iter().for_each(|caller| sum.add(caller.join().expect("no panic")));
        sum
    })
}
