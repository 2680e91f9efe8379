//! Sets of objects, and what their statuses say.

use super::*;
use crate::compile::compile;

/// The objects of the texts, each as if it were in the store, the first the oldest.
fn stored(texts: &[String]) -> Resources {
    let mut all = Resources::of("weft.local");
    for (age, text) in texts.iter().enumerate() {
        let mut object = crate::source::yaml_to_json(text).expect("YAML").remove(0);
        object["metadata"]["creationTimestamp"] = format!("2026-01-01T00:00:{age:02}Z").into();
        object["metadata"]["generation"] = 7.into();
        let metadata = &object["metadata"];
        let scope =
            if object["kind"] == "MeshConfig" { "" } else { metadata["namespace"].as_str().unwrap_or("default") };
        let key = Key::new(object["kind"].as_str().expect("a kind"), scope, metadata["name"].as_str().expect("a name"));
        let text = serde_json::to_string(&object).expect("JSON");
        let (loaded, problems) = Resources::from_text(&key.to_string(), &text);
        assert_eq!(problems, [], "{text}");
        all.services.extend(loaded.services);
        all.routes.extend(loaded.routes);
        all.grpc_routes.extend(loaded.grpc_routes);
        all.workloads.extend(loaded.workloads);
        all.traffic_policies.extend(loaded.traffic_policies);
        all.authorization_policies.extend(loaded.authorization_policies);
        all.peer_authentications.extend(loaded.peer_authentications);
        all.rate_limit_policies.extend(loaded.rate_limit_policies);
        all.fault_injections.extend(loaded.fault_injections);
        all.telemetry_policies.extend(loaded.telemetry_policies);
        all.mesh_configs.extend(loaded.mesh_configs);
    }
    all
}

fn refusal(kind: ResourceType, name: &str) -> Refused {
    refusal_by("default", kind, name)
}

fn refusal_by(clients: &str, kind: ResourceType, name: &str) -> Refused {
    let key = (kind, name.to_owned(), clients.to_owned());
    Refused::from([(key, format!("{} {name}: ports[0]: bad", kind.name()))])
}

/// One line for each condition of an object: `reference? name state reason`.
fn told(texts: &[String], refused: &Refused, key: &str) -> Vec<String> {
    let resources = stored(texts);
    let (_, problems) = compile(&resources, &[]);
    let verdicts = of(&resources, &problems, refused);
    let (_, verdict) = verdicts.iter().find(|(found, _)| found.to_string() == key).expect("a verdict");
    assert_eq!(verdict.of.1, Some(7), "of what it was found");
    let groups = match &verdict.conditions {
        Conditions::Each(each) => each.clone(),
        Conditions::Whole(all) => vec![(Value::Null, all.clone())],
    };
    let line = |reference: &Value, condition: &Condition| {
        let to = reference["name"].as_str().map_or_else(String::new, |name| format!("{name}: "));
        format!("{to}{} {} {}", condition.name, condition.holds, condition.reason)
    };
    groups.iter().flat_map(|(to, all)| all.iter().map(|condition| line(to, condition)).collect::<Vec<_>>()).collect()
}

fn service(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{name: http, port: 80}}]}}")
}

fn route(kind: &str, parent: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r}}\nspec:\n  \
         parentRefs: [{{kind: Service, group: '', name: {parent}}}]\n  rules: [{rules}]"
    )
}

fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}")
}

fn target(service: &str) -> String {
    format!("targetRefs: [{{kind: Service, name: {service}}}]")
}

#[test]
fn a_route_says_what_holds_for_each_parent() {
    let none = Refused::new();
    let backend = "{backendRefs: [{name: web, port: 80}]}";
    let cases: [(&str, &str, &str, [&str; 3]); 12] = [
        (
            "HTTPRoute",
            "web",
            "{backendRefs: [{name: web, port: 80, kind: Bucket, group: a.example}]}",
            ["Accepted true Accepted", "ResolvedRefs false InvalidKind", "Programmed true Programmed"],
        ),
        (
            "HTTPRoute",
            "web",
            "{backendRefs: [{name: web, port: 80, namespace: far}]}",
            ["Accepted true Accepted", "ResolvedRefs false RefNotPermitted", "Programmed true Programmed"],
        ),
        (
            "GRPCRoute",
            "web",
            "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: wbe, port: 80}}}]}",
            ["Accepted true Accepted", "ResolvedRefs false BackendNotFound", "Programmed true Programmed"],
        ),
        (
            "GRPCRoute",
            "web",
            "{sessionPersistence: {sessionName: s}, backendRefs: [{name: web, port: 80}]}",
            ["Accepted true Accepted", "ResolvedRefs true ResolvedRefs", "Programmed true Programmed"],
        ),
        (
            "HTTPRoute",
            "web",
            "{sessionPersistence: {}, backendRefs: [{name: pinned, port: 80}]}",
            ["Accepted false UnsupportedValue", "ResolvedRefs true ResolvedRefs", "Programmed false UnsupportedValue"],
        ),
        (
            "HTTPRoute",
            "web",
            backend,
            ["Accepted true Accepted", "ResolvedRefs true ResolvedRefs", "Programmed true Programmed"],
        ),
        (
            "HTTPRoute",
            "web",
            "{backendRefs: [{name: wbe, port: 80}]}",
            ["Accepted true Accepted", "ResolvedRefs false BackendNotFound", "Programmed true Programmed"],
        ),
        (
            "HTTPRoute",
            "wbe",
            backend,
            ["Accepted false NoMatchingParent", "ResolvedRefs true ResolvedRefs", "Programmed false NoMatchingParent"],
        ),
        (
            "HTTPRoute",
            "web",
            "{filters: [{type: ExtensionRef, extensionRef: {group: a.example, kind: K, name: n}}]}",
            ["Accepted false UnsupportedValue", "ResolvedRefs true ResolvedRefs", "Programmed false UnsupportedValue"],
        ),
        (
            "GRPCRoute",
            "web",
            backend,
            ["Accepted true Accepted", "ResolvedRefs true ResolvedRefs", "Programmed true Programmed"],
        ),
        (
            "GRPCRoute",
            "wbe",
            backend,
            ["Accepted false NoMatchingParent", "ResolvedRefs true ResolvedRefs", "Programmed false NoMatchingParent"],
        ),
        (
            "GRPCRoute",
            "web",
            "{backendRefs: [{name: wbe, port: 80}]}",
            ["Accepted true Accepted", "ResolvedRefs false BackendNotFound", "Programmed true Programmed"],
        ),
    ];
    let pinned = service("pinned").replace("spec: {", "spec: {sessionAffinity: ClientIP, ");
    for (kind, parent, rules, expected) in cases {
        let found =
            told(&[service("web"), pinned.clone(), route(kind, parent, rules)], &none, &format!("{kind} default/r"));
        assert_eq!(found, expected.map(|line| format!("{parent}: {line}")), "{kind} {parent} {rules}");
    }
}

#[test]
fn an_http_route_beside_a_grpc_route_at_one_port_is_not_accepted() {
    let routes = [service("web"), route("GRPCRoute", "web", "{}"), route("HTTPRoute", "web", "{}")];
    let none = Refused::new();
    assert_eq!(told(&routes, &none, "HTTPRoute default/r")[0], "web: Accepted false Conflicted");
    assert_eq!(told(&routes, &none, "GRPCRoute default/r")[0], "web: Accepted true Accepted");
}

#[test]
fn a_policy_says_what_holds_for_each_target() {
    let both = "targetRefs: [{kind: Service, name: web}, {kind: Service, name: wbe}]";
    let section = |name: &str| format!("targetRefs: [{{kind: Service, name: web, sectionName: {name}}}]");
    let limits = "limits: [{requests: 1}]";
    let accepted = ["web: Accepted true Accepted", "web: Programmed true Programmed"];
    let no_port = ["web: Accepted false TargetNotFound", "web: Programmed false TargetNotFound"];
    let cases: [(&str, String, &[&str]); 12] = [
        ("TrafficPolicy", target("web"), &accepted),
        ("AuthorizationPolicy", target("web"), &accepted),
        ("PeerAuthentication", format!("{}, mode: Strict", target("web")), &accepted),
        ("TelemetryPolicy", format!("{}, accessLog: {{mode: All}}", target("web")), &accepted),
        (
            "RateLimitPolicy",
            limits.to_owned(),
            &["default: Accepted true Accepted", "default: Programmed true Programmed"],
        ),
        // A Service without a selector, as all of these: nobody would count.
        (
            "RateLimitPolicy",
            format!("{}, {limits}", target("web")),
            &["web: Accepted false UnsupportedValue", "web: Programmed false UnsupportedValue"],
        ),
        ("TrafficPolicy", section("http"), &accepted),
        ("TrafficPolicy", section("htpt"), &no_port),
        (
            "TrafficPolicy",
            both.to_owned(),
            &[accepted[0], accepted[1], "wbe: Accepted false TargetNotFound", "wbe: Programmed false TargetNotFound"],
        ),
        ("TrafficPolicy", String::new(), &["default: Accepted true Accepted", "default: Programmed true Programmed"]),
        (
            "TrafficPolicy",
            "targetRefs: [{kind: Namespace, name: other}]".to_owned(),
            &["other: Accepted false Invalid", "other: Programmed false Invalid"],
        ),
        (
            "TrafficPolicy",
            "targetRefs: [{kind: HTTPRoute, group: gateway.networking.k8s.io, name: r}]".to_owned(),
            &["r: Accepted false TargetNotFound", "r: Programmed false TargetNotFound"],
        ),
    ];
    for (kind, spec, expected) in cases {
        let objects = [service("web"), policy(kind, "p", &spec)];
        assert_eq!(told(&objects, &Refused::new(), &format!("{kind} default/p")), expected, "{kind} {spec}");
    }
}

#[test]
fn of_two_policies_at_one_target_the_older_wins_and_then_the_first_by_name() {
    let conflicted = "web: Accepted false Conflicted";
    let accepted = "web: Accepted true Accepted";
    let fine = "default: Accepted true Accepted";
    let limits = |targets: &str| format!("{targets}, limits: {{requests: 1}}");
    let named = limits("targetRefs: [{kind: Namespace, name: default}]");
    let peer = format!("{}, mode: Strict", target("web"));
    let (of_web, whole) = (limits(&target("web")), "limits: {requests: 2}".to_owned());
    let cases: [(&str, String, String, [&str; 2]); 5] = [
        ("TrafficPolicy", of_web.clone(), of_web.clone(), [accepted, conflicted]),
        ("PeerAuthentication", peer.clone(), peer, [accepted, conflicted]),
        ("AuthorizationPolicy", target("web"), target("web"), [accepted, accepted]),
        ("TrafficPolicy", named, whole.clone(), [fine, "default: Accepted false Conflicted"]),
        ("TrafficPolicy", of_web.clone(), whole, [accepted, fine]),
    ];
    for (kind, older, newer, expected) in cases {
        // The older one is the last by name.
        let objects = [service("web"), policy(kind, "z", &older), policy(kind, "a", &newer)];
        for (name, expected) in ["z", "a"].iter().zip(expected) {
            let found = told(&objects, &Refused::new(), &format!("{kind} default/{name}"));
            assert_eq!(found[0], expected, "{kind} {name}");
        }
    }
    let mut same = stored(&[service("web"), policy("TrafficPolicy", "z", &of_web)]);
    // As old as the other.
    let first = stored(&[service("web"), policy("TrafficPolicy", "a", &of_web)]);
    same.traffic_policies.extend(first.traffic_policies);
    let (_, problems) = compile(&same, &[]);
    assert_eq!(problems.iter().map(|problem| problem.file.as_str()).collect::<Vec<_>>(), ["TrafficPolicy default/z"]);
}

#[test]
fn what_a_sidecar_refuses_shows_on_the_service_and_on_what_is_attached_to_it() {
    let objects =
        [service("web"), service("other"), route("HTTPRoute", "web", "{backendRefs: [{name: other, port: 80}]}")];
    let refused = "Programmed false RefusedBySidecar";
    for (kind, name) in [(ResourceType::Service, "default/web"), (ResourceType::EndpointSlice, "default/web/0")] {
        let by = refusal(kind, name);
        assert_eq!(told(&objects, &by, "Service default/web"), ["Accepted true Accepted", refused]);
        assert_eq!(told(&objects, &by, "HTTPRoute default/r")[2], format!("web: {refused}"));
        assert_eq!(told(&objects, &by, "Service default/other")[1], "Programmed true Programmed");
    }
    let workload = policy("Workload", "w", "address: 127.0.0.1");
    let by = refusal(ResourceType::WorkloadConfig, "default/w");
    assert_eq!(told(std::slice::from_ref(&workload), &by, "Workload default/w"), ["Accepted true Accepted", refused]);
    assert_eq!(told(&[workload], &Refused::new(), "Workload default/w")[1], "Programmed true Programmed");
    let message = programmed(None, Some("Service default/web: ports[0]: bad")).message;
    assert!(message.contains("ports[0]: bad"), "{message}");
}

#[test]
fn what_only_clients_with_routes_of_their_own_refuse_shows_on_those_routes_alone() {
    let consumer = route("HTTPRoute", "web, namespace: default", "{backendRefs: [{name: own, port: 80}]}")
        .replace("{name: r}", "{name: mine, namespace: far}");
    let own = service("own").replace("{name: own}", "{name: own, namespace: far}");
    let objects = [service("web"), route("HTTPRoute", "web", "{}"), own, consumer];
    let programmed = |refused: &Refused| {
        ["Service default/web", "HTTPRoute default/r", "HTTPRoute far/mine"].map(|key| {
            let last = told(&objects, refused, key).pop().expect("a condition");
            last.trim_start_matches("web: ").starts_with("Programmed true")
        })
    };
    let by = |clients, kind, name| programmed(&refusal_by(clients, kind, name));
    assert_eq!(by("far", ResourceType::Service, "default/web"), [true, true, false]);
    assert_eq!(
        by("third", ResourceType::Service, "default/web"),
        [false, false, true],
        "these get it as all others do"
    );
    assert_eq!(by("far", ResourceType::EndpointSlice, "default/web/0"), [false; 3], "endpoints are the same for all");
    let mut all = refusal_by("far", ResourceType::Service, "default/web");
    all.extend(refusal_by("third", ResourceType::Service, "default/web"));
    assert_eq!(programmed(&all), [false; 3]);
}

#[test]
fn the_defaults_of_the_mesh_have_one_name() {
    let config = |name: &str| policy("MeshConfig", name, "peerMode: Strict");
    let of = |name: &str| told(&[config(name)], &Refused::new(), &format!("MeshConfig {name}"));
    assert_eq!(of("default"), ["Accepted true Accepted", "Programmed true Programmed"]);
    assert_eq!(of("other"), ["Accepted false Invalid", "Programmed false Invalid"]);
}

#[test]
fn an_object_of_a_file_has_no_verdict_and_one_that_is_left_out_says_why() {
    let (mut resources, _) = Resources::from_text("shop.yaml", &service("web"));
    let problem = Problem { message: "already defined".into(), ..Problem::default() }.because(Reason::Conflicted);
    let key = Key::new("TrafficPolicy", "shop", "p");
    resources.left_out.insert(key.clone(), crate::source::LeftOut { of: (None, Some(2)), problem });
    let verdicts = of(&resources, &[], &Refused::new());
    assert_eq!(verdicts.keys().collect::<Vec<_>>(), [&key]);
    let Conditions::Whole(all) = &verdicts[&key].conditions else { panic!("of the whole") };
    assert!(all.iter().all(|condition| !condition.holds && condition.reason == "Conflicted"), "{all:?}");
}

#[test]
fn a_hint_names_nothing_of_another_namespace_and_is_not_sought_for_each_of_a_mass() {
    let mut objects = vec![service("web").replace("name: web", "name: web, namespace: defaul")];
    let wrong = policy("TrafficPolicy", "p", &target("web"));
    let hints = |objects: &[String]| {
        let (_, problems) = compile(&stored(objects), &[]);
        problems.into_iter().map(|problem| problem.hint).collect::<Vec<_>>()
    };
    objects.push(wrong.clone());
    assert_eq!(hints(&objects), [""], "defaul/web is another's");
    assert_eq!(hints(&[service("wbe"), wrong]), ["did you mean \"default/wbe\"?"]);
    let mut all = stored(&[service("web")]);
    let policy = stored(&[policy("TrafficPolicy", "p", &target("wbe"))]).traffic_policies["default/p"].clone();
    all.traffic_policies.extend((0..200).map(|k| (format!("default/p{k}"), policy.clone())));
    let (_, problems) = compile(&all, &[]);
    assert_eq!(problems.iter().filter(|problem| !problem.hint.is_empty()).count(), crate::compile::routes::HINTS);
    assert_eq!(problems.len(), 200);
}
