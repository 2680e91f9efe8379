//! What the control plane accepts, every sidecar accepts: random policies that pass validation.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Most fields are left out, and most values are good: otherwise nothing would pass.
fn maybe(value: impl Strategy<Value = Value> + 'static) -> BoxedStrategy<Value> {
    prop_oneof![3 => Just(Value::Null), 2 => value].boxed()
}

fn time() -> BoxedStrategy<Value> {
    let time =
        (1u32..2000, prop::sample::select(vec!["ms", "s", "m"])).prop_map(|(n, unit)| json!(format!("{n}{unit}")));
    maybe(prop_oneof![40 => time, 1 => Just(json!("0s")), 1 => Just(json!("99999h99999h")), 1 => Just(json!("8760h"))])
}

fn number() -> BoxedStrategy<Value> {
    maybe(prop_oneof![40 => 1u32..11, 1 => Just(0), 1 => any::<u32>()].prop_map(Value::from))
}

fn percent() -> BoxedStrategy<Value> {
    let odd = prop::sample::select(vec![0.0, 0.00001, 0.0001, 100.0, -1.0, 100.1]);
    maybe(prop_oneof![20 => 0.01f64..=100.0, 1 => odd].prop_map(Value::from))
}

/// Of the words the last is not always right.
fn word(words: &'static [&'static str]) -> BoxedStrategy<Value> {
    let (last, others) = words.split_last().expect("words");
    maybe(prop_oneof![20 => prop::sample::select(others), 1 => Just(*last)].prop_map(Value::from))
}

/// An object of these fields, without those that are null.
fn object(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    let keep = move |values: Vec<Value>| {
        names
            .iter()
            .zip(values)
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| ((*name).to_owned(), value))
            .collect()
    };
    values.prop_map(keep).prop_map(Value::Object).boxed()
}

fn list(item: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    maybe(prop::collection::vec(item.prop_filter("a value", |value| !value.is_null()), 0..3).prop_map(Value::from))
}

fn traffic() -> BoxedStrategy<Value> {
    let hashes = vec![
        json!({ "header": "X-User" }),
        json!({ "cookie": "id" }),
        json!({ "queryParam": "a b" }),
        json!({ "sourceIp": true }),
        json!({ "header": "a", "cookie": "b" }),
        json!({ "header": "not a name" }),
        json!({ "queryParam": "" }),
    ];
    let hashed = (prop::sample::select(vec!["RingHash", "Maglev"]), prop::sample::select(hashes))
        .prop_map(|(algorithm, on)| json!({ "algorithm": algorithm, "hashOn": on }));
    let balancing = vec![
        ("algorithm", word(&["LeastLatency", "RoundRobin", "LeastRequest", "Random", "RingHash"])),
        ("slowStart", time()),
        ("locality", list(word(&["Zone", "Region", "Zone"]))),
    ];
    let retries = vec![
        ("attempts", number()),
        ("codes", list(prop_oneof![9 => 400..600, 1 => Just(200)].prop_map(Value::from).boxed())),
        ("grpcCodes", list(word(&["ABORTED", "UNAVAILABLE", "OK"]))),
        ("methods", list(word(&["GET", "PURGE", "get"]))),
        ("backoff", maybe(object(vec![("min", time()), ("base", time()), ("max", time())]))),
        ("budget", maybe(object(vec![("percent", percent()), ("minPerSecond", number())]))),
        ("hedgeAfter", time()),
    ];
    let outlier = vec![
        ("consecutiveFailures", number()),
        ("successPercent", percent()),
        ("minimumRequests", number()),
        ("window", time()),
        ("baseEjection", time()),
        ("maxEjection", time()),
        ("maxEjectedPercent", percent()),
    ];
    let breaker = vec![
        ("breakOn", word(&["Failures", "ConnectFailures", "Never"])),
        ("consecutiveFailures", number()),
        ("baseOpen", time()),
        ("maxOpen", time()),
    ];
    let timeouts = vec![("request", time()), ("backendRequest", time()), ("connect", time()), ("streamIdle", time())];
    let limits = vec![("connections", number()), ("pending", number()), ("requests", number()), ("retries", number())];
    object(vec![
        ("timeouts", maybe(object(timeouts))),
        ("retries", maybe(object(retries))),
        ("loadBalancing", maybe(prop_oneof![object(balancing), hashed])),
        ("limits", maybe(object(limits))),
        ("outlierDetection", maybe(object(outlier))),
        ("circuitBreaker", maybe(object(breaker))),
        ("connection", maybe(object(vec![("idle", time()), ("maxAge", time()), ("maxStreams", number())]))),
    ])
}

fn fault() -> BoxedStrategy<Value> {
    let header = word(&["x-user", "X-User", "no\nname"]);
    let headers = (header.clone(), header).prop_map(|(name, value)| match name {
        Value::String(name) => json!({ name: value.as_str().unwrap_or("v") }),
        _ => Value::Null,
    });
    let status = maybe(prop_oneof![Just(200u32), Just(599), Just(199), Just(600)].prop_map(Value::from));
    let abort = vec![
        ("httpStatus", status),
        ("grpcStatus", word(&["ABORTED", "OK"])),
        ("reset", maybe(any::<bool>().prop_map(Value::from))),
        ("percent", percent()),
    ];
    object(vec![
        ("delay", maybe(object(vec![("fixed", time()), ("percent", percent())]))),
        ("abort", maybe(object(abort))),
        ("bandwidth", maybe(object(vec![("bytesPerSecond", number()), ("percent", percent())]))),
        ("headers", headers.boxed()),
        ("expiresAfter", time()),
    ])
}

fn rates() -> BoxedStrategy<Value> {
    let requests = prop_oneof![9 => 1u32..100, 1 => Just(0)].prop_map(Value::from);
    let limit = object(vec![
        ("requests", requests.boxed()),
        ("per", time()),
        ("burst", number()),
        ("key", word(&["Total", "Identity", "SourceIp", "Header"])),
    ]);
    let headers = prop::sample::select(vec!["X-User", "a", "no name"]);
    let by_header = headers.prop_map(|name| json!({ "requests": 3, "key": "Header", "header": name }));
    prop::collection::vec(prop_oneof![limit, by_header], 0..3).prop_map(|limits| json!({ "limits": limits })).boxed()
}

const TARGETS: [&str; 6] = [
    "{kind: Service, name: web}",
    "{kind: Service, name: web, sectionName: http}",
    "{kind: Service, name: web, sectionName: '80'}",
    "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}",
    "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: main}",
    "{kind: Namespace, name: default}",
];

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}, {name: admin, port: 81}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{kind: Service, group: '', name: web, port: 80}]
  rules: [{name: main, backendRefs: [{name: web, port: 80}]}]
---
";

fn policy() -> impl Strategy<Value = String> {
    let spec = prop_oneof![
        4 => traffic().prop_map(|spec| ("TrafficPolicy", spec)),
        2 => fault().prop_map(|spec| ("FaultInjection", spec)),
        2 => rates().prop_map(|spec| ("RateLimitPolicy", spec)),
    ];
    (spec, prop::sample::subsequence(TARGETS.to_vec(), 0..3), any::<u32>()).prop_map(|((kind, mut spec), targets, number)| {
        let targets = targets.join(", ");
        let fields = spec.as_object_mut().map(std::mem::take).unwrap_or_default();
        let fields: String = fields.iter().map(|(name, value)| format!("  {name}: {value}\n")).collect();
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p{number}, creationTimestamp: '2026-01-01T00:00:00Z'}}\n\
             spec:\n  targetRefs: [{targets}]\n{fields}---\n"
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn what_the_control_plane_accepts_the_sidecar_accepts(policies in prop::collection::vec(policy(), 1..6)) {
        // What is refused on its own is left out, as a file or a write would be.
        let good = policies.iter().filter(|text| Resources::from_text("p.yaml", text).1.is_empty());
        let (resources, problems) = Resources::from_text("f.yaml", &format!("{MESH}{}", good.cloned().collect::<String>()));
        prop_assert_eq!(problems, []);
        let instance = registered("web-1", &[("app", "web")], &[(80, "http", v1::Protocol::Http)]);
        let (output, _) = compile(&resources, &[instance]);
        for ((kind, name), compiled) in &output {
            let bytes = compiled.bytes.as_ref();
            let refused = match kind {
                ResourceType::Service => weft_policy::convert::service(v1::Service::decode(bytes).unwrap()).err(),
                ResourceType::WorkloadConfig => {
                    weft_policy::convert::workload_config(v1::WorkloadConfig::decode(bytes).unwrap()).err()
                }
                _ => None,
            };
            prop_assert!(refused.is_none(), "{name}: {refused:?}");
        }
    }
}
