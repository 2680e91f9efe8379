//! The commands against the control plane's own API, in this process, over a store in memory.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Parser as _;
use serde_json::Value;
use tokio::sync::watch;
use weft_control_plane::{
    api::{ApiState, access::Access, router},
    ca::{
        Ca,
        audit::Audit,
        enrolment::{Enrolment, joins::Joins},
    },
    push::Reflected,
    store::{HistoryFilter, Key, Store},
};

use crate::{
    apply,
    args::{Cli, Command},
    kinds::Kinds,
    objects, served,
    server::Server,
};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {x: y}}\n\
    spec: {ports: [{port: 80}]}\n";
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  \
    parentRefs: [{group: '', kind: Service, name: a}]\n  rules:\n  - backendRefs:\n    - {name: a, port: 80}\n";

/// An API, a directory for files, and what is in the store.
struct Api {
    store: Store,
    url: String,
    directory: PathBuf,
    /// What a compiler would have come to.
    reflected: watch::Sender<Reflected>,
    /// Where join tokens are.
    enrolment: Enrolment,
}

impl Api {
    async fn start(name: &str) -> Self {
        let store = Store::memory();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut state = ApiState::of(store.clone(), Access::dev());
        let reflected = watch::Sender::new(Reflected::default());
        state.pushed.reflected = reflected.subscribe();
        let directory = std::env::temp_dir().join(format!("weft-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        // Beside, not in it: files of the authority are no resources.
        let ca = Arc::new(Ca::open(&directory.with_extension("ca"), "weft.local", Duration::from_secs(60)).unwrap());
        let enrolment = Enrolment::new(ca, Joins::memory().unwrap(), Audit::in_memory());
        state.enrolment = Some(enrolment.clone());
        let routes = router(state);
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { store, url, directory, reflected, enrolment }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// The exit code of a command line.
    async fn weft(&self, line: &[&str]) -> u8 {
        let server = ["--server", self.url.as_str()];
        let words = ["weft"].iter().chain(line).chain(&server);
        let cli = Cli::try_parse_from(words).unwrap();
        let code = Box::pin(served(cli.command)).await.unwrap_or(1.into());
        (0..=3).find(|known| format!("{code:?}") == format!("{:?}", std::process::ExitCode::from(*known))).unwrap()
    }

    fn object(&self, kind: &str, name: &str) -> Option<Value> {
        Some((*self.store.get(&Key::new(kind, "default", name))?.object).clone())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).ok();
        std::fs::remove_dir_all(self.directory.with_extension("ca")).ok();
    }
}

#[tokio::test]
async fn applying_creates_then_changes_nothing_then_removes_what_left_the_file() {
    let api = Api::start("apply").await;
    let file = api.write("a.yaml", &format!("{ROUTE}---\n{SERVICE}"));
    assert_eq!(api.weft(&["apply", "-f", &file, "--dry-run"]).await, 3, "the service is not there for a dry run");
    assert!(api.object("Service", "a").is_none());
    assert_eq!(api.weft(&["apply", "-f", &file, "--reason", "first é"]).await, 0, "services come before routes");
    assert_eq!(api.object("Service", "a").unwrap()["metadata"]["labels"]["x"], "y");
    let revision = api.store.revision();
    assert_eq!(api.weft(&["apply", "-f", &file]).await, 0);
    assert_eq!(api.store.revision(), revision, "applied again, nothing is written");
    let file = api.write("a.yaml", &SERVICE.replace(", labels: {x: y}", ""));
    assert_eq!(api.weft(&["diff", "-f", &file]).await, 1);
    assert_eq!(api.weft(&["apply", "-f", &file]).await, 0);
    assert_eq!(api.object("Service", "a").unwrap()["metadata"]["labels"]["x"], Value::Null);
    assert_eq!(api.weft(&["diff", "-f", &file]).await, 0, "what the server fills in is no difference");
    let events = api.store.history(HistoryFilter::default()).await.unwrap().events;
    assert_eq!(events.last().unwrap().reason, "first é");
}

#[tokio::test]
async fn a_warning_of_the_server_is_exit_code_3_and_a_refusal_1() {
    let api = Api::start("warn").await;
    let route = api.write("r.yaml", ROUTE);
    assert_eq!(api.weft(&["apply", "-f", &route]).await, 3);
    let wrong = api.write("w.yaml", &SERVICE.replace("port: 80", "prot: 80"));
    assert_eq!(api.weft(&["apply", "-f", &wrong]).await, 1);
    assert!(api.object("Service", "a").is_none());
}

#[tokio::test]
async fn a_warning_names_its_object_and_equal_ones_of_two_objects_are_two() {
    let api = Api::start("warned").await;
    let file = api.write("r.yaml", &format!("{ROUTE}---\n{}", ROUTE.replace("name: r}", "name: s}")));
    let Command::Apply(args) =
        Cli::try_parse_from(["weft", "apply", "-f", &file, "--server", &api.url]).unwrap().command
    else {
        panic!("apply")
    };
    let server = Server::new(&args.server).await.unwrap();
    let kinds = Kinds::discover(&server).await.unwrap();
    for manifest in objects::load(&objects::read(&args.files).unwrap(), &kinds, None).unwrap() {
        apply::preview(&server, &manifest).await.unwrap();
    }
    let warned = server.warned();
    for title in ["HTTPRoute default/r: spec.", "HTTPRoute default/s: spec."] {
        assert!(warned.iter().any(|text| text.starts_with(title)), "{title}: {warned:?}");
    }
}

#[tokio::test]
async fn objects_are_listed_described_and_deleted_by_every_name() {
    let api = Api::start("get").await;
    let directory = api.directory.display().to_string();
    api.write("a.json", &weft_control_plane::api::body::yaml(SERVICE.as_bytes()).unwrap().value.to_string());
    api.write("r.yml", ROUTE);
    assert_eq!(api.weft(&["apply", "-f", &directory]).await, 0);
    for output in ["table", "wide", "json", "yaml", "name"] {
        for what in ["svc", "services/a", "svc,httproutes", "all"] {
            assert_eq!(api.weft(&["get", what, "-o", output]).await, 0, "{what} {output}");
        }
        assert_eq!(api.weft(&["get", "svc", "-A", "-l", "x=y", "-o", output]).await, 0, "{output}");
        assert_eq!(api.weft(&["history", "-o", output]).await, 0, "{output}");
    }
    for line in [vec!["get", "svc", "b"], vec!["get", "svcs"], vec!["describe", "svc", "b"], vec!["delete", "svc", "b"]]
    {
        assert_eq!(api.weft(&line).await, 1, "{line:?}");
    }
    assert_eq!(api.weft(&["describe", "svc/a"]).await, 0);
    assert_eq!(api.weft(&["delete", "svc"]).await, 1, "not all without being told so");
    assert_eq!(api.weft(&["delete", "svc", "-l", "x=z"]).await, 0);
    assert!(api.object("Service", "a").is_some());
    assert_eq!(api.weft(&["delete", "-f", &directory]).await, 0);
    assert!(api.object("Service", "a").is_none() && api.object("HTTPRoute", "r").is_none());
    assert_eq!(api.weft(&["delete", "svc", "a", "--ignore-not-found"]).await, 0);
}

#[tokio::test]
async fn a_rollback_brings_back_what_was_and_the_log_stays_whole() {
    let api = Api::start("rollback").await;
    let file = api.write("a.yaml", SERVICE);
    assert_eq!(api.weft(&["apply", "-f", &file]).await, 0);
    let revision = api.store.revision().to_string();
    assert_eq!(api.weft(&["delete", "svc/a"]).await, 0);
    assert_eq!(api.weft(&["rollback", "--to-revision", &revision, "--dry-run"]).await, 0);
    assert!(api.object("Service", "a").is_none());
    assert_eq!(api.weft(&["rollback", "--to-revision", &revision]).await, 0);
    assert!(api.object("Service", "a").is_some());
    assert_eq!(api.weft(&["rollback", "--to-revision", "99"]).await, 1);
    assert_eq!(api.weft(&["history", "verify"]).await, 0);
    assert_eq!(api.weft(&["history", "svc/a", "--diff"]).await, 0);
}

#[tokio::test]
async fn the_mesh_is_asked_about_while_no_sidecar_is_connected() {
    let api = Api::start("mesh").await;
    for (line, code) in [
        (vec!["status"], 0),
        (vec!["certs"], 0),
        (vec!["endpoints"], 0),
        (vec!["endpoints", "a"], 3),
        (vec!["config", "a"], 1),
        (vec!["check"], 3),
        (vec!["explain", "GET", "http://a/"], 1),
    ] {
        assert_eq!(api.weft(&line).await, code, "{line:?}");
    }
    let file = api.write("a.yaml", SERVICE);
    let apply = |limit| ["apply", "-f", &file, "--wait", "--timeout", limit];
    assert_eq!(api.weft(&apply("0s")).await, 1, "nothing has compiled it");
    api.reflected.send_replace(Reflected { view: 0, store: api.store.revision() });
    assert_eq!(api.weft(&apply("20s")).await, 0, "what was written before and is unchanged is waited for as well");
}

#[tokio::test]
async fn a_join_token_comes_with_the_roots_in_a_private_file_and_ends_when_it_is_revoked() {
    use std::os::unix::fs::PermissionsExt as _;
    let api = Api::start("join").await;
    let file = api.directory.join("web.token");
    let out = file.to_str().unwrap();
    let create = ["token", "create", "--service-account", "web", "-n", "shop", "--label", "app=web", "--out", out];
    assert_eq!(api.weft(&create).await, 0);
    assert_eq!(api.weft(&create).await, 1, "a file that is there is not written over");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("weft1j.") && text.contains("\n-----BEGIN CERTIFICATE-----"), "{text}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let token = api.enrolment.joins().verify(text.lines().next().unwrap()).unwrap();
    assert_eq!((token.namespace.as_str(), token.service_account.as_str()), ("shop", "web"));
    assert_eq!(token.attested.labels["app"], "web");
    assert_eq!(api.weft(&["token", "list"]).await, 0);
    assert_eq!(api.weft(&["token", "revoke", &token.id]).await, 0);
    let all = api.enrolment.joins().list().unwrap();
    assert!(all.iter().any(|other| other.id == token.id && other.revoked.is_some()));
    assert_eq!(api.weft(&["token", "revoke", "0000000000000000"]).await, 1);
    assert_eq!(api.weft(&["token", "create", "--service-account", "web", "--ttl", "25h"]).await, 1);
    assert_eq!(api.weft(&["token", "create", "--service-account", "control-plane", "-n", "weft-system"]).await, 1);
}
