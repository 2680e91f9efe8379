//! Questions about the resources of a small shop.

use super::*;
use crate::{compile::compile, source::Resources};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: catalog}
spec: {ports: [{name: http, port: 80}, {name: http-admin, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: catalog-v2}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: catalog-1, labels: {kubernetes.io/service-name: catalog}}
addressType: IPv4
endpoints: [{addresses: [127.0.0.1]}, {addresses: [127.0.0.2]}]
ports: [{name: http, port: 8080}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: beta}
spec:
  parentRefs: [{kind: Service, group: \"\", name: catalog, port: 80}]
  rules:
  - name: beta-users
    matches: [{path: {value: /items}, headers: [{name: x-user, value: beta}]}]
    timeouts: {request: 2s}
    backendRefs: [{name: catalog, port: 80, weight: 1}, {name: catalog-v2, port: 80, weight: 3}]
  - matches: [{path: {value: /items}}]
    backendRefs: [{name: catalog, port: 80}]
  - matches: [{path: {type: Exact, value: /gone}}]
    backendRefs: [{name: nowhere, port: 80}]
";

fn view() -> View {
    let (resources, problems) = Resources::from_text("shop.yaml", SHOP);
    assert_eq!(problems, []);
    View::default().next(&compile(&resources, &[]).0, 0)
}

fn ask(url: &str, headers: &[(&'static str, &'static str)]) -> Result<Value, ExplainError> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, http::HeaderValue::from_static(value));
    }
    let url = url.parse().expect("a URL");
    explain(&view(), &Question { method: Method::GET, url, namespace: "default".into(), headers: map })
}

#[test]
fn the_rule_that_wins_is_named_with_its_shares_and_where_its_values_come_from() {
    let answer = ask("http://catalog/items/7", &[("x-user", "beta")]).expect("an answer");
    assert_eq!(answer["service"], "default/catalog");
    assert_eq!((&answer["route"], &answer["rule"]), (&"default/beta".into(), &"beta-users".into()));
    assert_eq!(answer["backends"][1]["share"], 0.75);
    assert_eq!(answer["effective"]["timeouts.request"]["value"], "2s");
    assert_eq!(answer["effective"]["timeouts.request"]["origin"], "HTTPRoute default/beta#beta-users");
    assert_eq!(answer["effective"]["timeouts.backendRequest"]["origin"], "default");
    assert_eq!(answer["healthyEndpoints"], 2);
}

#[test]
fn each_match_that_lost_says_why() {
    let answer = ask("http://catalog.default.mesh/items/7", &[("x-user", "alpha")]).expect("an answer");
    let why = answer["why"].as_array().expect("lines");
    let because = |rule: &str| {
        let line = why.iter().find(|line| line["rule"] == rule).expect("a line of each rule");
        line["because"].as_str().expect("a reason").to_owned()
    };
    assert_eq!(because("default/beta#beta-users"), "header x-user is \"alpha\" and not \"beta\"");
    assert_eq!(because("default/beta#1"), "the first match in order of precedence");
    assert_eq!(because("default/beta#2"), "path /items/7 is not exactly /gone");
    let answer = ask("http://catalog/items", &[("x-user", "beta")]).expect("an answer");
    assert!(answer.to_string().contains("an earlier match takes precedence"), "{answer}");
}

#[test]
fn what_the_sidecar_answers_itself_is_said_with_its_status() {
    let answer = ask("http://catalog/other", &[]).expect("an answer");
    assert_eq!((&answer["decision"], &answer["status"]), (&"no_route".into(), &404.into()));
    let answer = ask("http://catalog/gone", &[]).expect("an answer");
    assert_eq!(answer["backends"][0]["status"], 500, "an invalid backend");
}

#[test]
fn a_port_without_routes_goes_to_the_service() {
    let answer = ask("http://catalog:9000/", &[]).expect("an answer");
    assert_eq!(answer["decision"], "service");
    assert_eq!(answer["backends"][0]["share"], 1.0);
}

#[test]
fn what_leads_nowhere_is_an_error_with_a_hint() {
    let error = |url: &str| ask(url, &[]).expect_err("no such thing").to_string();
    assert_eq!(error("http://catalgo/"), "no service default/catalgo in the mesh; did you mean \"default/catalog\"?");
    assert_eq!(error("http://catalog:81/"), "service default/catalog has no port 81; it has 80, 9000");
    assert!(error("/items").contains("a URL with a host is needed"));
    assert!(error("http://catalog/a/../b").contains("/a/../b"));
}
