//! The disk of the control plane is full: writes are refused with words that help, everything else goes on, and with
//! room everything is as before.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    control_plane::{ControlPlane, LIMIT, arguments, command},
    history,
    left_out::left_out,
    sidecar,
};

const SERVICES: &str = "/api/v1/namespaces/shop/services";
/// Runs what follows in a mount namespace of its own, in which `$0` is a small file system.
const SMALL_DISK: &str = r#"mount -t tmpfs -o size=36m weft "$0" && exec "$@""#;

fn service(name: &str, padding: usize) -> String {
    let annotations = json!({ "padding": "x".repeat(padding) });
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "annotations": annotations },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "name": "http" }] },
    })
    .to_string()
}

/// The control plane with its data on a small disk, and the directory of that disk as others see it.
fn on_small_disk(directory: &Path) -> (ControlPlane, PathBuf) {
    let disk = directory.join("disk");
    std::fs::create_dir(&disk).expect("a directory");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", SMALL_DISK]).arg(&disk).arg(env!("CARGO_BIN_EXE_weft-control-plane"));
    arguments(&mut command, &disk.join("data"), directory);
    let control_plane = ControlPlane::start(&mut command);
    // Each of them became the next: the id is that of the control plane, and its files can be reached through it.
    let root = PathBuf::from(format!("/proc/{}/root", control_plane.id()));
    (control_plane, root.join(disk.strip_prefix("/").expect("an absolute path")))
}

/// What is not there for the control plane until it is removed: room for what waits, too.
const BALLAST: usize = 24 << 20;

/// Leaves so little that nothing fits.
fn fill(ballast: &Path) {
    let mut file = File::options().append(true).open(ballast).expect("a file");
    let full = loop {
        if let Err(error) = file.write_all(&[1; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
}

/// The names of what a watch tells to come and go, as it does: statuses change what is there.
fn watched(control_plane: &ControlPlane, since: u64) -> mpsc::Receiver<String> {
    let mut client = control_plane.client();
    client.head("GET", &format!("{SERVICES}?watch=1&resourceVersion={since}"), "").expect("sent");
    assert_eq!(client.reply_head().expect("an answer").code, 200);
    let (sender, names) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok(chunk) = client.chunk() {
            for event in serde_json::Deserializer::from_slice(&chunk).into_iter::<Value>().map_while(Result::ok) {
                // What is modified is the status only.
                if event["type"] == "MODIFIED" {
                    continue;
                }
                let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                if event["type"] != "MODIFIED" && sender.send(name).is_err() {
                    return;
                }
            }
        }
    });
    names
}

/// What clients wrote, of a log that is whole.
fn written(control_plane: &ControlPlane) -> Vec<Value> {
    history::verified(&mut control_plane.client());
    let (_, mut events) = history::after(&mut control_plane.client(), 0);
    events.retain(history::is_of_client);
    events
}

/// Waits until every service has the status that it lacks for want of room.
fn settled(control_plane: &ControlPlane) {
    let until = Instant::now() + LIMIT;
    loop {
        let list = control_plane.get(SERVICES);
        let items = list.body["items"].as_array().unwrap_or_else(|| panic!("{list:?}"));
        let Some(lacking) = items.iter().find(|item| item["status"]["conditions"].is_null()) else { return };
        assert!(Instant::now() < until, "without a status: {}", lacking["metadata"]["name"]);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_full_disk_refuses_writes_while_reads_watches_and_pushes_go_on() {
    let unshare = Command::new("unshare").args(["-m", "true"]).output();
    if !rustix::process::geteuid().is_root() || !unshare.is_ok_and(|output| output.status.success()) {
        let test = "a_full_disk_refuses_writes_while_reads_watches_and_pushes_go_on";
        return left_out(test, "needs root and unshare(1)");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (control_plane, disk) = on_small_disk(directory.path());
    let ballast = disk.join("ballast");
    std::fs::write(&ballast, vec![1; BALLAST]).expect("written");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut client = control_plane.client();
    let mut write = |method: &str, path: &str, body: &str| client.send(method, path, body).expect("an answer");

    assert_eq!(write("POST", SERVICES, &service("web", 0)).code, 201);
    let identity = runtime.block_on(sidecar::enrol(control_plane.xds, directory.path(), "web")).expect("a certificate");
    let mut stream = runtime.block_on(identity.open("web-1", "10.0.0.1", "web")).expect("let in");
    runtime.block_on(stream.endpoints(&["10.0.0.1"])).expect("pushed");
    let since = history::verified(&mut control_plane.client());
    let names = watched(&control_plane, since);

    // Until the log itself finds no more room; then not even a small write may fit.
    let large = |number: usize| format!("large-{number:03}");
    let refused = (0..200).map(|number| (number, write("POST", SERVICES, &service(&large(number), 200_000))));
    let (made, refused) = refused.into_iter().find(|(_, reply)| reply.code != 201).expect("the disk is small");
    let message = refused.failed(503, "ServiceUnavailable");
    assert!(message.contains("the disk is full") && message.contains("make room and repeat the change"), "{message}");
    assert!(made > 5, "{made}");
    fill(&ballast);
    for (method, path) in
        [("POST", SERVICES.to_owned()), ("PUT", format!("{SERVICES}/web")), ("DELETE", format!("{SERVICES}/web"))]
    {
        let body =
            if method == "DELETE" { String::new() } else { service(if method == "PUT" { "web" } else { "new" }, 1) };
        write(method, &path, &body).failed(503, "ServiceUnavailable");
    }

    // Reads, and watches old and new.
    let list = write("GET", SERVICES, "");
    let head = history::verified(&mut control_plane.client());
    assert_eq!((list.revision(), list.body["items"].as_array().map(Vec::len)), (head, Some(made + 1)));
    assert_eq!(write("GET", &format!("{SERVICES}/{}", large(0)), "").code, 200);
    assert_eq!(written(&control_plane).len(), made + 1);
    for names in [&names, &watched(&control_plane, since)] {
        for number in 0..made {
            assert_eq!(names.recv_timeout(LIMIT).expect("an event"), large(number));
        }
    }

    // Sidecars come, are pushed, and go.
    let identity = runtime.block_on(sidecar::enrol(control_plane.xds, directory.path(), "web")).expect("a certificate");
    let mut second = runtime.block_on(identity.open("web-2", "10.0.0.2", "web")).expect("let in");
    for stream in [&mut stream, &mut second] {
        runtime.block_on(stream.endpoints(&["10.0.0.1", "10.0.0.2"])).expect("pushed");
    }
    drop(second);
    runtime.block_on(stream.endpoints(&["10.0.0.1"])).expect("pushed");

    // With room it writes again, and the same watch sees it.
    std::fs::remove_file(ballast).expect("removed");
    assert_eq!(write("DELETE", &format!("{SERVICES}/{}", large(0)), "").code, 200);
    assert_eq!(names.recv_timeout(LIMIT).expect("an event"), large(0));
    assert_eq!(write("POST", SERVICES, &service("new", 1)).code, 201);
    assert_eq!(names.recv_timeout(LIMIT).expect("an event"), "new");
    settled(&control_plane);
    let before = written(&control_plane);
    assert_eq!(before.len(), made + 3);

    // What is on the disk is what was acknowledged: another process reads a copy of it.
    let data = directory.path().join("copy");
    let copied = Command::new("cp").arg("-a").arg(disk.join("data")).arg(&data).output().expect("cp runs");
    assert!(copied.status.success(), "{copied:?}");
    let copy = ControlPlane::start(&mut command(&data, directory.path()));
    assert_eq!(written(&copy), before);
}
