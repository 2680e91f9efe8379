//! Reviews as an API server sends them: decided, and over TLS by a client that knows only the caBundle.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use super::*;
use crate::{
    api::serve::{
        self,
        https::{Https, Source},
    },
    ca::Ca,
};

const NAME: &str = "weft-webhook.weft-system.svc";

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "web-7d4b9c-", "namespace": "shop", "labels": {"app": "web"}, "uid": "1"},
        "spec": {
            "serviceAccountName": "web",
            "volumes": [{"name": "kube-api-access-x", "projected": {"sources": []}}],
            "containers": [{"name": "web", "image": "web:1", "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                "livenessProbe": {"httpGet": {"path": "/", "port": 8080, "scheme": "HTTP"}, "timeoutSeconds": 1}}],
        },
    })
}

/// As the API server of Kubernetes 1.33 writes it.
fn asked(pod: &Value) -> Value {
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let resource = json!({"group": "", "version": "v1", "resource": "pods"});
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "kind": kind, "resource": resource,
            "requestKind": kind, "requestResource": resource, "namespace": "shop", "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller", "groups": []},
            "object": pod, "oldObject": null, "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

fn answer(pod: &Value) -> Value {
    let answer = review(&asked(pod), &Options::of("weft-system")).expect("a review");
    assert_eq!((&answer["apiVersion"], &answer["kind"]), (&json!(VERSION), &json!("AdmissionReview")));
    assert_eq!(answer["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    answer["response"].clone()
}

/// Does what an API server does with a patch of objects and whole lists.
fn patched(mut object: Value, response: &Value) -> Value {
    let patch = STANDARD.decode(response["patch"].as_str().expect("a patch")).expect("base64");
    for operation in serde_json::from_slice::<Vec<Value>>(&patch).expect("JSON") {
        let path = operation["path"].as_str().expect("a path");
        let (parent, name) = path.rsplit_once('/').expect("a member");
        let name = name.replace("~1", "/").replace("~0", "~");
        let parent = object.pointer_mut(parent).and_then(Value::as_object_mut).expect("the parent is there");
        match operation["op"].as_str() {
            Some("add" | "replace") => _ = parent.insert(name, operation["value"].clone()),
            Some("remove") => _ = parent.remove(&name).expect("it is there"),
            other => panic!("{other:?}"),
        }
    }
    object
}

#[test]
fn the_patch_makes_what_the_filter_makes() {
    let response = answer(&pod());
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let mut expected = pod();
    inject::pod(&mut expected, &Options::of("weft-system")).expect("injected");
    let found = patched(pod(), &response);
    assert_eq!(found, expected);
    assert_eq!(found["spec"]["volumes"].as_array().map(Vec::len), Some(2), "what was there stays");
}

#[test]
fn what_has_or_wants_no_sidecar_is_let_through_as_it_is() {
    let allowed = json!({"allowed": true, "uid": "705ab4f5-6393-11e8-b7cc-42010a800002"});
    let mut out = pod();
    out["metadata"]["annotations"] = json!({"weft.dev/inject": "disabled"});
    assert_eq!(answer(&out), allowed);
    let injected = patched(pod(), &answer(&pod()));
    assert_eq!(answer(&injected), allowed, "injected before it came here");
    let mut update = asked(&pod());
    update["request"]["operation"] = "UPDATE".into();
    let mut other = asked(&pod());
    other["request"]["kind"]["kind"] = "ConfigMap".into();
    for review_ in [update, other] {
        assert_eq!(review(&review_, &Options::of("x")).expect("a review")["response"], allowed);
    }
}

#[test]
fn a_pod_that_cannot_have_one_is_let_through_with_a_warning() {
    let mut host = pod();
    host["spec"]["hostNetwork"] = true.into();
    let mut other = pod();
    other["spec"]["containers"][0]["name"] = "istio-proxy".into();
    for (pod, word) in [(host, "spec.hostNetwork"), (other, "istio-proxy")] {
        let response = answer(&pod);
        assert_eq!((&response["allowed"], response.get("patch")), (&json!(true), None));
        let warning = response["warnings"][0].as_str().expect("a warning");
        assert!(warning.starts_with("weft: no sidecar: ") && warning.contains(word), "{warning}");
    }
}

#[test]
fn a_mistake_in_a_pod_is_refused_with_its_field() {
    let mut wrong = pod();
    wrong["metadata"]["annotations"] = json!({"weft.dev/exclude-inbound-ports": "http"});
    let response = answer(&wrong);
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["code"], 422);
    let message = response["status"]["message"].as_str().expect("a message");
    assert!(
        message.starts_with("weft: metadata.annotations.weft.dev/exclude-inbound-ports: \"http\": expected"),
        "{message}"
    );
}

#[test]
fn what_is_no_review_is_not_decided() {
    let options = Options::of("x");
    let mut old = asked(&pod());
    old["apiVersion"] = "admission.k8s.io/v1beta1".into();
    let mut nameless = asked(&pod());
    nameless["request"]["uid"] = "".into();
    for bad in [json!({}), json!([]), json!(null), old, nameless] {
        assert!(review(&bad, &options).is_err(), "{bad}");
    }
}

/// Serves the webhook with a certificate of an authority; its address and the authority.
async fn serve() -> (std::net::SocketAddr, Arc<Ca>, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = Arc::new(Ca::open(directory.path(), "weft.local", Duration::from_secs(3600)).expect("an authority"));
    let source = Source::Own { ca: Arc::clone(&ca), names: vec![NAME.into()] };
    let https = Https::new(source, std::time::SystemTime::now()).expect("a certificate");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("free");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(serve::serve(listener, router(Options::of("weft-system")), Some(https), 16));
    (address, ca, directory)
}

/// Sends a body with curl; status and body of the answer.
fn curl(address: std::net::SocketAddr, name: &str, bundle: &std::path::Path, body: &[u8]) -> (String, String) {
    let mut child = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
        .arg(bundle)
        .args(["--connect-to", &format!("{name}:443:{address}"), "--header", "Content-Type: application/json"])
        .args(["--data-binary", "@-", "--write-out", "\n%{http_code}", &format!("https://{name}/inject?timeout=10s")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl");
    // curl may have gone, and then there is no answer.
    let _ = child.stdin.take().expect("piped").write_all(body);
    let output = child.wait_with_output().expect("an end");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", ""));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { (status.into(), body.into()) } else { ("failed".into(), errors) }
}

#[tokio::test(flavor = "multi_thread")]
async fn reviews_are_answered_over_tls_that_the_ca_bundle_vouches_for() {
    let (address, ca, directory) = serve().await;
    let bundle = directory.path().join("bundle.pem");
    std::fs::write(&bundle, ca.roots_pem()).expect("written");
    let (status, body) = curl(address, NAME, &bundle, asked(&pod()).to_string().as_bytes());
    assert_eq!(status, "200", "{body}");
    let response = serde_json::from_str::<Value>(&body).expect("JSON")["response"].clone();
    assert_eq!(response, answer(&pod()));

    let (status, body) = curl(address, NAME, &bundle, b"{}");
    assert!(status == "400" && body.contains("AdmissionReview of admission.k8s.io/v1"), "{status} {body}");
    let (status, _) = curl(address, NAME, &bundle, &vec![b' '; 4 * 1024 * 1024]);
    assert_eq!(status, "413", "no API server sends more than 3 MiB");
    let (status, error) = curl(address, "other.weft-system.svc", &bundle, b"");
    assert!(status == "failed" && error.contains("SSL"), "{error}");
    let stranger = tempfile::tempdir().expect("a directory");
    let other = Ca::open(stranger.path(), "weft.local", Duration::from_secs(3600)).expect("an authority");
    std::fs::write(&bundle, other.roots_pem()).expect("written");
    let (status, _) = curl(address, NAME, &bundle, b"");
    assert_eq!(status, "failed", "another authority");
}
