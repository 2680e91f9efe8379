//! An open-loop HTTP/1.1 generator: sends at fixed moments, evenly spaced, whether earlier answers have come or not.
//!
//! Usage: openloop HOST:PORT PATH CONNECTIONS RATE SECONDS; prints one line of JSON. Only the standard library, a thread
//! for each connection. A request's latency starts when it should have been sent: one that waits for its connection's
//! earlier answer counts that wait. Only where the connection was idle does it start when it was sent, so that a late
//! timer of this program is not booked on the proxy.

use std::error::Error;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

/// What is asked of the program.
#[derive(Clone)]
struct Plan {
    address: String,
    request: Vec<u8>,
    connections: u32,
    /// Between two requests of one connection.
    interval: Duration,
    /// Of each connection.
    requests: u32,
}

/// Latencies of one connection in microseconds, and how many requests failed.
struct Outcome {
    latencies: Vec<u128>,
    errors: u32,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |name: &str| arguments.next().ok_or_else(|| format!("{name} is missing"));
    let (address, path) = (next("HOST:PORT")?, next("PATH")?);
    let connections: u32 = next("CONNECTIONS")?.parse()?;
    let rate: u32 = next("RATE")?.parse()?;
    let seconds: u32 = next("SECONDS")?.parse()?;
    if connections == 0 || connections > 1024 || rate == 0 || seconds == 0 || seconds > 600 {
        return Err("1 to 1024 connections, at least 1 request/s, 1 to 600 s".into());
    }
    let total = Duration::from_secs(seconds.into());
    let interval = Duration::from_secs(connections.into()) / rate;
    let plan = Plan {
        request: format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").into_bytes(),
        address,
        connections,
        interval,
        requests: u32::try_from(total.as_nanos() / interval.as_nanos().max(1))?.max(1),
    };
    let (outcomes, elapsed) = run(&plan)?;
    report(&plan, outcomes, elapsed);
    Ok(())
}

fn run(plan: &Plan) -> Result<(Vec<Outcome>, Duration), Box<dyn Error>> {
    // Connected before the first moment, which is in the near future so that all threads meet it.
    let mut streams = Vec::new();
    for _ in 0..plan.connections {
        let stream = TcpStream::connect(&plan.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        streams.push(stream);
    }
    let start = Instant::now() + Duration::from_millis(50);
    let threads: Vec<_> = (0..plan.connections)
        .zip(streams)
        .map(|(number, stream)| {
            let plan = plan.clone();
            // The connections take turns, so that requests are evenly spaced over all of them.
            let first = start + plan.interval * number / plan.connections;
            thread::spawn(move || connection(&plan, stream, first))
        })
        .collect();
    let mut outcomes = Vec::new();
    for thread in threads {
        outcomes.push(thread.join().map_err(|_| "a connection's thread panicked")?);
    }
    Ok((outcomes, start.elapsed()))
}

/// All requests of one connection, the first of them at `first`.
fn connection(plan: &Plan, mut stream: TcpStream, first: Instant) -> Outcome {
    let mut outcome = Outcome { latencies: Vec::new(), errors: 0 };
    let mut buffer = vec![0; 64 * 1024];
    for number in 0..plan.requests {
        let due = first + plan.interval * number;
        let wait = due.saturating_duration_since(Instant::now());
        let began = if wait.is_zero() {
            due
        } else {
            thread::sleep(wait);
            Instant::now()
        };
        if exchange(&mut stream, &plan.request, &mut buffer).is_err() {
            outcome.errors += plan.requests - number;
            break;
        }
        outcome.latencies.push(began.elapsed().as_micros());
    }
    outcome
}

/// One request and its whole answer, which must be a 200 with a content-length.
fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> std::io::Result<()> {
    stream.write_all(request)?;
    let mut got = Vec::new();
    let mut missing = None;
    while missing != Some(0) {
        let read = stream.read(buffer)?;
        let part = buffer.get(..read).unwrap_or_default();
        if part.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Some(left) = missing {
            missing = Some(usize::saturating_sub(left, read));
            continue;
        }
        got.extend_from_slice(part);
        if let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") {
            let length = body_length(got.get(..end).unwrap_or_default()).ok_or(ErrorKind::InvalidData)?;
            missing = Some(length.saturating_sub(got.len() - end - 4));
        }
    }
    Ok(())
}

/// The content-length of a 200.
fn body_length(head: &[u8]) -> Option<usize> {
    let head = str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    if lines.next()?.split(' ').nth(1)? != "200" {
        return None;
    }
    let value = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    })?;
    value.trim().parse().ok()
}

/// One line of JSON on standard output.
fn report(plan: &Plan, outcomes: Vec<Outcome>, elapsed: Duration) {
    let errors: u32 = outcomes.iter().map(|outcome| outcome.errors).sum();
    let mut all: Vec<_> = outcomes.into_iter().flat_map(|outcome| outcome.latencies).collect();
    all.sort_unstable();
    let at = |per_mille: usize| all.get(all.len().saturating_sub(1) * per_mille / 1000).copied().unwrap_or_default();
    let planned = u64::from(plan.requests) * u64::from(plan.connections);
    println!(
        "{{\"requests\": {}, \"planned\": {planned}, \"errors\": {errors}, \"seconds\": {:.3}, \"p50_us\": {}, \
         \"p99_us\": {}, \"p999_us\": {}, \"max_us\": {}}}",
        all.len(),
        elapsed.as_secs_f64(),
        at(500),
        at(990),
        at(999),
        at(1000),
    );
}
