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

fn ask(url: &str, headers: &[(&'static str, &'static str)]) -> Result<Value, ExplainError> {
    ask_with("", url, headers)
}

/// With more resources beside the shop's.
fn ask_with(more: &str, url: &str, headers: &[(&'static str, &'static str)]) -> Result<Value, ExplainError> {
    let (resources, problems) = Resources::from_text("shop.yaml", &format!("{SHOP}{more}"));
    assert_eq!(problems, []);
    let view = View::default().next(&compile(&resources, &[]).0, 0);
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, http::HeaderValue::from_static(value));
    }
    let url = url.parse().expect("a URL");
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
    let question = Question { method: Method::GET, url, namespace: "default".into(), from: None, headers: map, now };
    explain(&view, &resources, &[], &question, &|namespace| namespace != "bank")
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

#[test]
fn a_namespace_that_is_not_seen_is_neither_told_of_nor_hinted_at() {
    let bank = "
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: bank}
spec: {ports: [{name: http, port: 80}]}
";
    let error = |url: &str| ask_with(bank, url, &[]).expect_err(url).to_string();
    for host in ["vault.bank", "vault.bank.mesh", "vault.bank.svc.cluster.local:81", "VAULT.bank"] {
        let told = error(&format!("http://{host}/"));
        assert_eq!(told, "service bank/vault is in a namespace that is not seen", "{host}");
        assert_eq!(
            told.replace("vault", "other"),
            error(&format!("http://{}/", host.to_lowercase().replace("vault", "other")))
        );
    }
    assert_eq!(ask("http://catalog.mesh/items", &[]).expect("the caller's own")["service"], "default/catalog");
    let mesh = bank.replace("bank", "mesh");
    let of_mesh = ask_with(&mesh, "http://vault.mesh/", &[]).expect("a namespace may be called mesh");
    assert_eq!(of_mesh["service"], "mesh/vault");
    assert_eq!(error("http://vault.bnk/"), "no service bnk/vault in the mesh", "no hint");
}

const POLICIES: &str = "
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: defaults}
spec: {retries: {attempts: 4}, loadBalancing: {algorithm: RoundRobin}, timeouts: {request: 9s, streamIdle: 0s}}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: v2}
spec: {targetRefs: [{kind: Service, name: catalog-v2, sectionName: http}], limits: {requests: 7}}
---
apiVersion: weft.dev/v1alpha1
kind: MeshConfig
metadata: {name: default}
spec: {traffic: {connection: {maxAge: 90m}}}
---
apiVersion: weft.dev/v1alpha1
kind: FaultInjection
metadata: {name: slow, creationTimestamp: '2027-01-15T07:00:00Z'}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: beta, sectionName: beta-users}]
  delay: {fixed: 100ms, percent: 50}
  abort: {grpcStatus: UNAVAILABLE, percent: 0.5}
  headers: {X-User: beta}
  expiresAfter: 2h
---
apiVersion: weft.dev/v1alpha1
kind: FaultInjection
metadata: {name: over, creationTimestamp: '2027-01-15T07:00:00Z'}
spec: {targetRefs: [{kind: Service, name: catalog}], abort: {reset: true}, expiresAfter: 1h}
";

#[test]
fn every_setting_is_told_with_the_object_that_it_comes_from() {
    let answer = ask_with(POLICIES, "http://catalog/items/7", &[("x-user", "beta")]).expect("an answer");
    for (field, value, origin) in [
        ("timeouts.request", "2s", "HTTPRoute default/beta#beta-users"),
        ("timeouts.streamIdle", "none", "TrafficPolicy default/defaults"),
        ("timeouts.connect", "2s", "default"),
        ("retries.attempts", "4", "TrafficPolicy default/defaults"),
        ("retries.codes", "502, 503, 504", "default"),
        ("loadBalancing.algorithm", "RoundRobin", "TrafficPolicy default/defaults"),
        ("outlierDetection.successPercent", "80 %", "default"),
        ("connection.maxAge", "1h30m", "MeshConfig default"),
    ] {
        assert_eq!(answer["effective"][field], json!({ "value": value, "origin": origin }), "{field}");
    }
    assert!(answer["effective"]["limits.requests"].is_null(), "the backends differ: {answer}");
    let at = |index: usize| &answer["backends"][index]["effective"]["limits.requests"];
    assert_eq!(at(0), &json!({ "value": "4096", "origin": "default" }));
    assert_eq!(at(1), &json!({ "value": "7", "origin": "TrafficPolicy default/v2" }));
}

#[test]
fn faults_that_apply_are_told_until_they_end() {
    let answer = ask_with(POLICIES, "http://catalog/items/7", &[("x-user", "beta")]).expect("an answer");
    let expected = json!([{ "origin": "FaultInjection default/slow", "delay": "100ms for 50 %",
        "abort": "gRPC UNAVAILABLE for 0.5 %", "until": "2027-01-15T09:00:00Z" }]);
    assert_eq!(answer["faults"], expected, "one is over, and the other wants its header");
    let answer = ask_with(POLICIES, "http://catalog/items/7", &[]).expect("an answer");
    assert_eq!(answer["faults"], json!([]));
}

#[test]
fn rate_limits_at_the_other_end_are_told() {
    let more = "
---
apiVersion: v1
kind: Service
metadata: {name: paid}
spec: {selector: {app: paid}, ports: [{name: http, port: 80}]}
---
apiVersion: weft.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: fair}
spec: {targetRefs: [{kind: Service, name: paid}], limits: [{requests: 5, key: Identity}, {requests: 60, per: 1m}]}
";
    let (resources, problems) = Resources::from_text("shop.yaml", &format!("{SHOP}{more}"));
    assert_eq!(problems, []);
    let registration = v1::Registration {
        name: "paid-1".into(),
        namespace: "default".into(),
        labels: [("app".into(), "paid".into())].into(),
        address: "127.0.0.1".into(),
        healthy: true,
        ..v1::Registration::default()
    };
    let registered = crate::compile::Registered { registration, spiffe_id: String::new() };
    let view = View::default().next(&compile(&resources, &[std::sync::Arc::new(registered)]).0, 0);
    let question = |url: &str| Question {
        method: Method::GET,
        url: url.parse().expect("a URL"),
        namespace: "default".into(),
        from: None,
        headers: HeaderMap::new(),
        now: SystemTime::UNIX_EPOCH,
    };
    let answer = explain(&view, &resources, &[], &question("http://paid/"), &|_| true).expect("an answer");
    let expected = json!([
        { "origin": "RateLimitPolicy default/fair#0", "value": "5 per second, 5 at once, each identity" },
        { "origin": "RateLimitPolicy default/fair#1", "value": "60 per 1m, 60 at once, all callers together" },
    ]);
    assert_eq!(answer["rateLimits"], expected);
    assert_eq!(
        explain(&view, &resources, &[], &question("http://catalog/items"), &|_| true).expect("one")["rateLimits"],
        json!([])
    );
}

#[test]
fn callers_of_a_namespace_with_routes_of_its_own_follow_those() {
    let consumer = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mine, namespace: far}
spec:
  parentRefs: [{kind: Service, group: \"\", name: catalog, namespace: default, port: 80}]
  rules: [{filters: [{type: RequestRedirect, requestRedirect: {hostname: a.example, statusCode: 301}}]}]
";
    let (resources, problems) = Resources::from_text("shop.yaml", &format!("{SHOP}{consumer}"));
    assert_eq!(problems, []);
    let view = View::default().next(&compile(&resources, &[]).0, 0);
    let ask = |namespace: &str| {
        let url = "http://catalog.default/items".parse().expect("a URL");
        let question = Question {
            method: Method::GET,
            url,
            namespace: namespace.into(),
            from: None,
            headers: HeaderMap::new(),
            now: SystemTime::UNIX_EPOCH,
        };
        explain(&view, &resources, &[], &question, &|_| true).expect("an answer")
    };
    let answer = ask("far");
    assert_eq!((&answer["route"], &answer["status"]), (&"far/mine".into(), &301.into()));
    assert_eq!(answer["because"], "the rule redirects");
    assert_eq!((&ask("default")["route"], &ask("third")["route"]), (&"default/beta".into(), &"default/beta".into()));
}

#[test]
fn whether_the_other_end_lets_the_caller_in_is_told_with_the_policy() {
    let text = include_str!("../../../examples/resources/orders-db.yaml");
    let (resources, problems) = Resources::from_text("orders-db.yaml", text);
    assert_eq!(problems, []);
    let registered = |name: &str, port: u32| {
        let ports = vec![v1::WorkloadPort { port, protocol: v1::Protocol::Tcp.into(), ..Default::default() }];
        let registration = v1::Registration {
            name: name.into(),
            namespace: "default".into(),
            labels: [("app".into(), name.into())].into(),
            address: "127.0.0.1".into(),
            mesh_address: "127.0.0.1:15008".into(),
            ports,
            healthy: true,
            ..v1::Registration::default()
        };
        let spiffe_id = format!("spiffe://weft.local/ns/default/sa/{name}");
        std::sync::Arc::new(crate::compile::Registered { registration, spiffe_id })
    };
    let mut client = std::sync::Arc::unwrap_or_clone(registered("orders", 80));
    client.registration.ports.clear();
    let all = [registered("orders-db", 5432), std::sync::Arc::new(client), registered("payments", 80)];
    let view = View::default().next(&compile(&resources, &all).0, 0);
    let told = |from: Option<&str>| {
        let question = Question {
            method: Method::GET,
            url: "http://orders-db:5432/".parse().expect("a URL"),
            namespace: "default".into(),
            from: from.map(|name| format!("default/{name}")),
            headers: HeaderMap::new(),
            now: SystemTime::UNIX_EPOCH,
        };
        let access = explain(&view, &resources, &all, &question, &|_| true).expect("an answer")["access"][0].clone();
        assert_eq!((&access["workload"], &access["mode"]), (&"default/orders-db".into(), &"Strict".into()));
        assert_eq!(access["modeOrigin"], "PeerAuthentication default/orders-db");
        (access["verdict"].clone(), access["because"].clone())
    };
    let expected = |verdict: &str, because: &str| (verdict.into(), because.into());
    assert_eq!(told(Some("orders")), expected("allowed", "AuthorizationPolicy default/orders-db allows it"));
    assert_eq!(told(Some("payments")), expected("denied", "no AuthorizationPolicy that allows matches"));
    assert_eq!(told(None), expected("denied", "the port takes mutual TLS only"));
}

#[test]
fn of_workloads_in_a_namespace_that_is_not_seen_no_policy_is_named() {
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\n\
                spec: {parentRefs: [{kind: Service, group: '', name: a}], rules: [{backendRefs: [{name: b, namespace: \
                bank, port: 80}]}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: \
                80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: bank}\nspec: {selector: {app: \
                b}, ports: [{port: 80, appProtocol: http}]}\n---\napiVersion: \
                gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: bank}\nspec: {from: \
                [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}], to: [{group: '', kind: \
                Service}]}\n---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: vault, \
                namespace: bank}\nspec: {rules: [{from: [{namespaces: [bank]}]}]}\n---\napiVersion: \
                weft.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: secret-rate, namespace: bank}\nspec: \
                {targetRefs: [{kind: Service, name: b}], limits: [{requests: 5}]}\n---\napiVersion: \
                weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: secret-limit, namespace: bank}\nspec: \
                {targetRefs: [{kind: Service, name: b}], limits: {connections: 7}}\n";
    let (resources, problems) = Resources::from_text("bank.yaml", text);
    assert_eq!(problems, []);
    let registration = v1::Registration {
        name: "b-1".into(),
        namespace: "bank".into(),
        labels: [("app".into(), "b".into())].into(),
        address: "127.0.0.1".into(),
        mesh_address: "127.0.0.1:15008".into(),
        ports: vec![v1::WorkloadPort { port: 80, protocol: v1::Protocol::Http.into(), ..Default::default() }],
        healthy: true,
        ..v1::Registration::default()
    };
    let spiffe_id = "spiffe://weft.local/ns/bank/sa/b".to_owned();
    let all = [std::sync::Arc::new(crate::compile::Registered { registration, spiffe_id })];
    let view = View::default().next(&compile(&resources, &all).0, 0);
    let question = Question {
        method: Method::GET,
        url: "http://a/".parse().expect("a URL"),
        namespace: "default".into(),
        from: None,
        headers: HeaderMap::new(),
        now: SystemTime::UNIX_EPOCH,
    };
    let told = |sees: &dyn Fn(&str) -> bool| explain(&view, &resources, &all, &question, sees).expect("an answer");
    let seen = told(&|_| true).to_string();
    for name in ["bank/vault", "bank/secret-rate", "bank/secret-limit", "bank/b-1"] {
        assert!(seen.contains(name), "{name} {seen}");
    }
    let hidden = told(&|namespace| namespace == "default");
    for name in ["vault", "secret-rate", "secret-limit", "b-1"] {
        assert!(!hidden.to_string().contains(name), "{name} {hidden}");
    }
    assert_eq!(
        (&hidden["access"][0]["workload"], &hidden["access"][0]["verdict"]),
        (&"bank/*".into(), &"not shown".into())
    );
}

mod sessions;
mod tokens;
