//! Policies beside each other: precedence by age, targets, faults and rate limits.

use super::*;
use crate::source::Reason;

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {selector: {app: web}, ports: [{name: http, port: 8080, targetPort: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{kind: Service, group: '', name: web}]
  rules:
  - {name: items, matches: [{path: {value: /items}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /rest}}], backendRefs: [{name: web, port: 80}]}
---
";

const HTTP_ROUTE: &str = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: r";

fn policy(kind: &str, name: &str, created: Option<&str>, targets: &[&str], rest: &str) -> String {
    let created = created.map(|time| format!(", creationTimestamp: '{time}'")).unwrap_or_default();
    let targets: Vec<String> = targets.iter().map(|target| format!("{{{target}}}")).collect();
    let targets = if targets.is_empty() { String::new() } else { format!("targetRefs: [{}], ", targets.join(", ")) };
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}{created}}}\nspec: {{{targets}{rest}}}\n---\n"
    )
}

fn web(policies: &str) -> (v1::Service, Vec<Problem>) {
    let (output, problems) = compile(&load(&format!("{WEB}{policies}")), &[]);
    (get(&output, ResourceType::Service, "default/web"), problems)
}

const OLD: Option<&str> = Some("2026-01-01T00:00:00Z");
const NEW: Option<&str> = Some("2026-02-01T00:00:00Z");

#[test]
fn of_two_policies_on_one_target_the_older_wins_and_the_other_says_so() {
    let service = ["kind: Service, name: web"];
    let setting = |connections: u32, more: &str| format!("limits: {{connections: {connections}{more}}}");
    for (a, b, wins) in [(OLD, NEW, 1), (NEW, OLD, 2), (OLD, OLD, 1), (None, NEW, 2), (None, None, 1)] {
        let text = policy("TrafficPolicy", "a", a, &service, &setting(1, ", pending: 5"))
            + &policy("TrafficPolicy", "b", b, &service, &setting(2, ", requests: 6"));
        let (service, problems) = web(&text);
        let limits = service.ports[0].backend.as_ref().and_then(|backend| backend.limits).unwrap();
        assert_eq!((limits.connections, limits.pending, limits.requests), (wins, 5, 6), "{a:?} {b:?}");
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        assert_eq!((problem.reason, problem.path.as_str()), (Reason::Conflicted, "spec.targetRefs[0]"));
        let winner = if wins == 1 { "a" } else { "b" };
        assert!(problem.message.starts_with(&format!("TrafficPolicy default/{winner} ")), "{problem}");
        assert!(problem.message.ends_with("wins: limits.connections"), "{problem}");
    }
    let apart = policy("TrafficPolicy", "a", OLD, &service, "limits: {connections: 1}")
        + &policy("TrafficPolicy", "b", OLD, &service, "limits: {pending: 2}");
    assert_eq!(web(&apart).1, [], "they do not contradict each other");
}

#[test]
fn a_target_that_is_not_there_is_said_with_its_path() {
    for (target, path, message) in [
        (
            "kind: Service, name: wbe",
            "spec.targetRefs[0].name",
            "Service \"default/wbe\" does not exist (did you mean \"default/web\"?)",
        ),
        (
            "kind: Service, name: web, sectionName: grpc",
            "spec.targetRefs[0].sectionName",
            "has no port named \"grpc\" (it has http, 80)",
        ),
        (
            &HTTP_ROUTE.replace("name: r", "name: s"),
            "spec.targetRefs[0].name",
            "HTTPRoute \"default/s\" does not exist",
        ),
        (
            &format!("{HTTP_ROUTE}, sectionName: itmes"),
            "spec.targetRefs[0].sectionName",
            "has no rule named \"itmes\" (did you mean \"items\"?)",
        ),
        (
            "kind: Namespace, name: shop",
            "spec.targetRefs[0].name",
            "a policy applies to its own namespace, not to \"shop\"",
        ),
    ] {
        let (_, problems) = web(&policy("TrafficPolicy", "p", None, &[target], "timeouts: {request: 1s}"));
        let [problem] = problems.as_slice() else { panic!("{target}: {problems:?}") };
        let reason = if target.contains("Namespace") { Reason::Invalid } else { Reason::TargetNotFound };
        assert_eq!((problem.reason, problem.path.as_str()), (reason, path));
        assert!(problem.to_string().contains(message), "{problem}");
    }
    for target in ["kind: Service, name: web, sectionName: '80'", &format!("{HTTP_ROUTE}, sectionName: '1'")] {
        assert_eq!(web(&policy("TrafficPolicy", "p", None, &[target], "timeouts: {request: 1s}")).1, [], "{target}");
    }
}

#[test]
fn a_policy_of_another_namespace_does_not_reach_here() {
    let text = policy("TrafficPolicy", "p", None, &[], "limits: {connections: 7}");
    assert!(web(&text).0.ports[0].backend.is_some());
    let text = text.replace("name: p", "name: p, namespace: shop");
    assert!(web(&text).0.ports[0].backend.is_none());
}

#[test]
fn of_a_time_and_its_cap_at_different_levels_the_more_specific_counts() {
    let service = ["kind: Service, name: web"];
    for (here, there, expected) in [
        ("base: 2s", "max: 1s", (2, 2)),
        ("max: 1s", "base: 2s", (1, 1)),
        ("base: 1s", "max: 2s", (1, 2)),
        ("max: 1s", "base: 500ms", (0, 1)),
    ] {
        let text = policy("TrafficPolicy", "a", None, &service, &format!("retries: {{backoff: {{{here}}}}}"))
            + &policy("TrafficPolicy", "b", None, &[], &format!("retries: {{backoff: {{{there}}}}}"));
        let (service, _) = web(&text);
        let rule = &service.ports[0].routing.as_ref().unwrap().rules[0];
        let retry = rule.requests.as_ref().and_then(|requests| requests.retry.as_ref()).unwrap();
        let seconds = (retry.backoff_base.unwrap().seconds, retry.backoff_max.unwrap().seconds);
        assert_eq!(seconds, expected, "{here} over {there}");
    }
}

#[test]
fn an_algorithm_takes_what_it_hashes_with_it() {
    let text = policy("TrafficPolicy", "a", None, &["kind: Service, name: web"], "loadBalancing: {algorithm: Random}")
        + &policy(
            "TrafficPolicy",
            "b",
            None,
            &[],
            "loadBalancing: {algorithm: RingHash, hashOn: {cookie: id}, slowStart: 3s}",
        );
    let (service, _) = web(&text);
    let balancing = service.ports[0].backend.clone().unwrap().load_balancing.unwrap();
    assert_eq!((balancing.algorithm(), balancing.hash_on), (v1::load_balancing::Algorithm::Random, None));
    assert_eq!(balancing.slow_start, Some(prost_types::Duration { seconds: 3, nanos: 0 }));
}

fn faults(policies: &str) -> Vec<Vec<v1::Fault>> {
    let (service, problems) = web(policies);
    assert_eq!(problems, []);
    let rules = service.ports[0].routing.clone().unwrap().rules;
    rules.into_iter().map(|rule| rule.requests.unwrap_or_default().faults).collect()
}

#[test]
fn a_fault_is_sent_as_it_is_written() {
    let written = "delay: {fixed: 100ms, percent: 12.5}, abort: {grpcStatus: UNAVAILABLE}, \
                   bandwidth: {bytesPerSecond: 1000, percent: 0.0001}, headers: {X-Test: 'yes'}, expiresAfter: 1m";
    let found = faults(&policy("FaultInjection", "f", OLD, &["kind: Service, name: web"], written));
    let expected = v1::Fault {
        name: "default/f".to_owned(),
        headers: vec![v1::KeyMatch { name: "x-test".to_owned(), value: "yes".to_owned(), regex: false }],
        delay: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
        delay_ppm: 125_000,
        abort: Some(v1::fault::Abort::GrpcStatus(14)),
        abort_ppm: 1_000_000,
        bytes_per_second: 1000,
        bandwidth_ppm: 1,
        expires_ms: 1_767_225_600_000 + 60_000,
    };
    assert_eq!(found, [vec![expected.clone()], vec![expected]]);
    for (abort, expected) in
        [("httpStatus: 503", v1::fault::Abort::HttpStatus(503)), ("reset: true", v1::fault::Abort::Reset(true))]
    {
        let text = policy("FaultInjection", "f", None, &["kind: Service, name: web"], &format!("abort: {{{abort}}}"));
        assert_eq!(faults(&text)[0][0].abort, Some(expected));
        assert_eq!(faults(&text)[0][0].expires_ms, 0);
    }
}

#[test]
fn faults_of_a_rule_come_first_and_each_counts_once() {
    let rule = format!("{HTTP_ROUTE}, sectionName: items");
    let fault = |name: &str, created, targets: &[&str]| {
        policy("FaultInjection", name, created, targets, "abort: {reset: true}")
    };
    let text = fault("a-service", OLD, &["kind: Service, name: web"])
        + &fault("b-port", OLD, &["kind: Service, name: web, sectionName: http"])
        + &fault("c-route", NEW, &[HTTP_ROUTE])
        + &fault("d-route", OLD, &[HTTP_ROUTE, "kind: Service, name: web"])
        + &fault("e-rule", OLD, &[&rule]);
    let names: Vec<Vec<String>> =
        faults(&text).into_iter().map(|faults| faults.into_iter().map(|fault| fault.name).collect()).collect();
    let expected = ["default/e-rule", "default/d-route", "default/c-route", "default/b-port", "default/a-service"];
    assert_eq!(names[0], expected);
    assert_eq!(names[1], expected[1..]);
}

#[test]
fn a_fault_that_nobody_could_tell_the_end_of_is_left_out() {
    let text =
        policy("FaultInjection", "f", None, &["kind: Service, name: web"], "abort: {reset: true}, expiresAfter: 1m");
    let (service, problems) = web(&text);
    assert!(
        problems[0].to_string().contains("spec.expiresAfter: counts from metadata.creationTimestamp"),
        "{problems:?}"
    );
    assert_eq!(service.ports[0].routing.clone().unwrap().rules[0].requests, None);
}

/// The limits of the only inbound port of a workload of both services: name, services, and the names of rules, of which
/// there is a match each.
fn limits(policies: &str) -> Vec<(String, Vec<String>, Vec<String>)> {
    let instance = registered("web-1", &[("app", "web")], &[(80, "http", v1::Protocol::Http)]);
    let (output, problems) = compile(&load(&format!("{WEB}{policies}")), &[instance]);
    assert_eq!(problems, []);
    let config: v1::WorkloadConfig = get(&output, ResourceType::WorkloadConfig, "default/web-1");
    let limits = config.ports[0].rate_limits.iter().map(|limit| {
        let services = limit.services.iter().map(|service| format!("{}:{}", service.service, service.port));
        assert_eq!(limit.matches.len(), limit.rules.len());
        (limit.limit.clone().unwrap().name, services.collect(), limit.rules.clone())
    });
    limits.collect()
}

#[test]
fn a_rate_limit_arrives_at_the_workloads_behind_its_targets() {
    let rate = |targets: &[&str]| policy("RateLimitPolicy", "p", None, targets, "limits: [{requests: 5}]");
    let none = Vec::<String>::new;
    let name = || "default/p#0".to_owned();
    let web = || vec!["default/web:80".to_owned()];
    let other = || vec!["default/other:8080".to_owned()];
    let everything = || vec![(name(), none(), none())];
    let of_web = || vec![(name(), web(), none())];
    let one = || vec!["default/r#items".to_owned()];
    let both = || vec!["default/r#items".to_owned(), "default/r#1".to_owned()];
    let rule = format!("{HTTP_ROUTE}, sectionName: items");
    for (targets, expected) in [
        (vec![], everything()),
        (vec!["kind: Namespace, name: default"], everything()),
        (vec!["kind: Service, name: web"], of_web()),
        (vec!["kind: Service, name: web, sectionName: http"], of_web()),
        (vec!["kind: Service, name: web, sectionName: '80'"], of_web()),
        // Every service that leads here: a caller in plaintext counts too.
        (vec!["kind: Service, name: web", "kind: Service, name: other"], everything()),
        // One for both rules, and for a rule that is named beside its route: a request counts once.
        (vec![HTTP_ROUTE], vec![(name(), web(), both())]),
        (vec![HTTP_ROUTE, &rule], vec![(name(), web(), both())]),
        // The route leads to the service, which is limited as a whole.
        (vec![HTTP_ROUTE, "kind: Service, name: web"], of_web()),
        (vec![HTTP_ROUTE, "kind: Service, name: other"], vec![(name(), other(), none()), (name(), web(), both())]),
        (vec![&rule], vec![(name(), web(), one())]),
        (vec!["kind: Namespace, name: default", "kind: Service, name: web"], everything()),
    ] {
        assert_eq!(limits(&rate(&targets)), expected, "{targets:?}");
    }
    assert_eq!(limits(&rate(&[]).replace("limits", "selector: {matchLabels: {app: web}}, limits")), everything());
    assert_eq!(limits(&rate(&[]).replace("limits", "selector: {matchLabels: {app: x}}, limits")), []);
    assert_eq!(limits(&rate(&[]).replace("name: p", "name: p, namespace: shop")), []);
}

#[test]
fn a_rate_limit_of_a_consumer_route_does_not_reach_the_workloads_of_the_producer() {
    let consumer = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mine, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: web, namespace: default}]
  rules: [{backendRefs: [{name: web, namespace: default, port: 80}]}]
---
";
    let target = HTTP_ROUTE.replace("name: r", "name: mine");
    let rate = policy("RateLimitPolicy", "p", None, &[&target], "limits: [{requests: 5}]");
    let text = format!("{WEB}{consumer}{}", rate.replace("name: p", "name: p, namespace: shop"));
    let instance = registered("web-1", &[("app", "web")], &[(80, "http", v1::Protocol::Http)]);
    let (output, problems) = compile(&load(&text), &[instance]);
    let config: v1::WorkloadConfig = get(&output, ResourceType::WorkloadConfig, "default/web-1");
    assert_eq!(config.ports[0].rate_limits, []);
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!((problem.reason, problem.path.as_str()), (Reason::UnsupportedValue, "spec.targetRefs[0]"));
    let told = "rule 0 of HTTPRoute shop/mine leads to Service default/web in another namespace";
    assert!(problem.message.starts_with(told), "{problem}");
}

#[test]
fn a_rate_limit_whose_requests_no_sidecar_counts_says_so() {
    let outside = "
apiVersion: v1
kind: Service
metadata: {name: out}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mixed}
spec:
  parentRefs: [{kind: Service, group: '', name: other}]
  rules:
  - backendRefs: [{name: web, port: 80}, {name: out, port: 80}]
---
";
    let mixed = HTTP_ROUTE.replace("name: r", "name: mixed");
    for (targets, expected) in [
        (vec!["kind: Service, name: out"], Some("Service default/out has no selector")),
        (
            vec![mixed.as_str()],
            Some("rule 0 of HTTPRoute default/mixed leads to Service default/out, which has no selector"),
        ),
        (vec!["kind: Service, name: web"], None),
        (vec![HTTP_ROUTE], None),
        (vec![], None),
    ] {
        let rate = policy("RateLimitPolicy", "p", None, &targets, "limits: [{requests: 5}]");
        let (_, problems) = compile(&load(&format!("{WEB}{outside}{rate}")), &[]);
        let told: Vec<_> = problems.iter().map(|problem| (problem.reason, problem.path.as_str())).collect();
        assert_eq!(told.is_empty(), expected.is_none(), "{targets:?}: {problems:?}");
        if let Some(expected) = expected {
            assert_eq!(told, [(Reason::UnsupportedValue, "spec.targetRefs[0]")], "{targets:?}");
            assert!(problems[0].message.starts_with(expected), "{}", problems[0]);
        }
    }
}

#[test]
fn a_rate_limit_is_sent_complete() {
    let text = policy(
        "RateLimitPolicy",
        "p",
        None,
        &[],
        "limits: [{requests: 5}, {requests: 6, per: 1m, burst: 2, key: Header, header: X-User}]",
    );
    let instance = registered("web-1", &[("app", "web")], &[(80, "http", v1::Protocol::Http)]);
    let (output, _) = compile(&load(&format!("{WEB}{text}")), &[instance]);
    let config: v1::WorkloadConfig = get(&output, ResourceType::WorkloadConfig, "default/web-1");
    let limits: Vec<_> = config.ports[0].rate_limits.iter().map(|limit| limit.limit.clone().unwrap()).collect();
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let total =
        v1::RateLimit { name: "default/p#0".to_owned(), requests: 5, per: seconds(1), burst: 5, ..Default::default() };
    let header = v1::RateLimit {
        name: "default/p#1".to_owned(),
        requests: 6,
        per: seconds(60),
        burst: 2,
        key: v1::rate_limit::Key::Header.into(),
        header: "x-user".to_owned(),
        ..Default::default()
    };
    assert_eq!(limits, [total, header]);
}

#[test]
fn the_defaults_that_can_be_seen_are_those_of_the_sidecar_and_cost_nothing_on_the_wire() {
    let (service, problems) = web(include_str!("../../api/meshconfig.yaml"));
    assert_eq!(problems, []);
    let port = &service.ports[0];
    assert_eq!(port.backend, None);
    assert!(port.routing.as_ref().unwrap().rules.iter().all(|rule| rule.requests.is_none()), "{port:?}");
}
