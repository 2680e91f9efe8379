//! Every field of a TrafficPolicy at every level: which value is sent, and who it is said to come from.

mod table;

use self::table::{Field, OF_PORTS, OF_RULES, Sent};
use super::{super::policies::Policies, *};
use crate::compile::policies::{Port, Row, Rule};

/// Levels from the most specific: the target of a policy, and what its values are said to come from.
const LEVELS: [(&str, &str); 6] = [
    ("{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: main}", "TrafficPolicy shop/level0"),
    ("{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}", "TrafficPolicy shop/level1"),
    ("{kind: Service, name: web, sectionName: http}", "TrafficPolicy shop/level2"),
    ("{kind: Service, name: web}", "TrafficPolicy shop/level3"),
    ("{kind: Namespace, name: shop}", "TrafficPolicy shop/level4"),
    ("", "MeshConfig default"),
];

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
";

fn route(timeouts: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\nspec:\n  \
         parentRefs: [{{kind: Service, group: \"\", name: web}}]\n  \
         rules: [{{name: main, backendRefs: [{{name: web, port: 80}}]{timeouts}}}]\n---\n"
    )
}

fn level(number: usize, setting: &str) -> String {
    match LEVELS[number].0 {
        "" => format!(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {{traffic: {{{setting}}}}}\n---\n"
        ),
        target => format!(
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: level{number}, namespace: shop}}\n\
             spec: {{targetRefs: [{target}], {setting}}}\n---\n"
        ),
    }
}

/// What is sent for these resources, and what is told of the field.
fn outcome(text: &str, field: &str) -> (Sent, String, String) {
    let resources = load(text);
    let (output, problems) = compile(&resources, &[]);
    assert_eq!(problems, [], "{text}");
    let service: v1::Service = get(&output, ResourceType::Service, "shop/web");
    weft_policy::convert::service(service.clone()).expect(text);
    let port = &service.ports[0];
    let rule = port.routing.as_ref().map(|routing| &routing.rules[0]);
    let sent =
        Sent { requests: rule.map_or(&port.requests, |rule| &rule.requests).clone(), backend: port.backend.clone() };
    let policies = Policies::of(&resources);
    let place = Port { namespace: "shop", service: "web", name: "http", number: 80 };
    let named = rule.and_then(|rule| Rule::named(&rule.name, false, &resources));
    let rows = policies.requests(&place, named.as_ref()).rows();
    let Row { value, origin, .. } = rows
        .into_iter()
        .chain(policies.backend(&place).rows())
        .find(|row| row.field == field)
        .expect("a row of every field");
    (sent, value, origin.to_string())
}

/// With the levels from `from` to the least specific, each with its own value, the first of them counts.
fn each_level_wins(field: &Field, base: &str, from: usize, default: &str) {
    let Field(path, .., wire) = field;
    for first in from..=LEVELS.len() {
        let settings = (first..LEVELS.len()).map(|number| level(number, &field.value(number).0));
        let text = format!("{WEB}{base}{}", settings.collect::<String>());
        let (sent, value, origin) = outcome(&text, path);
        let expected = match LEVELS.get(first) {
            Some((_, origin)) => (field.value(first).1, *origin),
            None => (default.to_owned(), "default"),
        };
        assert_eq!((value.as_str(), origin.as_str()), (expected.0.as_str(), expected.1), "{path} from {first}");
        match LEVELS.get(first) {
            Some(_) => assert_eq!(wire(&sent), Some(value), "{path} from {first}"),
            None => {
                assert!(sent.requests.is_none() && sent.backend.is_none(), "{path}: nothing is set, nothing is sent")
            }
        }
    }
}

#[test]
fn the_most_specific_level_that_sets_a_field_of_a_rule_counts() {
    for (field, default) in OF_RULES {
        each_level_wins(field, &route(""), 0, default);
        // Without a route the port has the field.
        each_level_wins(field, "", 2, default);
    }
}

#[test]
fn the_most_specific_level_that_sets_a_field_of_a_port_counts() {
    for (field, default) in OF_PORTS {
        each_level_wins(field, &route(""), 2, default);
    }
}

#[test]
fn what_a_route_says_itself_is_the_most_specific() {
    for (path, policies, own, expected) in [
        ("timeouts.request", "timeouts: {request: 9s}", "timeouts: {request: 7s}", "7s"),
        ("timeouts.request", "timeouts: {request: 9s}", "timeouts: {request: 0s}", "none"),
        ("timeouts.backendRequest", "timeouts: {backendRequest: 9s}", "timeouts: {backendRequest: 7s}", "7s"),
        ("retries.attempts", "retries: {attempts: 4}", "retry: {attempts: 0}", "0"),
        ("retries.codes", "retries: {codes: [500]}", "retry: {codes: [503, 429]}", "503, 429"),
        ("retries.backoff.min", "retries: {backoff: {min: 9s}}", "retry: {backoff: 7s}", "7s"),
        ("retries.backoff.base", "retries: {backoff: {base: 9s}}", "retry: {backoff: 7s}", "7s"),
        ("retries.backoff.max", "retries: {backoff: {max: 9s}}", "retry: {backoff: 7s}", "1m10s"),
    ] {
        let policies: String = (0..LEVELS.len()).map(|number| level(number, policies)).collect();
        let (sent, value, origin) = outcome(&format!("{WEB}{}{policies}", route(&format!(", {own}"))), path);
        assert_eq!((value.as_str(), origin.as_str()), (expected, "HTTPRoute shop/r#main"), "{own}");
        let (field, _) = OF_RULES.iter().find(|(field, _)| field.0 == path).expect("a field");
        assert_eq!(field.3(&sent).unwrap_or_else(|| "none".to_owned()), expected, "{own}");
    }
}

#[test]
fn a_rule_of_a_grpc_route_has_policies_and_settings_of_its_own() {
    let grpc = route("").replace("HTTPRoute", "GRPCRoute");
    let text = format!(
        "{}{grpc}{}{}",
        WEB.replace("name: http", "name: http, appProtocol: kubernetes.io/h2c"),
        level(0, "retries: {attempts: 4}").replace("HTTPRoute", "GRPCRoute"),
        level(1, "retries: {attempts: 5, grpcCodes: [ABORTED]}").replace("HTTPRoute", "GRPCRoute"),
    );
    let (sent, value, origin) = outcome(&text, "retries.attempts");
    assert_eq!((value.as_str(), origin.as_str()), ("4", "TrafficPolicy shop/level0"));
    let retry = sent.requests.and_then(|requests| requests.retry).expect("a retry");
    assert_eq!((retry.attempts, retry.grpc_codes), (4, vec![10]));
}

#[test]
fn levels_are_merged_field_by_field() {
    let text = format!(
        "{WEB}{}{}{}{}",
        route(", timeouts: {request: 1s}"),
        level(1, "retries: {attempts: 4}"),
        level(3, "timeouts: {request: 2s, streamIdle: 0s}, retries: {attempts: 5, codes: [500]}"),
        level(5, "timeouts: {connect: 3s}, retries: {backoff: {base: 30ms}}"),
    );
    let (Sent { requests, backend }, ..) = outcome(&text, "retries.attempts");
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let millis = |millis: i32| Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
    let retry = v1::Retry {
        attempts: 4,
        codes: vec![500],
        grpc_codes: vec![14],
        methods: Vec::new(),
        backoff_min: None,
        backoff_base: millis(30),
        backoff_max: millis(250),
        hedge_after: None,
    };
    let expected =
        v1::RequestPolicy { timeout: seconds(1), stream_idle: seconds(0), retry: Some(retry), ..Default::default() };
    assert_eq!(requests, Some(expected), "complete, with the defaults of what nobody set");
    let expected = v1::BackendPolicy { connect_timeout: seconds(3), ..Default::default() };
    assert_eq!(backend, Some(expected), "parts that are as always are left out");
}
