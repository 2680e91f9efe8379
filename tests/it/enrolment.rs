//! A mesh beyond the laptop: a control plane without `--dev`, workloads that enrol with tokens of their own, and those
//! that should not get in.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    net::{eventually, free, get, ok},
    process::Process,
};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");
const TRANSFER: &str = "apiVersion: v1\nkind: Service\nmetadata:\n  name: payments\nspec:\n  selector: {app: payments}\n  \
                        ports: [{name: http, port: 80, appProtocol: http}]\n";

/// A control plane with TLS, tokens and roles.
struct Plane {
    dir: PathBuf,
    api: SocketAddr,
    xds: SocketAddr,
    _process: Process,
}

impl Plane {
    fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("weft-it-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("resources")).expect("a directory");
        std::fs::write(dir.join("resources/payments.yaml"), TRANSFER).expect("writable");
        let (api, xds) = (free(), free());
        let mut command = Command::new(WEFT);
        command.args(["control-plane", "--api-listen", &api.to_string(), "--xds-listen", &xds.to_string()]);
        command.arg("--data-dir").arg(dir.join("data")).arg("--resources").arg(dir.join("resources"));
        let process = Process::start(command.env("WEFT_LOG", "info"), &dir.join("control-plane.log"));
        let plane = Self { dir, api, xds, _process: process };
        eventually("the control plane", || plane.weft(&["token", "list"]));
        plane
    }

    /// A command of an administrator; what it printed.
    fn weft(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(WEFT);
        let data = |name: &str| self.dir.join("data").join(name);
        command.args(args).args(["--server", &format!("https://localhost:{}", self.api.port())]);
        command.arg("--ca-file").arg(data("root.pem")).arg("--token-file").arg(data("admin.token"));
        let output = command.output().map_err(|error| error.to_string())?;
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        if output.status.success() { Ok(text) } else { Err(text) }
    }

    /// A new join token in a file.
    fn token(&self, file: &str, flags: &[&str]) -> PathBuf {
        let path = self.dir.join(file);
        let out = path.to_string_lossy().into_owned();
        let line = [&["token", "create", "--ttl", "5m", "--out", &out][..], flags].concat();
        self.weft(&line).unwrap_or_else(|error| panic!("{error}"));
        path
    }

    /// A sidecar without an app, and its admin listener.
    fn sidecar(&self, name: &str, token: &Path, flags: &[&str]) -> (Process, SocketAddr) {
        let admin = free();
        let mut command = Command::new(WEFT);
        command.args(["sidecar", "--name", name, "--xds", &self.xds.to_string(), "--admin-listen", &admin.to_string()]);
        command.arg("--token").arg(token).args(flags).env("WEFT_LOG", "info");
        (Process::start(&mut command, &self.dir.join(format!("{name}.log"))), admin)
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the logs are kept in {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Waits until a process says this in its log.
fn says(process: &Process, part: &str) {
    eventually(part, || if process.output().contains(part) { Ok(()) } else { Err(process.output()) });
}

#[test]
fn workloads_enrol_with_join_tokens_and_whoever_has_none_of_their_own_stays_out() {
    let plane = Plane::start("enrolment");
    // As whoever runs the app got it from whoever runs the mesh.
    let own = plane.token("web.token", &["--service-account", "web", "--name", "web", "--label", "app=web"]);
    let app = free();
    let (admin, listen) = (free().to_string(), app.to_string());
    let mut command = Command::new(WEFT);
    command.args(["run", "--name", "web", "--port", &format!("main:{}/http", app.port()), "--admin-listen", &admin]);
    command.args(["--xds", &plane.xds.to_string()]).arg("--token").arg(&own);
    command.args(["--", WEFT, "demo-service", "catalog", "--listen", &listen]);
    let web = Process::start(command.env("WEFT_LOG", "info"), &plane.dir.join("web.log"));
    let token = plane.token("client.token", &["--service-account", "client"]);
    let local = free();
    let (_client, _) = plane.sidecar("client", &token, &["--upstream", &format!("web={}", local.port())]);
    eventually("a call through the mesh", || {
        ok(get(local, "web", "/items")).map_err(|error| format!("{error}; {}", web.output()))
    });

    let (again, admin) = plane.sidecar("again", &token, &["--service-account", "client"]);
    says(&again, "with another key");
    assert!(ok(get(admin, "localhost", "/ready")).is_err(), "it has no certificate");
    let foreign = plane.token("foreign.token", &["--service-account", "web"]);
    let (other, _) = plane.sidecar("other", &foreign, &["--service-account", "client"]);
    says(&other, "not for spiffe://weft.local/ns/default/sa/client");
    // Somebody who took over a workload, with its token for its labels, wants the calls to another service.
    let bound = plane.token("bound.token", &["--service-account", "thief", "--label", "app=thief"]);
    let (thief, _) = plane.sidecar("thief", &bound, &["--label", "app=payments", "--port", "80"]);
    says(&thief, "its certificate is for the labels");
    let endpoints = plane.weft(&["endpoints", "payments"]).unwrap_or_else(|text| text);
    assert!(!endpoints.contains("thief"), "{endpoints}");

    let list = plane.weft(&["token", "list"]).expect("listed");
    let states = |state: &str| list.lines().filter(|line| line.contains("join") && line.contains(state)).count();
    assert_eq!((states(" used "), states(" valid ")), (3, 1), "{list}");
    let secret = std::fs::read_to_string(&own).expect("a token");
    let secret = secret.lines().next().and_then(|line| line.rsplit('.').next()).expect("a secret");
    let log = std::fs::read_to_string(plane.dir.join("control-plane.log")).expect("a log");
    assert!(log.contains("join token made") && log.contains("join token used"), "{log}");
    assert!(log.contains("reason=\"other_key\"") && log.contains("reason=\"wrong_identity\""), "{log}");
    assert!(!log.contains(secret) && !list.contains(secret));
}
