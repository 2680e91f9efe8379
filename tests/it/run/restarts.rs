//! Sidecars that are killed, and services that are restarted instance by instance, while callers notice nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;

use super::{WEFT, end, start, wait_for};
use crate::{
    apps::recorder,
    mesh::TestMesh,
    net::{eventually, free, get, ok},
    process::{Process, signal},
};

#[test]
fn a_killed_sidecar_is_started_again_where_it_was_and_the_app_goes_on() {
    let mut mesh = TestMesh::builder("run-sidecar-killed").start();
    let app = free();
    let listen = app.to_string();
    let port = format!("main:{}/http", app.port());
    let process = start(&mesh, "catalog", &["--port", &port], &[WEFT, "demo-service", "catalog", "--listen", &listen]);
    wait_for(&mesh, "catalog", &[true]);
    let local = mesh.caller("caller", "catalog");
    eventually("an answer", || ok(get(local, "catalog", "/items")));
    let apps = process.below_with(&["demo-service"]);
    for round in 1..=3 {
        let sidecar = process.below_with(&["sidecar"]);
        assert_eq!(sidecar.len(), 1, "{}", process.output());
        signal(sidecar[0], Signal::KILL);
        eventually("another sidecar", || {
            let text = process.output();
            if text.matches("the sidecar is ready again").count() == round { Ok(()) } else { Err(text) }
        });
        eventually("an answer", || ok(get(local, "catalog", "/items")));
        assert_eq!(process.below_with(&["demo-service"]), apps, "the app is the same");
    }
    assert!(
        process.output().contains("sidecar ended (signal: 9 (SIGKILL)); starting it again in 100 ms, the app goes on")
    );
}

/// One instance of a service, which can be restarted.
struct Instance {
    service: &'static str,
    flags: Vec<String>,
    app: Vec<String>,
    process: Process,
}

impl Instance {
    fn new(mesh: &TestMesh, service: &'static str, number: usize, more: &[(&str, SocketAddr)]) -> Self {
        let listen = free();
        let mut flags = ["--lame-duck", "1", "--port"].map(str::to_owned).to_vec();
        flags.push(format!("main:{}/http", listen.port()));
        let mut app = [WEFT, "demo-service", service, "--listen", &listen.to_string()].map(str::to_owned).to_vec();
        for (flag, address) in more {
            app.extend([(*flag).to_owned(), address.to_string()]);
            if *flag == "--catalog" {
                flags.extend(["--upstream".to_owned(), format!("catalog={}", address.port())]);
            }
        }
        let process = Self::begin(mesh, &format!("{service}-{number}"), service, &flags, &app);
        Self { service, flags, app, process }
    }

    fn begin(mesh: &TestMesh, log: &str, service: &str, flags: &[String], app: &[String]) -> Process {
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let app: Vec<_> = app.iter().map(String::as_str).collect();
        Process::start(&mut super::command(mesh, service, &flags, &app), &mesh.dir.join(format!("{log}.log")))
    }

    fn restart(&mut self, mesh: &TestMesh) {
        signal(self.process.id(), Signal::TERM);
        let status = end(&mut self.process);
        assert_eq!(status.code(), Some(143), "{}", self.process.output());
        assert!(self.process.output().contains("no callers are left"), "{}", self.process.output());
        let log = self.process.log.file_stem().and_then(|name| name.to_str()).unwrap_or("log").to_owned();
        self.process = Self::begin(mesh, &log, self.service, &self.flags, &self.app);
        wait_for(mesh, self.service, &[true, true]);
    }
}

#[test]
fn no_request_fails_while_every_instance_of_a_mesh_is_restarted_again_and_again() {
    let rounds: usize = std::env::var("WEFT_RESTARTS").ok().and_then(|count| count.parse().ok()).unwrap_or(2);
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports:\n  - \
             {{name: main, port: 80, targetPort: main, appProtocol: http}}\n---\n"
        )
    };
    let services = service("catalog") + &service("storefront");
    let mut mesh = TestMesh::builder("run-rolling").resource("services.yaml", services).start();
    let (orders, _) = recorder(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}");
    let mut instances: Vec<_> = (0..2).map(|number| Instance::new(&mesh, "catalog", number, &[])).collect();
    instances.extend(
        (0..2).map(|number| Instance::new(&mesh, "storefront", number, &[("--catalog", free()), ("--orders", orders)])),
    );
    wait_for(&mesh, "catalog", &[true, true]);
    wait_for(&mesh, "storefront", &[true, true]);
    let local = mesh.caller("load", "storefront");
    eventually("an answer", || ok(get(local, "storefront", "/")));

    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let failed = Arc::new(Mutex::new(Vec::new()));
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let (stop, served, failed) = (Arc::clone(&stop), Arc::clone(&served), Arc::clone(&failed));
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    match ok(get(local, "storefront", "/")) {
                        Ok(_) => served.fetch_add(1, Ordering::SeqCst),
                        Err(error) => failed.lock().map(|mut failed| failed.push(error)).map_or(0, |()| 0),
                    };
                    std::thread::park_timeout(Duration::from_millis(5));
                }
            })
        })
        .collect();
    for _ in 0..rounds {
        instances.iter_mut().for_each(|instance| instance.restart(&mesh));
    }
    stop.store(true, Ordering::SeqCst);
    callers.into_iter().for_each(|caller| caller.join().expect("no panic"));
    let failed = failed.lock().expect("whole");
    let (served, restarts) = (served.load(Ordering::SeqCst), rounds * instances.len());
    println!("{served} requests during {restarts} restarts, {} failed", failed.len());
    assert!(failed.is_empty(), "{} of {served}, the first: {}", failed.len(), failed[0]);
    assert!(served > 20 * rounds, "{served} requests are no load");
}
