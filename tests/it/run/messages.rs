//! What `weft run` says when it cannot start the app, and how fast it does when it can.

use std::time::{Duration, Instant};

use super::{command, end, start};
use crate::{
    mesh::TestMesh,
    net::{eventually, free},
};

/// Runs it to its end, which is to be a failure; what it says.
fn refused(mesh: &TestMesh, name: &str, flags: &[&str], app: &[&str]) -> String {
    let mut process = start(mesh, name, flags, app);
    let status = end(&mut process);
    assert_eq!(status.code(), Some(1), "{}", process.output());
    process.output()
}

#[test]
fn a_port_that_is_taken_is_told_with_its_flag_and_its_holder() {
    let mesh = TestMesh::builder("run-taken").start();
    let held = std::net::TcpListener::bind(free()).expect("free");
    let address = held.local_addr().expect("bound").to_string();
    let holder = format!("(process {})", std::process::id());
    let upstream = format!("catalog={}", held.local_addr().expect("bound").port());
    for (flag, value) in [("--admin-listen", address.as_str()), ("--upstream", &upstream)] {
        let text = refused(&mesh, "app", &[flag, value], &["true"]);
        assert!(text.contains(&format!("{flag}: {address} is taken by ")) && text.contains(&holder), "{text}");
    }
    // The app's own port may be held by the app itself, which was there before.
    let port = held.local_addr().expect("bound").port().to_string();
    let mut beside = start(&mesh, "app", &["--port", &port], &["true"]);
    assert_eq!(end(&mut beside).code(), Some(0), "{}", beside.output());
    let text = beside.output();
    assert!(text.contains(&format!("listens on port {port} of the app already")) && text.contains(&holder), "{text}");
}

#[test]
fn a_program_that_is_not_there_is_told_before_the_sidecar_starts() {
    let mesh = TestMesh::builder("run-no-program").start();
    let text = refused(&mesh, "app", &[], &["no-such-program"]);
    assert!(text.contains("no-such-program: no such program; is it in PATH"), "{text}");
    assert!(!text.contains("listening"), "{text}");
}

#[test]
fn a_token_that_is_not_good_is_told_with_what_to_do() {
    let mesh = TestMesh::builder("run-bad-token").start();
    let used = mesh.dir.join("used.token");
    let made = ["token", "create", "--service-account", "app", "--out", &used.display().to_string()].map(str::to_owned);
    mesh.weft(&made.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    let token = ["--token", &used.display().to_string(), "--ready-timeout", "2s"].map(str::to_owned);
    let token: Vec<_> = token.iter().map(String::as_str).collect();
    let mut first = start(&mesh, "app", &token, &["true"]);
    assert_eq!(end(&mut first).code(), Some(0), "{}", first.output());
    let text = refused(&mesh, "app", &token, &["true"]);
    assert!(text.contains("gave up after --ready-timeout") && text.contains("a token is used once"), "{text}");
    let text = refused(&mesh, "app", &["--token", "/nonexistent", "--ready-timeout", "2s"], &["true"]);
    assert!(text.contains("/nonexistent"), "{text}");
}

#[test]
fn without_a_control_plane_it_says_what_it_waits_for_gives_up_in_time_and_starts_from_its_state() {
    let mut mesh = TestMesh::builder("run-no-control-plane").start();
    let state = ["--state-dir", "state"];
    let mut first =
        start(&mesh, "app", &state, &["sh", "-c", "until test -f state/configuration; do sleep 0.05; done"]);
    let status = eventually("what it keeps", || {
        let files: Vec<_> = std::fs::read_dir(mesh.dir.join("state")).into_iter().flatten().flatten().collect();
        first.ended().ok_or_else(|| format!("{files:?}"))
    });
    assert_eq!(status.code(), Some(0), "{}", first.output());
    mesh.kill_control_plane();
    let text = refused(&mesh, "other", &["--ready-timeout", "4s"], &["true"]);
    let xds = mesh.xds().to_string();
    for part in ["waiting for ", "gave up after --ready-timeout", &xds, "is it running (`weft control-plane`)"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let told: Vec<_> = text.lines().filter(|line| line.starts_with("weft run: waiting for")).collect();
    assert_eq!(told.len(), 1, "the same is told once: {text}");
    assert_eq!(told[0].matches("onnection refused").count(), 1, "and its cause once");
    let mut again = start(&mesh, "app", &state, &["true"]);
    assert_eq!(end(&mut again).code(), Some(0), "{}", again.output());
}

#[test]
fn an_app_is_started_soon() {
    let mesh = TestMesh::builder("run-start").start();
    let mut times: Vec<Duration> = (0..5)
        .map(|number| {
            let name = format!("app-{number}");
            let start = Instant::now();
            let mut command = command(&mesh, &name, &[], &["sh", "-c", "echo started"]);
            let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("it starts");
            let mut line = String::new();
            let mut out = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
            std::io::BufRead::read_line(&mut out, &mut line).expect("a line");
            let time = start.elapsed();
            assert_eq!(line, "started\n");
            assert!(child.wait().expect("its end").success());
            time
        })
        .collect();
    times.sort();
    println!("from the start of weft run to that of the app, sidecar ready: {times:?}");
}
