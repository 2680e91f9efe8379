//! Pods: `weft inject`, `weft uninject` and `weft install` as programs, what they print by the judgement of others, and
//! what a sidecar in a pod does when the pod ends.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use rustix::process::Signal;

use crate::{
    mesh::{TestMesh, Workload},
    needs,
    net::{eventually, get, ok},
    process::signal,
};

const POD: &str = "# A pod.\napiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers:\n  - name: c\n    \
    image: i # pinned\n";

/// Runs `weft` with a text on standard input.
fn weft(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn a_pod_gets_a_sidecar_through_a_pipe_and_loses_it_again() {
    let injected = weft(&["inject", "-f", "-"], POD);
    assert!(injected.status.success());
    assert_eq!(text(&injected.stderr), "pod/p injected\n");
    let with = text(&injected.stdout);
    assert!(
        with.starts_with("# A pod.\n") && with.contains("image: i # pinned") && with.contains("weft-sidecar"),
        "{with}"
    );
    let again = weft(&["inject", "-f", "-"], &with);
    assert_eq!((text(&again.stdout), text(&again.stderr)), (with.clone(), "pod/p unchanged\n".to_owned()));
    let back = weft(&["uninject", "-q", "-f", "-"], &with);
    assert_eq!((text(&back.stdout), text(&back.stderr)), (POD.to_owned(), String::new()));
}

#[test]
fn nothing_is_printed_when_one_of_the_files_is_wrong() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, content: &str| std::fs::write(directory.path().join(name), content).expect("written");
    file("a.yaml", POD);
    file("b.yaml", &format!("{POD}    ports:\n    - containerPort: http\n"));
    let path = directory.path().to_string_lossy().into_owned();
    let refused = weft(&["inject", "-f", &path], "");
    assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(1), String::new()));
    let told = text(&refused.stderr);
    assert!(told.contains("b.yaml:11:22") && told.contains("\"http\" is no port"), "{told}");
    assert!(told.contains("1 of 2 files cannot be changed; nothing was printed"), "{told}");
}

#[test]
fn a_directory_is_printed_as_one_stream() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["a.yaml", "b.yaml"] {
        std::fs::write(directory.path().join(name), POD.trim_end()).expect("written");
    }
    let printed = weft(&["inject", "-f", &directory.path().to_string_lossy()], "");
    let stream = text(&printed.stdout);
    assert_eq!(stream.matches("\n---\n").count(), 1, "{stream}");
    assert_eq!(text(&printed.stderr), "pod/p injected\npod/p injected\n");
}

/// Versions of Kubernetes: the first whose published schemas are taken, the one that we are built for, a newer one.
const VERSIONS: [&str; 3] = ["1.29", "1.33", "1.36"];

/// Objects that `weft install` prints.
const OBJECTS: usize = 22;

/// Has the schemas of Kubernetes judge manifests; how many objects they let through.
fn judged(manifests: &str) -> usize {
    let script = format!("{}/../tests/it/programs/kubernetes_schemas.py", env!("CARGO_MANIFEST_DIR"));
    let mut child = Command::new("python3")
        .arg(script)
        .args(VERSIONS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    child.stdin.take().expect("piped").write_all(manifests.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let said = text(&output.stdout);
    let valid = said.trim().strip_prefix("ok ").filter(|_| output.status.success());
    valid.unwrap_or_else(|| panic!("{said}")).parse().expect("a number")
}

#[test]
fn the_schemas_of_kubernetes_accept_what_install_and_inject_print() {
    let test = "the_schemas_of_kubernetes_accept_what_install_and_inject_print";
    if needs::python(test, "kubernetes_validate") {
        return;
    }
    let installed = weft(&["install"], "");
    assert!(installed.status.success());
    assert_eq!(judged(&text(&installed.stdout)), OBJECTS * VERSIONS.len());
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane/tests/inject");
    for (name, objects) in [("kinds.yaml", 7), ("annotations.yaml", 5), ("deployment.yaml", 2), ("probes.yaml", 1)] {
        let injected = weft(&["inject", "-q", "-f", &corpus.join(name).to_string_lossy()], "");
        assert_eq!(judged(&text(&injected.stdout)), objects * VERSIONS.len(), "{name}");
    }
    let misspelt = text(&installed.stdout).replace("failurePolicy", "failurePolicies");
    assert!(std::panic::catch_unwind(|| judged(&misspelt)).is_err(), "they look at every field");
}

/// Has the types of the Compose Specification judge a file; how many services it has.
fn judged_compose(file: &str) -> usize {
    let script = format!("{}/../tests/it/programs/compose_files.py", env!("CARGO_MANIFEST_DIR"));
    let mut child =
        Command::new("python3").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
    child.stdin.take().expect("piped").write_all(file.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let said = text(&output.stdout);
    let valid = said.trim().strip_prefix("ok ").filter(|_| output.status.success());
    valid.unwrap_or_else(|| panic!("{said}")).parse().expect("a number")
}

/// What the types of the specification do not take is what compose replaces before.
fn interpolated(file: &str) -> String {
    file.replace("${NGINX_VERSION:-1.29}", "1.29").replace("${PUBLISHED:-8080}", "8080")
}

#[test]
fn a_compose_file_gets_sidecars_that_compose_understands_and_loses_them_again() {
    let test = "a_compose_file_gets_sidecars_that_compose_understands_and_loses_them_again";
    if needs::python(test, "compose_spec") {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let analyzed = weft(&["analyze", &root.join("deploy/compose/resources/mesh.yaml").to_string_lossy()], "");
    assert!(analyzed.status.success(), "{}", text(&analyzed.stdout));
    for (file, before, after) in
        [("deploy/compose/docker-compose.yml", 7, 13), ("control-plane/tests/inject/compose.yaml", 5, 11)]
    {
        let original = std::fs::read_to_string(root.join(file)).expect("a file");
        assert_eq!(judged_compose(&interpolated(&original)), before);
        let injected = text(&weft(&["inject", "-q", "-f", &root.join(file).to_string_lossy()], "").stdout);
        assert_eq!(judged_compose(&interpolated(&injected)), after, "{file}");
        assert_eq!(text(&weft(&["inject", "-q", "-f", "-"], &injected).stdout), injected);
        assert_eq!(text(&weft(&["uninject", "-q", "-f", "-"], &injected).stdout), original);
        let misspelt = interpolated(&injected).replace("network_mode", "networkmode");
        assert!(std::panic::catch_unwind(|| judged_compose(&misspelt)).is_err(), "they look at every field");
    }
}

#[test]
fn kubectl_reads_what_install_prints() {
    let test = "kubectl_reads_what_install_prints";
    if needs::program(test, "kubectl", &["version", "--client"]) {
        return;
    }
    let installed = text(&weft(&["install"], "").stdout);
    // kubectl asks a server which kinds there are, and this one has not all of them: patching locally needs none.
    let mut child = Command::new("kubectl")
        .args(["label", "--local", "-o", "name", "-f", "-", "read=yes"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    child.stdin.take().expect("piped").write_all(installed.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let names = text(&output.stdout);
    assert!(output.status.success() && names.lines().count() == OBJECTS, "{names}");
}

#[test]
fn a_sidecar_that_drains_still_carries_what_its_app_calls_until_its_signal() {
    let mesh = TestMesh::builder("pod-drain").workload(Workload::demo("catalog", "http")).calls("catalog").start();
    let admin = mesh.client_admin();
    mesh.weft(&["drain", "--admin", &admin.to_string()]).ok();
    eventually("draining", || match get(admin, "localhost", "/ready")? {
        (503, text) if text.contains("draining") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    ok(get(mesh.local("catalog"), "catalog", "/items")).expect("the app may still call");
    signal(mesh.client_pid(), Signal::TERM);
    eventually("the end", || match get(admin, "localhost", "/live") {
        Ok(answer) => Err(format!("{answer:?}")),
        Err(_) => Ok(()),
    });
}
