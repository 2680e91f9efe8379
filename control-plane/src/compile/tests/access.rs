//! Who is let in: YAML as users write it, as the sidecar decides on it.

use weft_policy::{
    SpiffeId,
    authorize::{Caller, Operation, Verdict},
    canonical::Authority,
    claims::Claims,
    convert,
    model::{InboundPort, TlsMode},
};

use super::*;
use crate::compile::policies::{Guards, access::ModeOrigin};

const ORDERS_DB: &str = include_str!("../../../../examples/resources/orders-db.yaml");

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81, targetPort: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {selector: {app: web}, ports: [{name: http, port: 9000, targetPort: 8080}]}
---
";

fn policy(kind: &str, id: &str, spec: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace/name");
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{spec}}}\n---\n"
    )
}

fn allow(id: &str, spec: &str) -> String {
    policy("AuthorizationPolicy", id, spec)
}

fn mode(id: &str, spec: &str) -> String {
    policy("PeerAuthentication", id, spec)
}

fn web() -> Vec<Arc<Registered>> {
    vec![registered("web", &[("app", "web")], &[(8080, "http", v1::Protocol::Http), (8081, "", v1::Protocol::Http)])]
}

/// The inbound ports of a workload, as its sidecar has them.
fn ports(text: &str, of: &[Arc<Registered>]) -> BTreeMap<u16, InboundPort> {
    let (output, problems) = compile(&load(text), of);
    assert_eq!(problems, [], "{text}");
    let name = format!("default/{}", of[0].registration.name);
    let config: v1::WorkloadConfig = get(&output, ResourceType::WorkloadConfig, &name);
    let config = convert::workload_config(config).expect("what is pushed is accepted");
    config.ports.into_iter().map(|port| (port.port, port)).collect()
}

fn told(verdict: Verdict<'_>) -> String {
    match verdict {
        Verdict::Allowed => "allowed".to_owned(),
        Verdict::Denied { policy } => policy.unwrap_or("no match").to_owned(),
    }
}

fn caller(id: Option<&SpiffeId>) -> Caller<'_> {
    Caller { id, address: "10.0.0.1".parse().unwrap() }
}

fn account(text: &str) -> SpiffeId {
    let (namespace, account) = text.split_once('/').expect("namespace/account");
    SpiffeId::workload("weft.local", namespace, account).expect("an id")
}

/// Opaque bytes from `namespace/account`; empty: in plaintext.
fn connect(port: &InboundPort, from: &str) -> String {
    let id = (!from.is_empty()).then(|| account(from));
    told(port.access.authorization.connection(&caller(id.as_ref()), port.port).verdict)
}

/// A request of the form `METHOD path` from `namespace/account` with the group in its token.
fn ask(port: &InboundPort, from: &str, request: &str, group: Option<&str>) -> String {
    let id = (!from.is_empty()).then(|| account(from));
    let (method, path) = request.split_once(' ').expect("METHOD path");
    let host = Authority::parse(b"web").unwrap();
    let claims = group.map(|group| Claims::new([("groups", group)]).unwrap());
    let headers = http::HeaderMap::from_iter([(http::HeaderName::from_static("x-env"), "prod".parse().unwrap())]);
    let method = method.parse().unwrap();
    let operation = Operation { method: &method, path, host: &host, headers: &headers, claims: claims.as_ref() };
    told(port.access.authorization.request(&caller(id.as_ref()), port.port, &operation).verdict)
}

#[test]
fn a_database_per_service_lets_in_the_one_account_at_layer_four() {
    let database = vec![registered("orders-db", &[("app", "orders-db")], &[(5432, "", v1::Protocol::Tcp)])];
    let ports = ports(ORDERS_DB, &database);
    let port = &ports[&5432];
    assert_eq!(port.access.tls_mode, TlsMode::Strict);
    assert!(!port.access.authorization.has_request_rules());
    assert_eq!(connect(port, "default/orders"), "allowed");
    for from in ["default/orders2", "default/payments", "shop/orders", ""] {
        assert_eq!(connect(port, from), "no match", "{from:?}");
    }
}

#[test]
fn without_policies_a_port_is_open_and_permissive() {
    for port in ports(WEB, &web()).values() {
        assert_eq!(port.access.tls_mode, TlsMode::Permissive);
        assert_eq!(connect(port, ""), "allowed");
    }
}

#[test]
fn a_policy_guards_the_ports_of_its_target_whichever_service_leads_there() {
    let nobody = |target: &str| ports(&format!("{WEB}{}", allow("default/p", target)), &web());
    for (target, guarded) in [
        ("", [true, true]),
        ("targetRefs: [{kind: Namespace, name: default}]", [true, true]),
        ("selector: {matchLabels: {app: web}}", [true, true]),
        ("selector: {matchLabels: {app: web, tier: x}}", [false, false]),
        ("targetRefs: [{kind: Service, name: web}]", [true, true]),
        ("targetRefs: [{kind: Service, name: other}]", [true, false]),
        ("targetRefs: [{kind: Service, name: web, sectionName: http}]", [true, false]),
        ("targetRefs: [{kind: Service, name: web, sectionName: '81'}]", [false, true]),
        ("targetRefs: [{kind: Service, name: web, sectionName: http}, {kind: Service, name: other}]", [true, false]),
    ] {
        let ports = nobody(target);
        let found = [8080, 8081].map(|port| connect(&ports[&port], "default/a") == "no match");
        assert_eq!(found, guarded, "{target}");
        assert!(ports.values().all(|port| port.access.authorization.policies().len() <= 1), "{target}: once");
    }
}

#[test]
fn a_policy_of_the_mesh_namespace_without_a_target_guards_every_workload() {
    let guarded = |id: &str, spec: &str| {
        connect(&ports(&format!("{WEB}{}", allow(id, spec)), &web())[&8080], "default/a") == "no match"
    };
    assert!(guarded("weft-system/p", ""));
    assert!(!guarded("shop/p", ""));
    assert!(!guarded("weft-system/p", "targetRefs: [{kind: Namespace, name: weft-system}]"));
    assert!(!guarded("weft-system/p", "selector: {matchLabels: {app: web}}"));
}

#[test]
fn rules_mean_what_they_say() {
    let text = "targetRefs: [{kind: Service, name: web, sectionName: http}], rules: [
        {from: [{serviceAccounts: [web, cron]}, {namespaces: [ops], notServiceAccounts: [x]}], to: [{methods: [GET, HEAD]}]},
        {from: [{identities: ['spiffe://weft.local/ns/shop/*'], notIdentities: ['spiffe://weft.local/ns/shop/sa/evil']}],
         to: [{paths: ['/items/*'], notPaths: [/items/secret], methods: [POST]},
              {paths: ['/orders/{id}'], hosts: [WEB.], headers: {X-Env: [prod]}, notHeaders: {x-debug: ['*']}, notPorts: [1]}]},
        {from: [{networks: [10.0.0.0/8], notNetworks: [10.1.0.0/16]}], to: [{notMethods: [GET]}], claims: {groups: [staff]},
         notClaims: {groups: [intern]}}]";
    let ports = ports(&format!("{WEB}{}", allow("default/p", text)), &web());
    let port = &ports[&8080];
    for (from, request, group, expected) in [
        ("default/web", "GET /", None, true),
        ("default/web", "POST /", None, false),
        ("shop/web", "GET /", None, false),
        ("ops/anyone", "GET /", None, true),
        ("ops2/anyone", "GET /", None, false),
        ("shop/web", "POST /items/7", None, true),
        ("shop/web", "POST /items/secret", None, false),
        ("shop/evil", "POST /items/7", None, false),
        ("shop/web", "PUT /orders/7", None, true),
        ("shop/web", "PUT /orders/7/8", None, false),
        ("", "PUT /", Some("staff"), true),
        ("", "PUT /", Some("intern"), false),
        ("", "PUT /", None, false),
        ("", "GET /", Some("staff"), false),
    ] {
        let found = ask(port, from, request, group);
        assert_eq!(found, if expected { "allowed" } else { "no match" }, "{from} {request} {group:?}");
    }
}

#[test]
fn a_rule_without_conditions_matches_everything_and_a_dry_run_nothing() {
    let deny = |more: &str| {
        let text = format!("{WEB}{}", allow("default/p", &format!("action: Deny, rules: [{{}}]{more}")));
        connect(&ports(&text, &web())[&8080], "default/a")
    };
    assert_eq!(deny(""), "default/p");
    assert_eq!(deny(", dryRun: true"), "allowed");
}

#[test]
fn more_policies_than_a_port_can_have_close_it_and_are_told_unless_only_dry_runs_are_too_many() {
    let many = |count: usize, trials: usize| -> String {
        let trials = (0..trials).map(|k| allow(&format!("default/a-trial-{k:03}"), "rules: [{}], dryRun: true"));
        (0..count).map(|k| allow(&format!("default/p{k:03}"), "rules: [{}]")).chain(trials).collect()
    };
    for (count, trials, closed, told) in [
        (256, 0, false, 0),
        (257, 0, true, 2),
        (300, 1, true, 46),
        (256, 1, false, 1),
        (255, 1, false, 0),
        (255, 4, false, 3),
    ] {
        let (output, problems) = compile(&load(&format!("{WEB}{}", many(count, trials))), &web());
        let config: v1::WorkloadConfig = get(&output, ResourceType::WorkloadConfig, "default/web");
        let config = convert::workload_config(config).expect("what is pushed is accepted");
        for port in &config.ports {
            let expected = if closed { "default/p255" } else { "allowed" };
            assert_eq!(connect(port, "default/a"), expected, "{count} {trials}");
        }
        assert_eq!(problems.len(), told, "{count} {trials}: each once");
        if let Some(first) = problems.first() {
            let then = if closed { "nobody is let in there" } else { "it is not looked at there" };
            let text = first.to_string();
            assert!(
                text.contains("8080 of workload default/web has more than 256 policies") && text.contains(then),
                "{text}"
            );
        }
    }
}

#[test]
fn the_most_specific_mode_counts_and_says_whose_it_is() {
    let mesh =
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {peerMode: Strict}\n---\n";
    let levels = [
        mode("default/port", "targetRefs: [{kind: Service, name: web, sectionName: http}], mode: Permissive"),
        mode("default/service", "targetRefs: [{kind: Service, name: web}], mode: Strict"),
        mode("default/namespace", "mode: Permissive, ports: {'8080': Strict, '8081': Permissive}"),
        mode("weft-system/mesh", "mode: Permissive"),
        mesh.to_owned(),
        String::new(),
    ];
    let expected = [
        (TlsMode::Permissive, "PeerAuthentication default/port"),
        (TlsMode::Strict, "PeerAuthentication default/service"),
        (TlsMode::Strict, "PeerAuthentication default/namespace"),
        (TlsMode::Permissive, "PeerAuthentication weft-system/mesh"),
        (TlsMode::Strict, "MeshConfig default"),
        (TlsMode::Permissive, "default"),
    ];
    for (first, (mode, origin)) in expected.into_iter().enumerate() {
        let text = format!("{WEB}{}", levels[first..].concat());
        assert_eq!(ports(&text, &web())[&8080].access.tls_mode, mode, "{origin}");
        assert_eq!(origin_of(&text), origin);
    }
}

/// Who says the mode of port 8080 of the web.
fn origin_of(text: &str) -> String {
    let resources = load(text);
    let (guards, mut problems) = (Guards::of(&resources), Vec::new());
    let instances = instances::collect(&resources, &web(), &mut problems);
    let instance = &instances["default/web"];
    let views = services::collect(&resources, &instances, &mut problems);
    let places = ["default/web", "default/other"].map(|id| views[id].place(&views[id].ports[0]));
    guards.mode(instance, 8080, &places).1.to_string()
}

#[test]
fn of_two_targets_that_lead_to_one_port_the_strict_one_counts() {
    let web_is = |web_mode: &str, other: &str| {
        let text = format!(
            "{WEB}{}{}",
            mode("default/a", &format!("targetRefs: [{{kind: Service, name: web}}], mode: {web_mode}")),
            mode("default/b", &format!("targetRefs: [{{kind: Service, name: other}}], mode: {other}")),
        );
        ports(&text, &web())[&8080].access.tls_mode
    };
    assert_eq!(web_is("Strict", "Permissive"), TlsMode::Strict);
    assert_eq!(web_is("Permissive", "Strict"), TlsMode::Strict);
    assert_eq!(web_is("Permissive", "Permissive"), TlsMode::Permissive);
    assert_eq!(ModeOrigin::Mesh.to_string(), "MeshConfig default");
}

#[test]
fn of_two_policies_with_one_target_the_older_mode_counts() {
    let same = "targetRefs: [{kind: Service, name: web}], mode";
    let text = format!(
        "{WEB}{}{}",
        mode("default/a", &format!("{same}: Permissive")),
        mode("default/b", &format!("{same}: Strict"))
    );
    let (output, problems) = compile(&load(&text), &web());
    assert_eq!(problems.len(), 1, "the newer one is told that it has no effect");
    let config: v1::WorkloadConfig = get(&output, ResourceType::WorkloadConfig, "default/web");
    let modes = config.ports.iter().map(|port| port.access.as_ref().expect("access").tls_mode());
    assert!(modes.into_iter().all(|mode| mode == v1::TlsMode::Permissive));
}
