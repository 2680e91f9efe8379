//! Requests that an inbound sidecar refuses before it knows where they go: a span and a line of the access log all the same.

use serde_json::Value;

use super::{
    holds,
    trace::{CALLER, context, fresh, lines, spans},
};
use crate::{
    apps::recorder,
    mesh::{TestMesh, Workload},
    net::{call, eventually, free, get, ok},
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

#[test]
fn what_the_inbound_side_refuses_at_once_has_a_span_and_a_line_that_says_why() {
    let (own, front) = (free(), free());
    let settings = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec:\n  tracing: \
         {{samplingPercent: 0, endpoint: \"http://{own}\"}}\n  accessLog: {{mode: Errors}}\n"
    );
    let (app, _seen) = recorder(OK);
    let mesh = TestMesh::builder("spans-refused")
        .flag("--otlp-listen", &own.to_string())
        .resource("settings.yaml", settings)
        .workload(Workload::beside("web", app, "http").front(front))
        .calls("web")
        .start();
    eventually("the front", || ok(get(front, "web", "/")));
    let trace = fresh();
    let head = format!("Host: web\r\nTraceparent: {}\r\nConnection: close\r\n", context(&trace, true));
    let (status, _) = call(front, &format!("GET /a%2Fb?key=1 HTTP/1.1\r\n{head}\r\n")).expect("an answer");
    assert_eq!(status, 400);
    let line = eventually("a line", || {
        let log = mesh.log("web");
        let found = log.lines().find(|line| line.contains(&trace) && line.contains("response_code"));
        let line: Value = serde_json::from_str(found.ok_or_else(|| log.clone())?).map_err(|error| error.to_string())?;
        Ok(line)
    });
    assert_eq!((&line["direction"], &line["response_code"]), (&"inbound".into(), &400.into()), "{line}");
    assert_eq!((&line["reason"], &line["path"]), (&"bad_request".into(), &"/a%2Fb?key=1".into()), "{line}");
    let found = spans(&mesh, &trace, 1);
    assert_eq!(found[0].parent, CALLER);
    let lines = lines(&found);
    for expected in ["web SERVER 1 http.response.status_code: 400", "web SERVER 1 weft.reason: bad_request"] {
        assert!(holds(expected, &lines), "{expected:?} in {lines:#?}");
    }
}
