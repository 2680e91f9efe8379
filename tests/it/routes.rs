//! Routes and policies as people write them, applied by the command, and what callers and apps then see: a row for each
//! thing that a rule can say.

pub mod apps;

use self::apps::{Caller, Log, Observed, app};
use crate::{apps::recorder, mesh::TestMesh, net::LIMIT};

const OTHER: &[u8] = b"HTTP/1.1 200 OK\r\nX-App: other\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";

/// A request, its fields, and what is to be among the lines that are observed ([`Observed::call`]): a line; `TEXT..`, the
/// start of one; `..TEXT`, a part of one; `no TEXT`, the start of none.
type Row = (&'static str, &'static [&'static str], &'static [&'static str]);

const MATCHING: &[Row] = &[
    ("GET /m/exact", &[], &["status 200", "at web x-rule: exact", "at web host: web", "seen 1"]),
    ("GET /m/exact/", &[], &["at web x-rule: prefix"]),
    ("GET /m?a=b", &[], &["at web x-rule: prefix", "at web GET /m?a=b"]),
    ("GET /mm", &[], &["status 404", "..no_route", "seen 0"]),
    ("GET /m/longer/x", &[], &["at web x-rule: longer"]),
    ("GET /m/longerx", &[], &["at web x-rule: prefix"]),
    ("GET /r/12/x", &[], &["at web x-rule: regex"]),
    ("GET /r/12x", &[], &["status 404", "..no_route"]),
    ("PUT /m/x", &[], &["at web x-rule: method", "at web PUT /m/x"]),
    ("PUT /m/longer", &[], &["at web x-rule: longer"]),
    ("PUT /m/x", &["x-version: 2"], &["at web x-rule: method"]),
    ("GET /m/x", &["x-version: 2"], &["at web x-rule: header"]),
    ("GET /m/x?version=2", &["x-version: 2"], &["at web x-rule: header"]),
    ("GET /m/x", &["x-version: 22"], &["at web x-rule: prefix"]),
    ("GET /m/x", &["x-version: 3.14"], &["at web x-rule: header-regex"]),
    ("GET /m/x", &["x-version: 3x14"], &["at web x-rule: prefix"]),
    ("GET /m/x", &["x-version: 3.14b"], &["at web x-rule: prefix"]),
    ("GET /m/x?a=b&version=2", &[], &["at web x-rule: query"]),
    ("GET /m/x?version=3.1", &[], &["at web x-rule: query-regex"]),
    ("GET /m/x?version=4", &[], &["at web x-rule: prefix"]),
];

/// Requests to a rule that sends three of four to one backend.
const MANY: u32 = 400;

/// Several times each: what has no weight gets none of them.
const WEIGHTS: &[Row] = &[
    ("GET /all-to-web", &[], &["answer x-app: web", "no at other", "seen 1"]),
    ("GET /all-to-other", &[], &["answer x-app: other", "no at web", "seen 1"]),
];

const CHANGING: &[Row] = &[
    (
        "GET /request",
        &["x-set: caller", "x-add: caller", "x-remove: caller", "x-kept: caller"],
        &[
            "at web x-set: rule",
            "no at web x-set: caller",
            "at web x-add: caller",
            "at web x-add: rule",
            "no at web x-remove",
            "at web x-kept: caller",
        ],
    ),
    ("GET /request", &[], &["at web x-add: rule", "at web x-set: rule"]),
    (
        "GET /response",
        &[],
        &[
            "answer x-set: rule",
            "no answer x-set: app",
            "answer x-add: app",
            "answer x-add: rule",
            "no answer x-remove",
        ],
    ),
    (
        "GET /old/a/b?c=d",
        &[],
        &["status 301", "answer location: https://new.example:8443/new/a/b?c=d", "..redirect of route", "seen 0"],
    ),
    ("GET /here/a", &[], &["status 302", "answer location: http://web/there", "seen 0"]),
    ("GET /rewrite-host/a", &[], &["at web host: inner.example", "at web GET /rewrite-host/a"]),
    ("GET /rewrite-path/a?b=c", &[], &["at web host: web", "at web GET /full?b=c"]),
    ("GET /rewrite-prefix/a?b=c", &[], &["at web host: web", "at web GET /inner/a?b=c"]),
    ("GET /rewrite-prefix", &[], &["at web GET /inner"]),
    (
        "OPTIONS /cors",
        &["origin: https://a.shop.example", "access-control-request-method: PUT"],
        &[
            "status 204",
            "answer access-control-allow-origin: https://a.shop.example",
            "answer access-control-allow-credentials: true",
            "answer access-control-allow-methods: GET, PUT",
            "answer access-control-allow-headers: x-token",
            "answer access-control-max-age: 60",
            "seen 0",
        ],
    ),
    (
        "OPTIONS /cors",
        &["origin: https://evil.example", "access-control-request-method: PUT"],
        &["no answer access-control", "seen 0"],
    ),
    (
        "GET /cors",
        &["origin: https://a.shop.example"],
        &[
            "status 200",
            "answer access-control-allow-origin: https://a.shop.example",
            "answer access-control-expose-headers: x-set",
            "answer vary: Origin",
            "seen 1",
        ],
    ),
    ("GET /cors", &["origin: https://evil.example"], &["status 200", "no answer access-control", "seen 1"]),
];

const FAILING: &[Row] = &[
    ("GET /hang", &[], &["status 504", "..request_timeout", "seen 1"]),
    ("GET /slow-once", &[], &["status 200", "seen 2"]),
    ("GET /fails-twice/rule", &[], &["status 200", "seen 3"]),
    ("GET /fails-twice/too-few", &[], &["status 500", "answer x-app: web", "seen 2"]),
    ("GET /fails-twice/too-few", &[], &["status 200", "seen 1"]),
    ("GET /fails-twice/untouched", &[], &["status 500", "answer x-app: web", "seen 1"]),
    ("GET /fails-twice/policy", &[], &["status 200", "seen 3"]),
    ("GET /hang/policy", &[], &["status 504", "..request_timeout", "seen 1"]),
    ("GET /aborted", &[], &["status 418", "..fault_abort: by FaultInjection default/aborted", "seen 0"]),
    ("GET /delayed", &[], &["status 200", "..fault_delay: by FaultInjection default/delayed", "seen 1"]),
    ("GET /limited", &[], &["status 200", "answer ratelimit-policy: \"default/limited#0\";q=1;w=3600", "seen 1"]),
    (
        "GET /limited",
        &[],
        &[
            "status 429",
            "..rate_limited",
            "answer retry-after: ..",
            "answer ratelimit: \"default/limited#0\";r=0;t=..",
            "seen 0",
        ],
    ),
    // A rule's limit counts what follows the rule: whatever its new path, and not what another rule takes.
    (
        "GET /limited-rewritten",
        &["x-weft-rule: x"],
        &["status 200", "at web GET /elsewhere", "no at web x-weft", "seen 1"],
    ),
    ("GET /limited-rewritten", &["x-weft-rule: x"], &["status 429", "seen 0"]),
    ("GET /wide/free", &[], &["status 200", "no answer ratelimit", "seen 1"]),
    ("GET /wide/free", &[], &["status 200", "no answer ratelimit", "seen 1"]),
    ("GET /wide/x", &[], &["status 200", "answer ratelimit: ..", "seen 1"]),
    ("GET /wide/x", &[], &["status 429", "seen 0"]),
    ("GET /invalid", &[], &["status 500", "..invalid_backend", "seen 0"]),
    ("GET /nowhere", &[], &["status 404", "..no_route", "seen 0"]),
];

const EDGES: &[Row] = &[
    ("GET /to-root/a?b=c", &[], &["at web GET /a?b=c"]),
    ("GET /to-root", &[], &["at web GET /"]),
    ("GET /secure/a?b=c", &[], &["status 302", "answer location: https://web/secure/a?b=c"]),
    ("GET /of-backend", &[], &["at web x-rule: backend", "no at web x-rule: rule", "no answer x-remove"]),
    ("GET /no-copies", &[], &["answer x-app: web", "no at other", "seen 1"]),
    ("GET /too-late", &[], &["status 504", "..fault_delay", "seen 0"]),
    ("GET /sometimes", &[], &["status 200", "answer x-set: rule", "seen 1"]),
    ("GET /sometimes", &["x-fail: yes"], &["status 404", "..fault_abort", "answer x-set: rule", "seen 0"]),
    // Only what may be done twice is tried twice.
    ("POST /fails-twice/rule/post", &[], &["status 500", "seen 1"]),
];

/// A gRPC caller at an HTTPRoute.
const GRPC_AT_HTTP: &[Row] = &[
    ("POST /m/exact", &[], &["status 200", "answer grpc-status: 0", "at web x-rule: exact", "seen 1"]),
    ("POST /hang", &[], &["status 200", "answer grpc-status: 4", "..request_timeout", "seen 1"]),
    ("POST /aborted", &[], &["status 200", "answer grpc-status: 2", "..fault_abort", "seen 0"]),
    ("POST /sometimes", &["x-fail: yes"], &["status 200", "answer grpc-status: 5", "..fault_abort", "seen 0"]),
    ("POST /limited", &[], &["answer grpc-status: 0", "seen 1"]),
    ("POST /limited", &[], &["status 200", "answer grpc-status: 8", "answer retry-after: ..", "seen 0"]),
    ("POST /invalid", &[], &["status 200", "answer grpc-status: 14", "..invalid_backend", "seen 0"]),
    ("POST /nowhere", &[], &["status 200", "answer grpc-status: 12", "..no_route", "seen 0"]),
];

const GRPC: &[Row] = &[
    ("POST /shop.Cart/List", &[], &["status 200", "answer grpc-status: 0", "at rpc x-rule: service", "seen 1"]),
    ("POST /shop.Cart/Add", &[], &["answer grpc-status: 0", "at rpc x-rule: method"]),
    ("POST /shop.v12.Cart/Any", &[], &["answer grpc-status: 0", "at rpc x-rule: regex"]),
    ("POST /shop.vx.Cart/Any", &[], &["status 200", "answer grpc-status: 12", "..no_route", "seen 0"]),
    (
        "POST /shop.Cart/List",
        &["x-version: 2"],
        &["at rpc x-rule: header", "answer x-set: rule", "no answer x-remove", "answer grpc-status: 0"],
    ),
    ("POST /shop.FailsTwice/Patient", &[], &["answer grpc-status: 0", "seen 3"]),
    ("POST /shop.FailsTwice/Impatient", &[], &["answer grpc-status: 10", "answer x-app: rpc", "seen 1"]),
    ("POST /shop.Hang/On", &[], &["status 200", "answer grpc-status: 4", "..request_timeout", "seen 1"]),
    ("POST /shop.Aborted/ByGrpc", &[], &["status 200", "answer grpc-status: 15", "..fault_abort", "seen 0"]),
    ("POST /shop.Aborted/ByHttp", &[], &["status 200", "answer grpc-status: 7", "..fault_abort", "seen 0"]),
    ("POST /shop.Limited/Call", &[], &["answer grpc-status: 0", "answer ratelimit: ..", "seen 1"]),
    (
        "POST /shop.Limited/Call",
        &[],
        &["status 200", "answer grpc-status: 8", "answer retry-after: ..", "answer ratelimit: ..", "seen 0"],
    ),
    (
        "POST /shop.Session/Call",
        &[],
        &["answer grpc-status: 0", "answer x-session: ..", "no answer set-cookie", "seen 1"],
    ),
    ("POST /shop.Invalid/Call", &[], &["status 200", "answer grpc-status: 14", "..invalid_backend", "seen 0"]),
];

/// Rules with sessions between two apps, the field that begins one, and the one that brings it back.
const SESSIONS: &[(&str, &str, &str)] =
    &[("/session", "answer set-cookie: sid=", "cookie: sid="), ("/idle-session", "answer x-session: ", "x-session: ")];

/// Requests of one session; by chance all would go to one of two apps once in 2^16 times.
const OF_SESSION: u32 = 16;

/// What is expected of a row when it is a gRPC caller's: an answer that the mesh makes has a status of gRPC.
fn as_grpc(expected: &str) -> &str {
    if expected == "status 404" { "answer grpc-status: 12" } else { expected }
}

fn holds(expected: &str, lines: &[String]) -> bool {
    if let Some(absent) = expected.strip_prefix("no ") {
        return !lines.iter().any(|line| line.starts_with(absent));
    }
    match (expected.strip_prefix(".."), expected.strip_suffix("..")) {
        (Some(part), _) => lines.iter().any(|line| line.contains(part)),
        (_, Some(start)) => lines.iter().any(|line| line.starts_with(start)),
        _ => lines.iter().any(|line| line == expected),
    }
}

async fn mesh(name: &str, files: &[(&str, &str)]) -> Observed {
    let log = Log::default();
    let (web, rpc) = (app("web", log.clone()).await, app("rpc", log.clone()).await);
    let (address, other) = recorder(OTHER);
    let mesh = TestMesh::builder(name)
        .replicas("web", "http2", &[web])
        .replicas("rpc", "grpc", &[rpc])
        .replicas("other", "http", &[address])
        .calls("web")
        .calls("rpc")
        .start();
    let mut args = vec![String::from("apply"), String::from("--wait")];
    for (file, text) in files {
        let path = mesh.dir.join(file);
        std::fs::write(&path, text).expect("writable");
        args.extend([String::from("-f"), path.to_string_lossy().into_owned()]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let applied = mesh.weft(&args);
    // With warnings: the backends that nobody is.
    assert_eq!(applied.code, Some(3), "{}", applied.text);
    assert!(applied.text.contains("Service default/nobody does not exist"), "{}", applied.text);
    Observed { mesh, log, other }
}

/// What is wrong with a row, and all that was observed.
async fn check(observed: &Observed, caller: Caller, service: &str, row: &Row, wrong: &mut Vec<String>) {
    let (request, fields, expected) = row;
    let lines = observed.call(caller, service, request, fields).await;
    let expected = expected.iter().map(|line| if caller == Caller::Grpc { as_grpc(line) } else { line });
    for expected in expected.filter(|expected| !holds(expected, &lines)) {
        wrong.push(format!("{caller:?} {request} {fields:?}: {expected:?} in {lines:#?}"));
    }
}

/// Sessions of each rule that has some: each stays with the app that began it, and they begin at both.
async fn sessions(observed: &Observed, caller: Caller, wrong: &mut Vec<String>) {
    let app = |lines: &[String]| lines.iter().find(|line| line.starts_with("answer x-app")).cloned();
    for (path, begun, field) in SESSIONS {
        let mut apps = std::collections::BTreeSet::new();
        for _ in 0..OF_SESSION {
            let first = observed.call(caller, "web", &format!("GET {path}"), &[]).await;
            let Some(line) = first.iter().find_map(|line| line.strip_prefix(begun)) else {
                wrong.push(format!("{caller:?} {path}: no {begun:?} in {first:#?}"));
                return;
            };
            let (token, attributes) = line.split_once("; ").unwrap_or((line, ""));
            if *path == "/session" && attributes != "Path=/session; Max-Age=3600; HttpOnly; SameSite=Strict" {
                wrong.push(format!("{caller:?} {path}: {attributes}"));
            }
            let again = observed.call(caller, "web", &format!("GET {path}/again"), &[&format!("{field}{token}")]).await;
            let refreshed = again.iter().any(|line| line.starts_with(begun));
            // Only where it may become idle.
            if app(&again) != app(&first) || refreshed != path.starts_with("/idle") {
                wrong.push(format!("{caller:?} {path}: {again:#?} after {first:#?}"));
            }
            apps.insert(app(&first));
        }
        if apps.len() != 2 {
            wrong.push(format!("{caller:?} {path}: all sessions with {apps:?}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_routes_and_policies_say_is_what_callers_and_apps_see() {
    let files = [
        ("matching.yaml", include_str!("routes/matching.yaml")),
        ("changing.yaml", include_str!("routes/changing.yaml")),
        ("failing.yaml", include_str!("routes/failing.yaml")),
        ("edges.yaml", include_str!("routes/edges.yaml")),
        ("grpc.yaml", include_str!("routes/grpc.yaml")),
    ];
    let observed = mesh("routes", &files).await;
    let mut wrong = Vec::new();
    for caller in [Caller::Http1, Caller::Http2] {
        let weights = WEIGHTS.iter().flat_map(|row| std::iter::repeat_n(row, 8));
        for row in MATCHING.iter().chain(weights).chain(CHANGING).chain(FAILING).chain(EDGES) {
            check(&observed, caller, "web", row, &mut wrong).await;
        }
    }
    for caller in [Caller::Http1, Caller::Http2] {
        sessions(&observed, caller, &mut wrong).await;
    }
    for row in MATCHING.iter().chain(CHANGING) {
        check(&observed, Caller::Grpc, "web", row, &mut wrong).await;
    }
    for row in GRPC_AT_HTTP {
        check(&observed, Caller::Grpc, "web", row, &mut wrong).await;
    }
    for row in GRPC {
        check(&observed, Caller::Grpc, "rpc", row, &mut wrong).await;
    }
    let mut mostly = 0;
    for _ in 0..MANY {
        let lines = observed.call(Caller::Http1, "web", "GET /mostly-web", &[]).await;
        mostly += u32::from(holds("answer x-app: web", &lines));
    }
    // Six standard deviations to either side.
    assert!(mostly.abs_diff(MANY * 3 / 4) <= 52, "{mostly} of {MANY}");
    // Last: a copy comes when it comes.
    for (caller, version) in [(Caller::Http1, "one"), (Caller::Http2, "two")] {
        let request = format!("GET /mirror/{version}?a=b");
        let mut lines = observed.call(caller, "web", &request, &["x-kept: caller", "x-weft-rule: x"]).await;
        // It may have come by now.
        if !lines.iter().any(|line| line.starts_with("at other get /mirror")) {
            let copy = observed.other.recv_timeout(LIMIT).expect("a copy");
            lines.extend(copy.lines().map(|line| format!("at other {line}")));
        }
        let target = format!("at other get /mirror/{version}?a=b http/1.1");
        let fields = ["at other host: web", "at other x-kept: caller", "at other x-copied: rule", "no at other x-weft"];
        for expected in ["answer x-app: web", &target].iter().chain(&fields) {
            assert!(holds(expected, &lines), "{expected} in {lines:#?}");
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// An object with something that cannot be meant, and what is said of it.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "HTTPRoute",
        "rules: [{timeouts: {request: -1s}, backendRefs: [{name: web, port: 80}]}]",
        "spec.rules[0].timeouts.request: \"-1s\" is not a duration",
    ),
    (
        "HTTPRoute",
        "rules: [{matches: [{path: {type: RegularExpression, value: '(\\w{100}){100}'}}]}]",
        "spec.rules[0].matches[0].path.value: \"(\\w{100}){100}\" is too large when compiled",
    ),
    (
        "HTTPRoute",
        "rules: [{backendRefs: [{name: web, port: 80, weight: 0}, {name: other, port: 80, weight: 0}]}]",
        "spec.rules[0].backendRefs: the weights sum to 0",
    ),
    (
        "GRPCRoute",
        "rules: [{backendRefs: [{name: web, port: 80, weight: 0}]}]",
        "spec.rules[0].backendRefs: the weights sum to 0",
    ),
    ("TrafficPolicy", "timeouts: {request: -1s}", "spec.timeouts.request: "),
    ("TrafficPolicy", "retries: {budget: {percent: 101}}", "spec.retries.budget.percent: 101 is not a percentage"),
    ("FaultInjection", "abort: {httpStatus: 500, percent: 101}", "spec.abort.percent: 101 is not a percentage"),
    ("FaultInjection", "delay: {fixed: -1s}", "spec.delay.fixed: "),
    ("RateLimitPolicy", "limits: [{requests: 0}]", "spec.limits[0].requests: "),
    ("RateLimitPolicy", "limits: [{requests: 1, per: -1s}]", "spec.limits[0].per: "),
];

#[test]
fn values_that_cannot_be_meant_are_refused_with_path_and_reason() {
    let mesh = TestMesh::builder("refused-values").start();
    for (kind, spec, said) in REFUSED {
        let (group, target) = match kind.ends_with("Route") {
            true => ("gateway.networking.k8s.io/v1", "parentRefs: [{group: '', kind: Service, name: web}]"),
            false => ("weft.dev/v1alpha1", "targetRefs: [{kind: Service, name: web}]"),
        };
        let text = format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: bad}}\nspec:\n  {target}\n  {spec}\n");
        let file = mesh.dir.join("bad.yaml");
        std::fs::write(&file, text).expect("writable");
        let refused = mesh.weft(&["apply", "-f", &file.to_string_lossy()]);
        assert_eq!(refused.code, Some(1), "{kind} {spec}: {}", refused.text);
        assert!(refused.text.contains(said), "{kind} {spec}: {said:?} in {}", refused.text);
        let object = format!("{}/bad", kind.to_lowercase());
        let got = mesh.weft(&["get", &object]);
        assert_ne!(got.code, Some(0), "{kind} {spec} is there: {}", got.text);
    }
}
