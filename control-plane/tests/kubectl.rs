//! The API as the real kubectl sees it, over a store in memory. Without kubectl the test is left out, and says so.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use weft_control_plane::{
    api::{self, ApiState, access::Access},
    store::Store,
};

const KUBECTL: &str = "/usr/bin/kubectl";

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec:
  selector: {app: cart}
  ports:
  - {port: 80, name: http}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec:
  hostnames: [cart.example]
  parentRefs: [{kind: Service, group: '', name: cart, port: 80}]
  rules:
  - backendRefs: [{name: cart, port: 80}]
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: cart, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: cart}]
  timeouts: {request: 2s}
  retries:
    attempts: 3
";

/// A server on a port of its own, and a home for kubectl.
struct Cluster {
    url: String,
    home: PathBuf,
    _runtime: tokio::runtime::Runtime,
}

/// What kubectl printed, and whether it was content.
#[derive(Debug)]
struct Said {
    ok: bool,
    out: String,
    err: String,
}

impl Cluster {
    /// None when there is no kubectl.
    fn start(test: &str) -> Option<Self> {
        if !Path::new(KUBECTL).exists() {
            leave_out(&format!("{test}: {KUBECTL} does not exist"));
            return None;
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let router = api::router(ApiState::of(Store::memory(), Access::dev()));
        runtime.spawn(async move { axum::serve(listener, router).await });
        let home = std::env::temp_dir().join(format!("weft-kubectl-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&home).expect("a directory");
        Some(Self { url, home, _runtime: runtime })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(KUBECTL);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &self.home);
        command.env("KUBECONFIG", self.home.join("none")).args(["--server", &self.url, "-n", "shop"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Said {
        said(self.command(arguments).output().expect("kubectl runs"))
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert!(said.ok, "{arguments:?}: {said:?}");
        said.out
    }

    /// With this text as its standard input.
    fn fed(&self, arguments: &[&str], text: &str) -> Said {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().expect("kubectl runs");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("read");
        said(child.wait_with_output().expect("ends"))
    }

    fn applied(&self) {
        let said = self.fed(&["apply", "-f", "-"], OBJECTS);
        assert!(said.ok, "{said:?}");
    }

    fn field(&self, object: &str, path: &str) -> String {
        self.ok(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

fn said(output: Output) -> Said {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

fn leave_out(why: &str) {
    println!("left out: {why}");
    if let Some(file) = std::env::var_os("WEFT_LEFT_OUT")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(file)
    {
        let _ = writeln!(file, "{why}");
    }
}

#[test]
fn apply_creates_and_is_idempotent_and_get_prints_tables() {
    let Some(cluster) = Cluster::start("apply") else { return };
    let first = cluster.fed(&["apply", "-f", "-"], OBJECTS);
    assert!(first.ok, "{first:?}");
    for line in [
        "service/cart created",
        "httproute.gateway.networking.k8s.io/cart created",
        "trafficpolicy.weft.dev/cart created",
    ] {
        assert!(first.out.contains(line), "{first:?}");
    }
    assert!(!first.err.contains("Warning"), "{first:?}");
    let again = cluster.fed(&["apply", "-f", "-"], OBJECTS);
    assert_eq!(again.out.matches("unchanged").count(), 3, "{again:?}");

    let table = cluster.ok(&["get", "svc"]);
    let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
    assert_eq!(words[1][..5], ["cart", "ClusterIP", "<none>", "<none>", "80/TCP"]);
    assert!(cluster.ok(&["get", "services", "-o", "wide"]).contains("app=cart"));
    assert!(cluster.ok(&["get", "httproute", "-A"]).contains("cart.example"));
    assert!(cluster.ok(&["get", "tp"]).contains("Service/cart"));
    assert_eq!(cluster.field("svc/cart", ".spec.ports[0].targetPort"), "80");
    assert_eq!(cluster.ok(&["get", "svc", "-l", "app in (cart)", "-o", "name"]), "service/cart\n");
    assert_eq!(cluster.ok(&["get", "svc", "-l", "app!=cart", "-o", "name"]), "");
    assert_eq!(cluster.ok(&["get", "svc", "--field-selector", "metadata.name=cart", "-o", "name"]), "service/cart\n");
    assert!(cluster.ok(&["get", "weft"]).contains("cart"), "the category lists Weft's kinds");
}

#[test]
fn describe_and_explain_tell_of_every_kind() {
    let Some(cluster) = Cluster::start("describe") else { return };
    cluster.applied();
    let service = cluster.ok(&["describe", "svc", "cart"]);
    assert!(service.contains("ClusterIP") && service.contains("80/TCP"), "{service}");
    assert!(cluster.ok(&["describe", "trafficpolicy", "cart"]).contains("Attempts"));
    assert!(cluster.ok(&["describe", "httproute", "cart"]).contains("cart.example"));
    let explained = cluster.ok(&["explain", "trafficpolicy.spec.retries"]);
    assert!(explained.contains("attempts") && explained.contains("Attempts after the first"), "{explained}");
    assert!(cluster.ok(&["explain", "svc.spec.ports"]).contains("targetPort"));
    assert!(cluster.ok(&["explain", "httproute.spec.rules", "--recursive"]).contains("backendRefs"));
    assert!(cluster.ok(&["explain", "meshconfig"]).contains("What applies where no policy says otherwise"));
    let old = cluster.run(&["explain", "trafficpolicy.spec", "--output", "plaintext-openapiv2"]);
    assert!(old.ok && old.out.contains("loadBalancing"), "{old:?}");
    let resources = cluster.ok(&["api-resources", "-o", "name"]);
    assert_eq!(resources.lines().count(), api::kinds::KINDS.len(), "{resources}");
}

#[test]
fn edit_and_all_kinds_of_patch_change_what_they_name() {
    let Some(cluster) = Cluster::start("edit") else { return };
    cluster.applied();
    let edit = |object: &str, program: &str| {
        let output = cluster.command(&["edit", object]).env("EDITOR", program).output().expect("kubectl runs");
        let said = said(output);
        assert!(said.ok && said.out.contains("edited"), "{said:?}");
    };
    edit("tp/cart", "sed -i s/attempts:.3/attempts:\\ 5/");
    assert_eq!(cluster.field("tp/cart", ".spec.retries.attempts"), "5");
    edit("svc/cart", "sed -i s/name:.http/name:\\ web/");
    assert_eq!(cluster.field("svc/cart", ".spec.ports[0].name"), "web");

    cluster.ok(&["patch", "svc", "cart", "-p", r#"{"spec":{"ports":[{"port":90,"name":"grpc"}]}}"#]);
    assert_eq!(cluster.field("svc/cart", ".spec.ports[*].port"), "80 90", "a strategic patch merges ports");
    cluster.ok(&["patch", "tp", "cart", "--type", "merge", "-p", r#"{"spec":{"retries":{"attempts":1}}}"#]);
    assert_eq!(cluster.field("tp/cart", ".spec.retries.attempts"), "1");
    let operations =
        r#"[{"op":"test","path":"/spec/retries/attempts","value":1},{"op":"remove","path":"/spec/timeouts"}]"#;
    cluster.ok(&["patch", "tp", "cart", "--type", "json", "-p", operations]);
    assert_eq!(cluster.field("tp/cart", ".spec.timeouts"), "");
    let refused = cluster.run(&[
        "patch",
        "tp",
        "cart",
        "--type",
        "json",
        "-p",
        &operations.replace("\"value\":1", "\"value\":7"),
    ]);
    assert!(!refused.ok && refused.err.contains("testing value /spec/retries/attempts failed"), "{refused:?}");
    let refused = cluster.run(&["patch", "tp", "cart", "--type", "strategic", "-p", "{}"]);
    assert!(!refused.ok && refused.err.contains("no strategic merge patch"), "{refused:?}");
    let refused = cluster.fed(&["apply", "--server-side", "-f", "-"], OBJECTS);
    assert!(!refused.ok && refused.err.contains("use client-side apply"), "{refused:?}");
    cluster.ok(&["label", "svc", "cart", "tier=back"]);
    cluster.ok(&["annotate", "svc", "cart", "note=x"]);
    assert_eq!(cluster.field("svc/cart", ".metadata.labels.tier"), "back");
}

#[test]
fn a_dry_run_on_the_server_checks_and_writes_nothing() {
    let Some(cluster) = Cluster::start("dryrun") else { return };
    let said = cluster.fed(&["apply", "--dry-run=server", "-f", "-"], OBJECTS);
    assert!(said.ok && said.out.contains("service/cart created (server dry run)"), "{said:?}");
    assert_eq!(cluster.ok(&["get", "svc", "-o", "name"]), "");
    let said = cluster.fed(&["apply", "--dry-run=server", "-f", "-"], &OBJECTS.replace("attempts: 3", "attempts: 99"));
    assert!(!said.ok && said.err.contains("spec.retries.attempts: 99 is too many (0 to 10)"), "{said:?}");
}

#[test]
fn mistakes_are_refused_with_path_value_and_hint() {
    let Some(cluster) = Cluster::start("mistakes") else { return };
    let bad = OBJECTS.replace("attempts: 3", "attempts: 3\n    atempts: 4\n  colour: red");
    let said = cluster.fed(&["apply", "-f", "-"], &bad);
    assert!(!said.ok, "{said:?}");
    assert!(said.err.contains("spec.retries.atempts\" (did you mean \"attempts\"?)"), "{said:?}");
    assert!(said.err.contains("unknown field \"spec.colour\""), "{said:?}");
    let said = cluster.fed(&["apply", "--validate=warn", "-f", "-"], &bad);
    assert!(said.ok && said.err.contains("Warning: unknown field \"spec.colour\""), "{said:?}");
    assert_eq!(cluster.field("tp/cart", ".spec.colour"), "");
    let said = cluster.fed(&["apply", "-f", "-"], &OBJECTS.replace("port: 80, name: http", "port: 99999"));
    assert!(said.err.contains("99999 is not a port (1 to 65535)"), "{said:?}");
}

#[test]
fn replacing_an_old_version_is_a_conflict_and_delete_removes_all() {
    let Some(cluster) = Cluster::start("replace") else { return };
    cluster.applied();
    let old = cluster.ok(&["get", "svc", "cart", "-o", "yaml"]);
    cluster.ok(&["label", "svc", "cart", "tier=back"]);
    let said = cluster.fed(&["replace", "-f", "-"], &old);
    assert!(!said.ok && said.err.contains("(Conflict)") && said.err.contains("has been modified"), "{said:?}");
    let said = cluster.fed(&["diff", "-f", "-"], &OBJECTS.replace("attempts: 3", "attempts: 4"));
    assert!(said.out.contains("+    attempts: 4"), "{said:?}");
    let said = cluster.fed(&["delete", "-f", "-"], OBJECTS);
    assert!(said.ok && said.out.matches("deleted").count() == 3, "{said:?}");
    assert!(cluster.run(&["get", "svc,httproute,tp"]).err.contains("No resources found"));
    cluster.ok(&["create", "namespace", "shop"]);
    cluster.applied();
    cluster.ok(&["delete", "namespace", "shop"]);
    assert!(cluster.run(&["get", "svc,httproute,tp"]).err.contains("No resources found"));
}

/// Ends its child, whatever the test does.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_watch_sees_changes_as_they_are_made() {
    let Some(cluster) = Cluster::start("watch") else { return };
    cluster.applied();
    let mut child = Ended(cluster.command(&["get", "tp", "-w"]).spawn().expect("kubectl runs"));
    let out = BufReader::new(child.0.stdout.take().expect("piped"));
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let until = Instant::now() + Duration::from_secs(30);
    let wait = |text: &str| {
        loop {
            let line = lines.recv_timeout(until.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("no line with {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    };
    wait("cart");
    cluster.ok(&["patch", "tp", "cart", "--type", "merge", "-p", r#"{"spec":{"timeouts":{"request":"77s"}}}"#]);
    wait("77s");
    cluster.ok(&["delete", "tp", "cart"]);
    wait("77s");
}
