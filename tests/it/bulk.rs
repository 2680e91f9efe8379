//! Bodies that are larger than anybody's memory: a gibibyte up and down, while both sidecars stay small.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use crate::{
    mesh::{TestMesh, Workload},
    needs,
    net::{connect, eventually, free, get, ok},
};

const GIB: usize = 1 << 30;
/// What a sidecar may grow by, in KiB.
const GROWTH: u64 = 16 * 1024;
/// The body repeats this, whose length is prime to any buffer's.
const PERIOD: usize = 251;
const BLOCK: usize = 64 * 1024;

/// The body's bytes from any place of the period on.
fn pattern() -> Vec<u8> {
    (0..BLOCK + PERIOD).map(|n| u8::try_from(n % PERIOD).expect("below 251")).collect()
}

fn send(to: &mut impl Write, length: usize) -> std::io::Result<()> {
    let pattern = pattern();
    let mut at = 0;
    while at < length {
        let size = BLOCK.min(length - at);
        let from = at % PERIOD;
        to.write_all(&pattern[from..from + size])?;
        at += size;
    }
    to.flush()
}

/// Reads `length` bytes, each of which is the one that was sent.
fn receive(from: &mut impl Read, length: usize) -> std::io::Result<()> {
    let pattern = pattern();
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    while at < length {
        let size = from.read(&mut buffer[..BLOCK.min(length - at)])?;
        let expected = &pattern[at % PERIOD..at % PERIOD + size];
        if size == 0 || buffer[..size] != *expected {
            return Err(std::io::Error::other(format!("wrong bytes or none after {at}")));
        }
        at += size;
    }
    Ok(())
}

/// The head up to its empty line, and the length that it announces.
fn head(from: &mut impl BufRead) -> std::io::Result<(String, usize)> {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        if from.read_line(&mut text)? == 0 {
            return Err(std::io::Error::other(format!("no head: {text:?}")));
        }
    }
    let lower = text.to_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    Ok((text, length.unwrap_or(0)))
}

fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::with_capacity(BLOCK, stream.try_clone()?);
    let mut writer = stream;
    loop {
        let (request, length) = head(&mut reader)?;
        receive(&mut reader, length)?;
        let answer = if request.starts_with("GET /gib") { GIB } else { 0 };
        write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {answer}\r\n\r\n")?;
        send(&mut writer, answer)?;
    }
}

fn app() -> SocketAddr {
    let listener = TcpListener::bind(free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// A field of /proc/PID/status in KiB.
pub fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.split_whitespace().find_map(|word| word.parse().ok()).expect("a number")
}

/// A mesh with the app of this file, over which `transfer` goes; both sidecars' growth is checked.
fn within_bounds(name: &str, transfer: impl FnOnce(&mut TcpStream) -> std::io::Result<()>) {
    let workload = Workload::beside("bulk", app(), "http");
    let mesh = TestMesh::builder(name).workload(workload).calls("bulk").start();
    let local = mesh.local("bulk");
    eventually("a small call", || ok(get(local, "bulk", "/")));
    let pids = [mesh.client_pid(), mesh.sidecar_pid("bulk")];
    let before = pids.map(|pid| memory(pid, "VmRSS:"));
    let mut stream = connect(local).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(300))).expect("settable");
    transfer(&mut stream).expect("the whole gibibyte");
    for (pid, before) in pids.into_iter().zip(before) {
        let peak = memory(pid, "VmHWM:");
        assert!(peak < before + GROWTH, "a sidecar grew from {before} to {peak} KiB");
    }
}

#[test]
fn a_gibibyte_goes_up_and_the_sidecars_stay_small() {
    if needs::proc("a_gibibyte_goes_up_and_the_sidecars_stay_small") {
        return;
    }
    within_bounds("upload", |stream| {
        write!(stream, "PUT / HTTP/1.1\r\nHost: bulk\r\nContent-Length: {GIB}\r\n\r\n")?;
        send(stream, GIB)?;
        let (answer, _) = head(&mut BufReader::new(stream))?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    });
}

#[test]
fn a_gibibyte_comes_down_and_the_sidecars_stay_small() {
    if needs::proc("a_gibibyte_comes_down_and_the_sidecars_stay_small") {
        return;
    }
    within_bounds("download", |stream| {
        write!(stream, "GET /gib HTTP/1.1\r\nHost: bulk\r\n\r\n")?;
        let mut reader = BufReader::with_capacity(BLOCK, stream);
        let (answer, length) = head(&mut reader)?;
        assert!(answer.starts_with("HTTP/1.1 200") && length == GIB, "{answer}");
        receive(&mut reader, length)
    });
}
