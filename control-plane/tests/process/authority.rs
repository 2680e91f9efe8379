//! The authority of a running control plane: its root is changed while a sidecar is connected and others enrol; what is
//! revoked is cut off; what it did is in the record.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    control_plane::{ControlPlane, LIMIT, command},
    http::Reply,
    sidecar::{Identity, enrol, enrol_with},
};

const CA: &str = "/weft/v1/ca";

fn send(control_plane: &ControlPlane, method: &str, path: &str, body: &Value) -> Reply {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let mut client = control_plane.client();
    client.send(method, path, &text).unwrap_or_else(|error| panic!("{error}: {}", control_plane.log()))
}

fn step(control_plane: &ControlPlane, step: &str) -> Reply {
    send(control_plane, "POST", &format!("{CA}/rotation"), &json!({ "step": step }))
}

/// The state, once it is so.
async fn until(control_plane: &ControlPlane, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + LIMIT;
    loop {
        let state = control_plane.get(CA).body;
        if holds(&state) {
            return state;
        }
        assert!(Instant::now() < deadline, "{what}: {state:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_empty(state: &Value, field: &str) -> bool {
    state["waiting"][field].as_array().is_some_and(Vec::is_empty)
}

fn token_file(control_plane: &ControlPlane, runtime: &Path) -> String {
    let path = runtime.join(format!("weft/dev-{}.token", control_plane.xds.port()));
    std::fs::read_to_string(path).expect("a token file")
}

async fn enrolled(control_plane: &ControlPlane, runtime: &Path, account: &str) -> Identity {
    let enrolled = enrol(control_plane.xds, runtime, account).await;
    enrolled.unwrap_or_else(|error| panic!("{account}: {error:#}: {}", control_plane.log()))
}

#[tokio::test]
async fn the_root_is_changed_while_a_sidecar_is_connected_and_in_each_phase_a_new_one_enrols() {
    let (data, runtime) = (tempfile::tempdir().expect("data"), tempfile::tempdir().expect("runtime"));
    let mut control_plane = ControlPlane::start(&mut command(data.path(), runtime.path()));
    let first = enrolled(&control_plane, runtime.path(), "cart").await;
    assert_eq!(first.chain().len(), 2, "leaf and issuing certificate");
    let old_token = token_file(&control_plane, runtime.path());
    let mut stream = first.follow("cart-1").await.expect("a stream");
    let bundle = stream.take(&first).await.expect("a bundle");
    assert_eq!((bundle.roots.len(), bundle.renew_issued_before), (1, 0));

    let prepared = step(&control_plane, "root-prepare");
    assert_eq!((prepared.code, &prepared.body["phase"]), (200, &json!("prepared")), "{prepared:?}");
    let (both, nonce) = stream.bundle().await.expect("pushed");
    assert_eq!(both.roots.len(), 2);
    let refused = step(&control_plane, "root-switch");
    let text = refused.body["message"].to_string();
    assert!(refused.code == 409 && text.contains("shop/cart-1") && text.contains("acknowledged"), "{refused:?}");
    enrolled(&control_plane, runtime.path(), "in-prepared").await;
    first.trust(&both).expect("roots");
    stream.acknowledge(nonce).await.expect("open");
    until(&control_plane, "acknowledged", |state| is_empty(state, "unacknowledged")).await;

    // The phase survives a crash.
    control_plane.kill();
    control_plane = ControlPlane::start(&mut command(data.path(), runtime.path()));
    let first = enrolled(&control_plane, runtime.path(), "cart").await;
    let mut stream = first.follow("cart-1").await.expect("a stream");
    assert_eq!(stream.take(&first).await.expect("a bundle"), both);
    until(&control_plane, "acknowledged", |state| is_empty(state, "unacknowledged")).await;

    let switched = step(&control_plane, "root-switch");
    assert_eq!((switched.code, &switched.body["phase"]), (200, &json!("switched")), "{switched:?}");
    let bundle = stream.take(&first).await.expect("pushed on the same stream");
    assert!(first.begins() * 1000 < bundle.renew_issued_before, "it is to renew");
    let refused = step(&control_plane, "root-finish");
    let text = refused.body["message"].to_string();
    assert!(refused.code == 409 && text.contains("shop/cart-1") && text.contains("still show"), "{refused:?}");
    enrolled(&control_plane, runtime.path(), "in-switched").await;
    let late = enrol_with(control_plane.xds, &old_token, "late").await;
    assert!(
        late.is_ok(),
        "who knows the old root alone still finds the control plane: {:#}",
        late.err().expect("some")
    );
    let renewed = first.renew("cart").await.expect("renewed");
    assert!(renewed.begins() * 1000 >= bundle.renew_issued_before, "once is enough");
    assert_ne!(renewed.chain()[1], first.chain()[1], "by the new issuer");
    stream.renewed(&renewed).await.expect("open");
    until(&control_plane, "renewed", |state| is_empty(state, "otherRoot")).await;

    let finished = step(&control_plane, "root-finish");
    assert_eq!((finished.code, &finished.body["phase"]), (200, &json!("stable")), "{finished:?}");
    let bundle = stream.take(&renewed).await.expect("pushed on the same stream");
    assert_eq!(bundle.roots, [both.roots[1].clone()]);
    enrolled(&control_plane, runtime.path(), "afterwards").await;
    renewed.renew("cart").await.expect("the control plane's own certificate followed");
    assert!(first.renew("cart").await.is_err(), "the old root is trusted no more");
    let record = control_plane.get(&format!("{CA}/audit?limit=1000")).body.to_string();
    for word in ["root-prepare", "root-switch", "root-finish", "\"issued\"", "/ns/shop/sa/in-switched", "dev_token"] {
        assert!(record.contains(word), "{word}: {record}");
    }
    assert!(!record.contains("weft1.") && !record.contains("PRIVATE"), "nothing secret");
    let metrics = control_plane.client().send("GET", "/metrics", "").map(|reply| format!("{reply:?}"));
    assert!(metrics.is_ok_and(|text| text.contains("weft_ca_rotation_phase") && text.contains("weft_ca_issued_total")));
}

#[tokio::test]
async fn what_is_revoked_is_cut_off_at_once_and_cannot_renew() {
    let (data, runtime) = (tempfile::tempdir().expect("data"), tempfile::tempdir().expect("runtime"));
    let control_plane = ControlPlane::start(&mut command(data.path(), runtime.path()));
    let (bad, good) =
        (enrolled(&control_plane, runtime.path(), "bad").await, enrolled(&control_plane, runtime.path(), "good").await);
    let mut streams = (bad.follow("bad-1").await.expect("a stream"), good.follow("good-1").await.expect("a stream"));
    streams.0.take(&bad).await.expect("a bundle");
    streams.1.take(&good).await.expect("a bundle");
    let body = json!({ "identity": "spiffe://weft.local/ns/shop/sa/bad", "reason": "stolen" });
    let revoked = send(&control_plane, "POST", &format!("{CA}/revocations"), &body);
    assert_eq!(revoked.code, 201, "{revoked:?}");
    let told = streams.0.ended().await.expect("it ends");
    assert!(told.code() == tonic::Code::PermissionDenied && told.message().contains("revoked"), "{told:?}");
    let bundle = streams.1.take(&good).await.expect("the others are told");
    assert_eq!(bundle.revocations.len(), 1);
    good.renew("good").await.expect("nobody else is meant");
    assert!(bad.renew("bad").await.is_err() && bad.follow("bad-1").await.is_err());
    let again = enrolled(&control_plane, runtime.path(), "bad").await;
    let mut stream = again.follow("bad-1").await.expect("by a token it comes back");
    stream.take(&again).await.expect("a bundle");

    // Of one certificate, by the serial number that the record tells.
    let renewed = again.renew("bad").await.expect("renewed");
    stream.renewed(&renewed).await.expect("open");
    let record = control_plane.get(&format!("{CA}/audit")).body;
    let mut issued = record["items"].as_array().expect("items").iter();
    let last = issued.find(|entry| entry["event"] == "issued" && entry["by"] == "certificate").expect("renewed");
    let revoked = send(&control_plane, "POST", &format!("{CA}/revocations"), &json!({ "serial": last["serial"] }));
    assert_eq!((revoked.code, &revoked.body["identity"]), (201, &json!("spiffe://weft.local/ns/shop/sa/bad")));
    let told = stream.ended().await.expect("also the stream of an earlier certificate of it ends");
    assert_eq!(told.code(), tonic::Code::PermissionDenied, "{told:?}");
    assert!(renewed.renew("bad").await.is_err());
    let id = revoked.body["id"].as_str().expect("an id");
    let withdrawn = send(&control_plane, "DELETE", &format!("{CA}/revocations/{id}"), &Value::Null);
    assert_eq!(withdrawn.code, 200, "{withdrawn:?}");
    renewed.renew("bad").await.expect("trusted again");
    let metrics = control_plane.client().send("GET", "/metrics", "").map(|reply| format!("{reply:?}")).expect("text");
    assert!(metrics.contains("weft_ca_refused_total{reason=") && metrics.contains("revoked"), "{metrics}");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_reason() {
    let (data, runtime) = (tempfile::tempdir().expect("data"), tempfile::tempdir().expect("runtime"));
    let control_plane = ControlPlane::start(&mut command(data.path(), runtime.path()));
    let revocations = format!("{CA}/revocations");
    for (path, body, code, word) in [
        (format!("{CA}/rotation"), json!({ "step": "root" }), 400, "root-prepare"),
        (format!("{CA}/rotation"), json!({ "step": "issuer", "x": 1 }), 400, "unknown field"),
        (format!("{CA}/rotation"), json!({ "step": "root-finish" }), 409, "phase stable"),
        (format!("{CA}/rotation"), json!({ "step": "issuer", "reason": "a\nb" }), 400, "control"),
        (revocations.clone(), json!({}), 400, "one of serial and identity"),
        (revocations.clone(), json!({ "serial": "0", "identity": "x" }), 400, "one of serial and identity"),
        (revocations.clone(), json!({ "serial": "0" }), 400, "hexadecimal"),
        (revocations.clone(), json!({ "identity": "cart" }), 400, "not a SPIFFE id"),
        (revocations, json!({ "identity": "spiffe://other/ns/a/sa/b" }), 400, "spiffe://weft.local/ns/NAMESPACE"),
    ] {
        let reply = send(&control_plane, "POST", &path, &body);
        assert!(reply.code == code && reply.body["message"].to_string().contains(word), "{body}: {reply:?}");
    }
    assert_eq!(send(&control_plane, "DELETE", &format!("{CA}/revocations/none"), &Value::Null).code, 404);
}

#[test]
fn bad_lifetimes_and_half_of_the_files_stop_the_start() {
    let (data, runtime) = (tempfile::tempdir().expect("data"), tempfile::tempdir().expect("runtime"));
    for (flags, words) in [
        (&["--svid-lifetime", "9s"] as &[&str], "10s to 90d"),
        (&["--svid-lifetime", "91d"], "10s to 90d"),
        (&["--ca-cert", "a.pem"], "--ca-key"),
        (&["--ca-cert", "a.pem", "--ca-key", "b.pem", "--ca-roots", "c.pem"], "--ca-cert a.pem"),
    ] {
        let output = command(data.path(), runtime.path()).args(flags).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(words), "{flags:?}: {text}");
    }
}
