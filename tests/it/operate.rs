//! A change from the command to the traffic and back: apply, history, rollback, and a log that somebody has changed.

use std::{os::unix::fs::FileExt, path::Path};

use rustix::process::Signal;

use crate::{
    apps::recorder,
    mesh::{TestMesh, Workload},
    net::{eventually, get, ok},
    process::signal,
};

const REASON: &str = "green is ready for everybody";

fn answer(body: &'static str) -> &'static [u8] {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).into_bytes().leak()
}

/// A mesh whose client calls `blue`, with a service `green` that it knows nothing of; and a route from one to the other.
fn blue_and_green(name: &str) -> (TestMesh, String) {
    let ((blue, _), (green, _)) = (recorder(answer("from blue")), recorder(answer("from green")));
    let mesh = TestMesh::builder(name)
        .workload(Workload::beside("blue", blue, "http"))
        .workload(Workload::beside("green", green, "http"))
        .calls("blue")
        .start();
    let route = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: to-green\nspec:\n  parentRefs:\n  \
         - {{group: '', kind: Service, name: blue}}\n  rules:\n  - backendRefs:\n    - {{name: green, port: {}}}\n",
        green.port()
    );
    (mesh, route)
}

/// The body of the very next request.
fn served(mesh: &TestMesh) -> String {
    let text = ok(get(mesh.local("blue"), "blue", "/")).expect("an answer");
    text.rsplit("\r\n").next().unwrap_or_default().to_owned()
}

/// Flips one bit of the file, in every place where this text stands: pages that were replaced hold it as well.
fn damage(file: &Path, text: &str) {
    let bytes = std::fs::read(file).expect("readable");
    let file = std::fs::File::options().write(true).open(file).expect("writable");
    let places: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(text.as_bytes())).collect();
    assert!(!places.is_empty(), "{text:?} is not in the file");
    for at in places {
        file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("written");
    }
}

#[test]
fn a_route_is_applied_told_rolled_back_and_a_forged_history_is_refused() {
    let (mut mesh, route) = blue_and_green("operate");
    eventually("blue", || ok(get(mesh.local("blue"), "blue", "/")));
    let file = mesh.dir.join("route.yaml");
    std::fs::write(&file, &route).expect("writable");
    let file = file.to_string_lossy().into_owned();

    // An object that was there before, so that there is a revision to go back to.
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n";
    std::fs::write(mesh.dir.join("namespace.yaml"), namespace).expect("writable");
    mesh.weft(&["apply", "--wait", "-f", &mesh.dir.join("namespace.yaml").to_string_lossy()]).ok();
    let before = mesh.weft(&["history", "-o", "json"]).json()["revision"].as_u64().expect("a revision");
    assert_eq!(served(&mesh), "from blue");

    let applied = mesh.weft(&["apply", "--wait", "-f", &file, "--reason", REASON]).ok();
    assert!(applied.contains("created") && applied.contains("acknowledged by"), "{applied}");
    assert_eq!(served(&mesh), "from green", "by the first request after apply --wait");

    let told = mesh.weft(&["history", "httproute/to-green"]).ok();
    for part in ["create", "HTTPRoute default/to-green", REASON] {
        assert!(told.contains(part), "{part} in {told}");
    }
    let author = mesh.weft(&["history", "httproute/to-green", "-o", "json"]).json();
    let first = author["items"].as_array().and_then(|items| items.last()).expect("events");
    let uid = rustix::process::getuid().as_raw();
    assert!(first["author"].as_str().is_some_and(|author| author.contains(&format!("uid {uid}"))), "{author}");
    assert!(mesh.weft(&["history", "httproute/to-green", "--diff"]).ok().contains("+    - name: green"));

    let back = mesh.weft(&["rollback", "--to-revision", &before.to_string(), "--wait"]).ok();
    assert!(back.contains("HTTPRoute default/to-green") && back.contains("deleted"), "{back}");
    assert_eq!(served(&mesh), "from blue", "by the first request after rollback --wait");
    let verified = mesh.weft(&["history", "verify"]).ok();
    assert!(verified.contains("yes"), "{verified}");

    mesh.stop_control_plane();
    let data = mesh.dir.join("data").to_string_lossy().into_owned();
    assert!(mesh.weft(&["history", "verify", "--data-dir", &data]).ok().contains("yes"));
    assert_eq!(served(&mesh), "from blue", "without a control plane too");
    damage(&mesh.dir.join("data/weft.redb"), REASON);
    let forged = mesh.weft(&["history", "verify", "--data-dir", &data]);
    assert_eq!(forged.code, Some(1), "{forged:?}");
    assert!(forged.text.contains(&format!("revision {}", before + 1)), "{forged:?}");
    let refused = mesh.start_control_plane_that_fails();
    assert!(refused.contains("the event log is damaged: restore the data directory from a backup"), "{refused}");
    assert!(refused.contains(&format!("revision {}", before + 1)), "{refused}");
}

#[test]
fn apply_wait_names_the_sidecar_that_has_not_acknowledged_and_returns_when_it_has() {
    let (mesh, route) = blue_and_green("lag");
    eventually("blue", || ok(get(mesh.local("blue"), "blue", "/")));
    let file = mesh.dir.join("route.yaml");
    std::fs::write(&file, &route).expect("writable");
    let file = file.to_string_lossy().into_owned();

    signal(mesh.client_pid(), Signal::STOP);
    let late = mesh.weft(&["apply", "--wait", "--timeout", "1s", "-f", &file]);
    signal(mesh.client_pid(), Signal::CONT);
    assert_eq!(late.code, Some(1), "{late:?}");
    assert!(
        late.text.contains("created") && late.text.contains("not acknowledged in 1 s by: default/client"),
        "{late:?}"
    );
    assert!(!late.text.contains("default/blue"), "who has acknowledged is not named: {late:?}");

    let waited = mesh.weft(&["apply", "--wait", "-f", &file]).ok();
    assert!(waited.contains("unchanged") && waited.contains("acknowledged by 3 sidecars"), "{waited}");
    assert_eq!(served(&mesh), "from green");
    let proxies = mesh.weft(&["status", "-o", "json"]).json();
    let items = proxies["items"].as_array().expect("sidecars");
    assert!(items.iter().all(|item| item["storeRevision"] == proxies["storeRevision"]), "{proxies}");
}

#[test]
fn the_defaults_and_the_objects_of_files_are_visible_and_a_file_is_not_written_over() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: written}\nspec: {ports: [{port: 80}]}\n";
    let mesh = TestMesh::builder("visible").resource("services.yaml", service).start();
    let defaults = mesh.weft(&["get", "meshconfig", "default", "-o", "yaml"]).ok();
    for part in ["peerMode: Permissive", "attempts: 2", "consecutiveFailures: 5", "connect: 2s"] {
        assert!(defaults.contains(part), "{part} in {defaults}");
    }
    let told = mesh.weft(&["history", "meshconfig/default"]).ok();
    assert!(told.contains("weft") && told.contains("defaults"), "{told}");

    let got = mesh.weft(&["get", "service", "written", "-o", "json"]).json();
    let place = got["metadata"]["annotations"]["weft.dev/source"].as_str().expect("a place");
    assert!(place.ends_with("services.yaml:1"), "{place}");
    let file = mesh.dir.join("other.yaml");
    std::fs::write(&file, service.replace("80", "81")).expect("writable");
    let refused = mesh.weft(&["apply", "-f", &file.to_string_lossy()]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.text.contains("read-only") && refused.text.contains(place), "{refused:?}");
    let graph = eventually("the graph", || ok(get(mesh.api, "localhost", "/weft/v1/graph")));
    assert!(graph.contains("service:default/written"), "{graph}");
}
