//! Load that ends by itself, in HTTP/1.1, HTTP/2 and gRPC, and what has failed of it. Each caller sends its next request
//! when it has the whole of the last answer.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use tokio::task::JoinHandle;

use crate::{http2, net};

/// Between two requests of one caller.
const PACE: Duration = Duration::from_millis(20);
/// Failures that are told; the rest are counted.
const TOLD: usize = 5;

/// What callers of one kind have seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub requests: u64,
    pub failed: u64,
    /// The first failures: how long after the start, and why.
    pub failures: Vec<(Duration, String)>,
    pub slowest: Duration,
}

/// Callers, and when they end.
pub struct Load {
    begun: Instant,
    until: Instant,
    seen: Tally,
    callers: Vec<JoinHandle<()>>,
}

#[derive(Clone, Default)]
struct Tally(Arc<Mutex<BTreeMap<&'static str, Seen>>>);

impl Tally {
    fn note(&self, what: &'static str, begun: Instant, asked: Instant, outcome: Result<(), String>) {
        let mut all = self.0.lock().expect("no panic");
        let seen = all.entry(what).or_default();
        seen.requests += 1;
        seen.slowest = seen.slowest.max(asked.elapsed());
        if let Err(why) = outcome {
            seen.failed += 1;
            if seen.failures.len() < TOLD {
                seen.failures.push((begun.elapsed(), why));
            }
        }
    }
}

impl Load {
    /// No callers yet; those to come end after this time.
    pub fn lasting(time: Duration) -> Self {
        let begun = Instant::now();
        Self { begun, until: begun + time, seen: Tally::default(), callers: Vec::new() }
    }

    /// A part of its time, from the start.
    pub fn at(&self, share: f64) -> tokio::time::Instant {
        (self.begun + (self.until - self.begun).mul_f64(share)).into()
    }

    /// A caller of HTTP/1.1: all on one connection, or each request on a connection of its own.
    pub fn http1(
        &mut self,
        what: &'static str,
        address: SocketAddr,
        request: &'static str,
        host: &'static str,
        keep: bool,
    ) {
        let (begun, until, seen) = (self.begun, self.until, self.seen.clone());
        self.callers.push(tokio::task::spawn_blocking(move || {
            let mut kept = None;
            while Instant::now() < until {
                let asked = Instant::now();
                let outcome = exchange(&mut kept, address, request, host);
                if !keep || outcome.is_err() {
                    kept = None;
                }
                seen.note(what, begun, asked, outcome);
                std::thread::park_timeout(PACE);
            }
        }));
    }

    /// Callers of HTTP/2, that many on one connection. With a body it is gRPC, whose answer is good when its trailers say
    /// so.
    pub fn http2(
        &mut self,
        what: &'static str,
        address: SocketAddr,
        uri: &'static str,
        body: &'static [u8],
        callers: usize,
    ) {
        let (begun, until, seen) = (self.begun, self.until, self.seen.clone());
        self.callers.push(tokio::spawn(async move {
            let (sender, _connection) = http2::connect(address).await;
            let caller = async || {
                let mut pace = tokio::time::interval(PACE);
                while Instant::now() < until {
                    pace.tick().await;
                    let asked = Instant::now();
                    let answer = tokio::time::timeout(net::LIMIT, stream(sender.clone(), uri, body)).await;
                    let outcome = answer.unwrap_or_else(|_| Err("no answer".into()));
                    seen.note(what, begun, asked, outcome);
                }
            };
            futures_util::future::join_all((0..callers).map(|_| caller())).await;
        }));
    }

    /// Waits for its end.
    pub async fn end(self) -> BTreeMap<&'static str, Seen> {
        for caller in self.callers {
            caller.await.expect("a caller has not panicked");
        }
        self.seen.0.lock().expect("no panic").clone()
    }
}

/// A request of HTTP/1.1 and the whole of its answer.
fn exchange(
    kept: &mut Option<BufReader<TcpStream>>,
    address: SocketAddr,
    request: &str,
    host: &str,
) -> Result<(), String> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => BufReader::new(net::connect(address)?),
    };
    let text = |error: std::io::Error| error.to_string();
    let head = format!("{request} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n");
    stream.get_mut().write_all(head.as_bytes()).map_err(text)?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).map_err(text)? == 0 {
            return Err(format!("the connection was closed: {head:?}"));
        }
    }
    let lower = head.to_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).map_err(text)?;
    let good = lower.starts_with("http/1.1 200") && !lower.contains("\r\nconnection: close");
    if !good {
        return Err(format!("{head}{}", String::from_utf8_lossy(&body)));
    }
    *kept = Some(stream);
    Ok(())
}

/// A request of HTTP/2 and the whole of its answer.
async fn stream(sender: h2::client::SendRequest<Bytes>, uri: &str, body: &'static [u8]) -> Result<(), String> {
    let text = |error: h2::Error| error.to_string();
    let grpc = !body.is_empty();
    let mut request = Request::builder().uri(uri);
    if grpc {
        request = request.method("POST").header("content-type", "application/grpc").header("te", "trailers");
    }
    let request = request.body(()).map_err(|error| error.to_string())?;
    let (answer, mut sent) = sender.ready().await.map_err(text)?.send_request(request, !grpc).map_err(text)?;
    if grpc {
        sent.send_data(Bytes::from_static(body), true).map_err(text)?;
    }
    let (head, mut body) = answer.await.map_err(text)?.into_parts();
    http2::drain(&mut body).await.map_err(text)?;
    let trailers = body.trailers().await.map_err(text)?.unwrap_or_default();
    let good = head.status == 200 && (!grpc || trailers.get("grpc-status").is_some_and(|status| status == "0"));
    if good { Ok(()) } else { Err(format!("{head:?} {trailers:?}")) }
}

/// An app that takes this long for each answer.
pub fn slow(time: Duration) -> SocketAddr {
    let listener = TcpListener::bind(net::free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if reader.read_line(&mut head).unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    std::thread::park_timeout(time);
                    if reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}
