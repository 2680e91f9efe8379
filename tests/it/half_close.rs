//! A caller that ends its side of a connection after its request gets the answer, at both sides of a sidecar: with the
//! sockets of Rust and of Python.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use crate::{
    mesh::{TestMesh, Workload},
    needs,
    net::{connect, free},
};

/// An app whose answers come long after its caller's end has, and that takes whole requests only.
fn slow() -> SocketAddr {
    let listener = TcpListener::bind(free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(&stream));
        }
    });
    address
}

fn serve(stream: &TcpStream) -> Option<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let (mut line, mut left, mut chunked) = (String::new(), 0, false);
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let field = line.trim_end().to_ascii_lowercase();
            if let Some(length) = field.strip_prefix("content-length: ") {
                left = length.parse().ok()?;
            }
            chunked |= field == "transfer-encoding: chunked";
            if field.is_empty() {
                break;
            }
        }
        reader.read_exact(&mut vec![0; left]).ok()?;
        while chunked && line.trim_end() != "0" {
            line.clear();
            reader.read_line(&mut line).ok()?;
        }
        if chunked {
            reader.read_line(&mut line).ok()?;
        }
        // What this app is: slow.
        std::thread::sleep(Duration::from_millis(700));
        writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate").ok()?;
    }
}

#[test]
fn a_caller_that_has_ended_its_side_gets_its_answer_in_and_out() {
    let test = "a_caller_that_has_ended_its_side_gets_its_answer_in_and_out";
    let front = free();
    let workload = Workload::beside("slow", slow(), "http").front(front);
    let mesh = TestMesh::builder("half-close").workload(workload).calls("slow").start();
    let (by_port, by_host) = (mesh.local("slow"), mesh.outbound());
    for address in [by_port, by_host, front] {
        let mut caller = connect(address).expect("the sidecar listens");
        caller.write_all(b"GET / HTTP/1.1\r\nHost: slow\r\n\r\n").expect("open");
        caller.shutdown(Shutdown::Write).expect("open");
        let mut answer = String::new();
        caller.read_to_string(&mut answer).expect("an answer and its end");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("late"), "{address}: {answer}");
    }
    if needs::program(test, "python3", &["--version"]) {
        return;
    }
    let script = format!("{}/../tests/it/programs/half_close.py", env!("CARGO_MANIFEST_DIR"));
    for address in [by_port, by_host, front] {
        let output = Command::new("python3").args([&script, &address.to_string()]).output().expect("it runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{address}: {out}{err}");
        let made: Vec<_> = out.lines().collect();
        assert_eq!(made, ["ok http11", "ok http10", "ok length", "ok chunked"], "{address}");
    }
}
