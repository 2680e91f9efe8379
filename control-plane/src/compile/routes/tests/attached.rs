//! Where routes are attached, for whose clients, and what they may refer to.

use super::*;

fn rule_to(name: &str, backend: &str) -> String {
    format!("{{name: {name}, backendRefs: [{backend}]}}")
}

/// What the only match of a port leads to: the rule and its first backend.
fn leads(output: &Output, namespace: &str, port: u16) -> Option<(String, String)> {
    let service = held(output, "default/web", namespace);
    service.port(port)?.routing.as_ref()?;
    let rule = rule(&service, port, "GET /")?;
    let target = rule.backends.first()?.target.as_ref().map_or_else(String::new, |target| target.service.to_string());
    Some((rule.name.to_string(), target))
}

fn led(rule: &str, service: &str) -> Option<(String, String)> {
    Some((rule.to_owned(), service.to_owned()))
}

#[test]
fn a_route_is_attached_by_port_or_name_of_the_port_or_to_all_ports() {
    for (parent, ports) in [
        ("{kind: Service, name: web}", [true, true]),
        ("{kind: Service, group: '', name: web, port: 7070}", [false, true]),
        ("{kind: Service, group: core, name: web, sectionName: http}", [true, false]),
        ("{kind: Service, name: web, port: 80}, {kind: Service, name: web, sectionName: grpc}", [true, true]),
    ] {
        for kind in ["HTTPRoute", "GRPCRoute"] {
            let (output, problems) =
                mesh(&attached(kind, "name: r", parent, &rule_to("it", "{name: other, port: 80}")));
            assert_eq!(problems, [] as [String; 0], "{parent}");
            let service = held(&output, "default/web", "default");
            assert_eq!([80, 7070].map(|port| service.port(port).expect("a port").routing.is_some()), ports, "{parent}");
        }
    }
    let hosts = "hostnames: [a.example]\n  parentRefs:";
    let text = attached("HTTPRoute", "name: r", "{kind: Service, name: web}", "{}").replace("parentRefs:", hosts);
    let (output, problems) = mesh(&text);
    assert_eq!((problems.len(), leads(&output, "default", 80)), (0, None), "hostnames say nothing in a mesh");
    assert!(rule(&held(&output, "default/web", "default"), 80, "GET / host=b.example").is_some());
}

#[test]
fn a_parent_that_is_not_there_or_not_a_service_is_reported() {
    for (parent, expected) in [
        (
            "{name: web}",
            "spec.parentRefs[0].kind: a parent of kind Gateway is not supported: this attachment is ignored \
                         (use kind Service with group \"\")",
        ),
        (
            "{kind: Service, name: web, port: 81}",
            "spec.parentRefs[0].port: Service \"default/web\" has no such port (it \
                                                  has 80 (http), 7070 (grpc))",
        ),
        (
            "{kind: Service, name: web, sectionName: x}",
            "spec.parentRefs[0].sectionName: Service \"default/web\" has no \
                                                        such port (it has 80 (http), 7070 (grpc))",
        ),
        // What there is in another namespace is not told.
        ("{kind: Service, name: stor, namespace: far}", "spec.parentRefs[0].name: Service \"far/stor\" does not exist"),
        (
            "{kind: Service, name: store, namespace: far, port: 81}",
            "spec.parentRefs[0].port: Service \"far/store\" has no such port",
        ),
        ("{kind: Service, name: web, namespace: far}", "spec.parentRefs[0].name: Service \"far/web\" does not exist"),
    ] {
        for kind in ["HTTPRoute", "GRPCRoute"] {
            assert_eq!(mesh(&attached(kind, "name: r", parent, "{}")).1, [expected], "{kind}");
        }
    }
}

#[test]
fn of_two_kinds_at_one_port_the_grpc_route_is_left() {
    let grpc = attached(
        "GRPCRoute",
        "name: g",
        "{kind: Service, name: web, port: 7070}",
        &rule_to("g", "{name: other, port: 80}"),
    );
    let http = |parent: &str| {
        let metadata = "name: h, creationTimestamp: '2020-01-01T00:00:00Z'";
        attached("HTTPRoute", metadata, parent, &rule_to("h", "{name: other, port: 80}"))
    };
    let (output, problems) = mesh(&format!("{grpc}{}", http("{kind: Service, name: web}")));
    assert_eq!(problems, [] as [String; 0], "a port of the parent is left");
    assert_eq!(leads(&output, "default", 80), led("default/h#h", "default/other"));
    assert_eq!(leads(&output, "default", 7070), led("default/g#g", "default/other"), "however old the other is");
    let (_, problems) = mesh(&format!("{grpc}{}", http("{kind: Service, name: web, port: 7070}")));
    assert_eq!(
        problems,
        ["spec.parentRefs[0]: GRPCRoutes are attached there, which precede: this attachment is ignored (attach it to \
             another port, or make it a GRPCRoute)"]
    );
}

#[test]
fn routes_of_one_kind_at_one_port_are_merged() {
    let a = route("HTTPRoute", "name: a", "{name: a, matches: [{path: {value: /a}}]}");
    let b = route("HTTPRoute", "name: b", "{name: b, matches: [{path: {value: /a/b}}]}");
    let (output, _) = mesh(&format!("{a}{b}"));
    let service = held(&output, "default/web", "default");
    assert_eq!(["GET /a", "GET /a/b", "GET /c"].map(|text| followed(&service, 80, text)), [Some("a"), Some("b"), None]);
}

#[test]
fn a_route_of_another_namespace_is_for_its_clients_in_place_of_the_others() {
    let own = route("HTTPRoute", "name: own", &rule_to("own", "{name: other, port: 80}"));
    let consumer = attached(
        "HTTPRoute",
        "name: c, namespace: far",
        "{kind: Service, name: web, namespace: default, port: 80}",
        &rule_to("c", "{name: store, port: 80}"),
    );
    let (output, problems) = mesh(&format!("{own}{consumer}"));
    assert_eq!(problems, [] as [String; 0]);
    assert_eq!(leads(&output, "far", 80), led("far/c#c", "far/store"));
    assert_eq!(leads(&output, "far", 7070), led("default/own#own", "default/other"), "it has none at this port");
    for namespace in ["default", "third"] {
        assert_eq!(leads(&output, namespace, 80), led("default/own#own", "default/other"));
    }
    let views = |output: &Output, name: &str| {
        output[&(ResourceType::Service, name.to_owned())].views.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!((views(&output, "default/web"), views(&output, "default/other").len()), (vec!["far".to_owned()], 0));
    let (output, _) = mesh(&consumer);
    assert_eq!((leads(&output, "far", 80).is_some(), leads(&output, "default", 80)), (true, None));
    let (output, _) = mesh(&own);
    assert_eq!(views(&output, "default/web").len(), 0);
}

#[test]
fn consumer_and_producer_routes_of_different_kinds_do_not_conflict() {
    let own = route("GRPCRoute", "name: own", &rule_to("own", "{name: other, port: 80}"));
    let consumer = route("HTTPRoute", "name: c, namespace: far", &rule_to("c", "{name: store, port: 80}"));
    let (output, problems) = mesh(&format!("{own}{consumer}"));
    assert_eq!(problems, [] as [String; 0]);
    assert_eq!(leads(&output, "far", 7070), led("far/c#c", "far/store"));
    assert_eq!(leads(&output, "default", 80), led("default/own#own", "default/other"));
}

/// A grant in namespace `far`.
fn grant(from: &str, to: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: far}}\n\
         spec: {{from: [{{group: gateway.networking.k8s.io, {from}}}], to: [{to}]}}\n"
    )
}

#[test]
fn a_backend_or_mirror_in_another_namespace_needs_a_grant_there() {
    let rows = [
        ("kind: HTTPRoute, namespace: default", "{group: '', kind: Service}", true),
        ("kind: HTTPRoute, namespace: default", "{group: '', kind: Service, name: store}", true),
        ("kind: HTTPRoute, namespace: default", "{group: '', kind: Service, name: shop}", false),
        ("kind: HTTPRoute, namespace: default", "{group: '', kind: Secret}", false),
        ("kind: GRPCRoute, namespace: default", "{group: '', kind: Service}", false),
        ("kind: HTTPRoute, namespace: third", "{group: '', kind: Service}", false),
    ];
    let far = "{name: store, namespace: far, port: 80}";
    let rules = format!(
        "{{filters: [{{type: RequestMirror, requestMirror: {{backendRef: {far}}}}}], backendRefs: [{far}, {{name: other, \
         port: 80}}]}}"
    );
    let route = route("HTTPRoute", "name: r", &rules);
    for (from, to, permitted) in rows {
        let (output, problems) = mesh(&format!("{route}{}", grant(from, to)));
        let service = held(&output, "default/web", "default");
        let rule = rule(&service, 80, "GET /").expect("a rule");
        assert_eq!(rule.backends[0].target.is_some(), permitted, "{from} {to}");
        assert_eq!(rule.filters.mirrors.len(), usize::from(permitted), "{from} {to}");
        assert!(rule.backends[1].target.is_some());
        assert_eq!(problems.len(), if permitted { 0 } else { 2 }, "{problems:?}");
    }
    assert_eq!(
        mesh(&route).1,
        [
            "spec.rules[0].filters[0].requestMirror.backendRef.namespace: a backend in another namespace needs a \
             ReferenceGrant: nothing is mirrored there (in namespace far, one from HTTPRoute of namespace default to \
             Service)",
            "spec.rules[0].backendRefs[0].namespace: a backend in another namespace needs a ReferenceGrant: its share \
             answers 500 (in namespace far, one from HTTPRoute of namespace default to Service)",
        ]
    );
}

#[test]
fn a_consumer_route_needs_no_grant_to_send_on_to_what_its_clients_called() {
    let back = rule_to("c", "{name: web, namespace: default, port: 80}");
    let (output, problems) = mesh(&route("HTTPRoute", "name: c, namespace: far", &back));
    assert_eq!((problems.len(), leads(&output, "far", 80)), (0, led("far/c#c", "default/web")));
    let elsewhere = rule_to("c", "{name: other, namespace: default, port: 80}");
    let (output, problems) = mesh(&route("HTTPRoute", "name: c, namespace: far", &elsewhere));
    assert_eq!((problems.len(), leads(&output, "far", 80)), (1, led("far/c#c", "")), "another service needs one");
    let gateway = attached(
        "HTTPRoute",
        "name: c, namespace: far",
        "{kind: Service, name: web, namespace: default}, {kind: Gateway, name: other, namespace: default}",
        &elsewhere,
    );
    assert_eq!(leads(&mesh(&gateway).0, "far", 80), led("far/c#c", ""), "nor is a Gateway of that name a call");
}
