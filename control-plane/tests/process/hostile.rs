//! Bad input over a real socket: a 4xx `Status` whose text says what is wrong, and nothing of it in the history. What
//! needs no socket is in the tests of the handlers.

use std::io;

use serde_json::json;

use crate::{
    control_plane::{ControlPlane, command},
    history,
    http::Reply,
};

const SERVICES: &str = "/api/v1/namespaces/shop/services";
const POLICIES: &str = "/apis/weft.dev/v1alpha1/namespaces/shop/trafficpolicies";
const ROLLBACK: &str = "/weft/v1/rollback";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const MIB: usize = 1024 * 1024;

fn started() -> (tempfile::TempDir, ControlPlane) {
    let directory = tempfile::tempdir().expect("a directory");
    let control_plane = ControlPlane::start(&mut command(&directory.path().join("data"), directory.path()));
    (directory, control_plane)
}

/// Nothing of it was taken, and the control plane still serves.
fn untouched(control_plane: &ControlPlane) {
    history::verified(&mut control_plane.client());
    let (_, events) = history::after(&mut control_plane.client(), 0);
    let written: Vec<_> = events.iter().filter(|event| history::is_of_client(event)).collect();
    assert!(written.is_empty(), "{written:?}");
    let log = control_plane.log();
    assert!(!log.contains("panicked"), "{log}");
}

fn policy(spec: &str) -> Vec<u8> {
    let head = r#""apiVersion":"weft.dev/v1alpha1","kind":"TrafficPolicy","metadata":{"name":"p"}"#;
    format!(r#"{{{head},"spec":{{"targetRefs":[{{"kind":"Service","name":"cart"}}],{spec}}}}}"#).into_bytes()
}

#[test]
fn what_cannot_be_read_is_a_4xx_that_says_why() {
    let (_directory, control_plane) = started();
    let deep = |open: &str| open.repeat(10_000).into_bytes();
    let not_utf8 = b"{\"metadata\":{\"name\":\"\xff\xfe\"}}".to_vec();
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" } }).to_string().into_bytes();
    let strict = &format!("{POLICIES}?fieldValidation=Strict");
    let cases: Vec<(&str, &str, Vec<u8>, u16, &str)> = vec![
        (SERVICES, JSON, b"{\n \"kind\": }".to_vec(), 400, "line 2 column 10"),
        (SERVICES, JSON, deep("["), 400, "recursion limit"),
        (SERVICES, JSON, deep("{\"a\":"), 400, "recursion limit"),
        (SERVICES, JSON, not_utf8.clone(), 400, "invalid unicode"),
        (SERVICES, JSON, Vec::new(), 400, "the body is empty"),
        (SERVICES, JSON, pod, 400, "Pod"),
        (SERVICES, YAML, b"a: [1\nb: 2\n".to_vec(), 400, "line 2"),
        (SERVICES, YAML, deep("["), 400, "recursion limit"),
        (SERVICES, YAML, deep("- "), 400, "nested deeper than 64 levels"),
        (SERVICES, YAML, not_utf8.clone(), 400, "UTF-8"),
        (SERVICES, "application/vnd.kubernetes.protobuf", deep("["), 415, "send JSON instead"),
        (SERVICES, "text/plain", b"{}".to_vec(), 415, "\"text/plain\" is not supported: application/json"),
        ("/api/v1/namespaces/shop/pods", JSON, b"{}".to_vec(), 404, "\"/api/v1/namespaces/shop/pods\""),
        (POLICIES, JSON, policy(r#""retries":{"attempts":"many"}"#), 422, "spec.retries.attempts"),
        (strict, JSON, policy(r#""retires":{"attempts":1}"#), 400, "did you mean \"retries\"?"),
        (ROLLBACK, JSON, deep("["), 400, "toRevision"),
        (ROLLBACK, JSON, not_utf8, 400, "toRevision"),
    ];
    for (path, content_type, body, code, words) in cases {
        let start = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let reply = control_plane.client().send_as("POST", path, content_type, &body);
        let reply = reply.unwrap_or_else(|error| panic!("{error}: {content_type} {start}"));
        let message = reply.body["message"].as_str().unwrap_or_default();
        assert!(reply.code == code && message.contains(words), "{content_type} {start}: {reply:?}");
        assert_eq!((&reply.body["kind"], &reply.body["code"]), (&"Status".into(), &code.into()), "{reply:?}");
        assert!(message.len() < 2000, "{message}");
    }
    untouched(&control_plane);
}

/// Sends a request whose body never fits, as a client does that looks at the answer only afterwards.
fn overfed(control_plane: &ControlPlane, path: &str, fields: &str, piece: &[u8], pieces: usize) -> io::Result<Reply> {
    let mut client = control_plane.client();
    client.head("POST", path, &format!("content-type: {JSON}\r\n{fields}"))?;
    for _ in 0..pieces {
        // It may stop reading: what counts is that the answer arrives.
        if client.write(piece).is_err() {
            break;
        }
    }
    client.reply()
}

#[test]
fn a_body_that_is_too_large_or_has_no_end_gets_its_answer() {
    let (_directory, control_plane) = started();
    let (piece, length) = (vec![b' '; MIB], format!("content-length: {}\r\n", 10 * MIB));
    let mut chunk = format!("{MIB:x}\r\n").into_bytes();
    chunk.extend_from_slice(&piece);
    chunk.extend_from_slice(b"\r\n");
    for path in [SERVICES, ROLLBACK] {
        let reply = overfed(&control_plane, path, &length, &piece, 10).expect("an answer");
        let message = reply.failed(413, "RequestEntityTooLarge");
        assert!(message.contains("too large: at most 3145728 bytes are taken"), "{message}");
        let reply = overfed(&control_plane, path, "transfer-encoding: chunked\r\n", &chunk, 10).expect("an answer");
        let message = reply.failed(413, "RequestEntityTooLarge");
        assert!(message.contains("too large: at most 3145728 bytes are taken"), "{message}");
    }
    // Without any length there is no body, whatever follows.
    let reply = overfed(&control_plane, SERVICES, "", &piece, 10).expect("an answer");
    let message = reply.failed(400, "BadRequest");
    assert!(message.contains("the body is empty") && message.contains("Content-Length"), "{message}");
    untouched(&control_plane);
}
