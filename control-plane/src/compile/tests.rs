//! What comes out for given resources and registrations.

mod accepted;
mod access;
mod fields;
mod jwt;
mod policies;
mod telemetry;

use prost::Message;

use super::*;

const SHOP: &str = include_str!("../../../examples/resources/shop.yaml");

fn registered(name: &str, labels: &[(&str, &str)], ports: &[(u32, &str, v1::Protocol)]) -> Arc<Registered> {
    let ports = ports.iter().map(|(port, name, protocol)| v1::WorkloadPort {
        port: *port,
        name: (*name).to_owned(),
        protocol: (*protocol).into(),
        undeclared: *name == "undeclared",
    });
    Arc::new(Registered {
        registration: v1::Registration {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            address: "127.0.0.1".to_owned(),
            mesh_address: "127.0.0.1:4001".to_owned(),
            ports: ports.collect(),
            healthy: true,
            ..v1::Registration::default()
        },
        spiffe_id: format!("spiffe://weft.local/ns/default/sa/{name}"),
    })
}

fn load(text: &str) -> Resources {
    let (resources, problems) = Resources::from_text("f.yaml", text);
    assert_eq!(problems, []);
    resources
}

fn get<M: Message + Default>(output: &Output, kind: ResourceType, name: &str) -> M {
    let found = output.get(&(kind, name.to_owned())).unwrap_or_else(|| panic!("{name} in {:?}", output.keys()));
    M::decode(found.bytes.as_ref()).unwrap()
}

fn texts(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// Services `web` and `other` with port 80 and a route of `web` with these rules.
fn route(rules: &str) -> String {
    let service = |name: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n---\n")
    };
    format!(
        "{}{}apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  \
         parentRefs: [{{kind: Service, name: web}}]\n  rules:\n{rules}",
        service("web"),
        service("other"),
    )
}

fn routing(rules: &str) -> (v1::Routing, Vec<String>) {
    let (output, problems) = compile(&load(&route(rules)), &[]);
    let service: v1::Service = get(&output, ResourceType::Service, "default/web");
    (service.ports[0].routing.clone().unwrap(), texts(&problems))
}

#[test]
fn the_shop_example_splits_by_version() {
    let ports = [(8080, "http", v1::Protocol::Http)];
    let instances = [
        registered("catalog-1", &[("app", "catalog"), ("version", "v1")], &ports),
        registered("catalog-2", &[("app", "catalog"), ("version", "v2")], &ports),
    ];
    let (output, problems) = compile(&load(SHOP), &instances);
    assert_eq!(problems, []);
    let service: v1::Service = get(&output, ResourceType::Service, "default/catalog");
    assert_eq!(service.hostnames, ["catalog.default", "catalog.default.svc.cluster.local", "catalog.default.mesh"]);
    assert_eq!(service.ports[0].protocol(), v1::Protocol::Http);
    let rule = &service.ports[0].routing.as_ref().unwrap().rules[0];
    assert_eq!(rule.name, "default/catalog#split");
    assert_eq!(
        rule.requests.as_ref().and_then(|requests| requests.timeout),
        Some(prost_types::Duration { seconds: 10, nanos: 0 })
    );
    let backends: Vec<_> = rule.backends.iter().map(|b| (b.service.as_str(), b.port, b.weight)).collect();
    assert_eq!(backends, [("default/catalog-v1", 80, 80), ("default/catalog-v2", 80, 20)]);
    let slice: v1::EndpointSlice = get(&output, ResourceType::EndpointSlice, "default/catalog-v2/0");
    assert_eq!(slice.endpoints.len(), 1);
    assert_eq!(slice.endpoints[0].workload, "default/catalog-2");
    assert_eq!(slice.endpoints[0].ports, [(80, 8080)].into());
    assert_eq!(slice.endpoints[0].spiffe_id, "spiffe://weft.local/ns/default/sa/catalog-2");
    let config: v1::WorkloadConfig = get(&output, ResourceType::WorkloadConfig, "default/catalog-1");
    assert_eq!(config.ports.len(), 1);
    assert_eq!((config.ports[0].port, config.ports[0].protocol()), (8080, v1::Protocol::Http));
    let services: Vec<_> = config.ports[0].services.iter().map(|s| (s.service.as_str(), s.port)).collect();
    assert_eq!(services, [("default/catalog", 80), ("default/catalog-v1", 80)]);
}

#[test]
fn a_workload_that_nobody_selects_gets_a_service() {
    let instances = [
        registered("orders-a", &[("app", "orders")], &[(9000, "grpc", v1::Protocol::Unspecified)]),
        registered(
            "orders-b",
            &[("app", "orders")],
            &[(9001, "x", v1::Protocol::Http2), (5432, "", v1::Protocol::Unspecified)],
        ),
        registered("lone", &[], &[(7000, "", v1::Protocol::Unspecified)]),
        registered("client", &[("app", "client")], &[]),
    ];
    let (output, problems) = compile(&Resources::default(), &instances);
    assert_eq!(problems, []);
    let orders: v1::Service = get(&output, ResourceType::Service, "default/orders");
    let ports: Vec<_> = orders.ports.iter().map(|port| (port.port, port.protocol())).collect();
    assert_eq!(ports, [(5432, v1::Protocol::Tcp), (9000, v1::Protocol::Grpc), (9001, v1::Protocol::Http2)]);
    let slice: v1::EndpointSlice = get(&output, ResourceType::EndpointSlice, "default/orders/0");
    assert_eq!(slice.endpoints[0].ports, [(9000, 9000)].into());
    assert_eq!(slice.endpoints[1].ports, [(5432, 5432), (9001, 9001)].into());
    get::<v1::Service>(&output, ResourceType::Service, "default/lone");
    assert!(!output.contains_key(&(ResourceType::Service, "default/client".to_owned())), "it has no ports");
    get::<v1::WorkloadConfig>(&output, ResourceType::WorkloadConfig, "default/client");
}

#[test]
fn replicas_with_ports_of_their_own_are_endpoints_of_one_port_of_their_service() {
    let (http, tcp) = (v1::Protocol::Http, v1::Protocol::Tcp);
    let ports = |instances: &[Arc<Registered>]| {
        let (output, problems) = compile(&load(""), instances);
        assert_eq!(problems, []);
        let slice: v1::EndpointSlice = get(&output, ResourceType::EndpointSlice, "default/web/0");
        let config = |name: &str| get::<v1::WorkloadConfig>(&output, ResourceType::WorkloadConfig, name);
        let inbound = config("default/web-b").ports.iter().map(|port| (port.port, port.services.len())).collect();
        let endpoints = slice.endpoints.iter().map(|endpoint| endpoint.ports.clone().into_iter().collect());
        (endpoints.collect::<Vec<std::collections::BTreeMap<u32, u32>>>(), inbound)
    };
    let web = |name: &str, of: &[(u32, &str, v1::Protocol)]| registered(name, &[("app", "web")], of);
    let (endpoints, inbound): (_, Vec<_>) =
        ports(&[web("web-a", &[(8081, "", http)]), web("web-b", &[(8082, "", http)])]);
    assert_eq!(endpoints, [[(8081, 8081), (8082, 8081)].into(), [(8081, 8082), (8082, 8082)].into()]);
    assert_eq!(inbound, [(8082, 2)]);
    // By name, whatever else they have.
    let more = [(8081, "main", http), (9, "", tcp)];
    let (endpoints, inbound) = ports(&[web("web-a", &more), web("web-b", &[(8082, "main", http)])]);
    assert_eq!(endpoints, [[(9, 9), (8081, 8081), (8082, 8081)].into(), [(8081, 8082), (8082, 8082)].into()]);
    assert_eq!(inbound, [(8082, 2)]);
    // What nobody declared is no port of the service, and has policies all the same.
    let (endpoints, inbound) =
        ports(&[web("web-a", &[(8081, "", http)]), web("web-b", &[(8082, "", http), (7, "undeclared", tcp)])]);
    assert_eq!(endpoints[1], [(8081, 8082), (8082, 8082)].into());
    assert_eq!(inbound, [(7, 0), (8082, 2)]);
    // Where it is not plain which port is meant, it is that of the number.
    for (a, b) in [(&[(1, "", http), (2, "", http)][..], &[(3, "", http)][..]), (&[(1, "", http)], &[(3, "", tcp)])] {
        let (endpoints, _) = ports(&[web("web-a", a), web("web-b", b)]);
        assert_eq!(endpoints[1], [(3, 3)].into(), "{a:?} {b:?}");
    }
}

#[test]
fn a_service_without_selector_takes_its_endpoint_slices() {
    let resources = load(
        "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {ports: [{port: 5432, name: sql}]}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}\n\
         ports: [{name: sql, port: 15432}]\nendpoints:\n- addresses: [127.0.0.1]\n- addresses: [127.0.0.2]\n  \
         conditions: {ready: false}\n",
    );
    let (output, problems) = compile(&resources, &[]);
    assert_eq!(problems, []);
    let slice: v1::EndpointSlice = get(&output, ResourceType::EndpointSlice, "default/db/0");
    let seen: Vec<_> = slice.endpoints.iter().map(|e| (e.address.as_str(), e.ports[&5432], e.healthy)).collect();
    assert_eq!(seen, [("127.0.0.1", 15432, true), ("127.0.0.2", 15432, false)]);
}

#[test]
fn endpoints_come_in_slices_of_100_and_slice_0_is_always_there() {
    let ports = [(80, "", v1::Protocol::Http)];
    let many: Vec<_> = (0..201).map(|k| registered(&format!("w{k}"), &[("app", "big")], &ports)).collect();
    let (output, _) = compile(&load(SHOP), &many);
    let sizes: Vec<_> = (0..3)
        .map(|k| {
            let slice: v1::EndpointSlice = get(&output, ResourceType::EndpointSlice, &format!("default/big/{k}"));
            (slice.index, slice.slice_count, slice.endpoints.len())
        })
        .collect();
    assert_eq!(sizes, [(0, 3, 100), (1, 0, 100), (2, 0, 1)]);
    assert_eq!(output[&(ResourceType::EndpointSlice, "default/big/2".to_owned())].aliases, ["default/big"]);
    let empty: v1::EndpointSlice = get(&output, ResourceType::EndpointSlice, "default/catalog/0");
    assert_eq!((empty.slice_count, empty.endpoints.len()), (1, 0));
}

#[test]
fn a_workload_object_is_an_instance_with_the_identity_of_its_account() {
    let text = "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: pay-1, namespace: shop, labels: {app: pay}}\n\
                spec: {address: 10.0.0.9, meshAddress: '10.0.0.9:4143', serviceAccount: pay, ports: [{port: 80, protocol: grpc}]}\n";
    let (output, _) = compile(&load(text), &[]);
    let service: v1::Service = get(&output, ResourceType::Service, "shop/pay");
    assert_eq!(service.ports[0].protocol(), v1::Protocol::Grpc);
    let slice: v1::EndpointSlice = get(&output, ResourceType::EndpointSlice, "shop/pay/0");
    assert_eq!(slice.endpoints[0].spiffe_id, "spiffe://weft.local/ns/shop/sa/pay");
    assert!(!output.contains_key(&(ResourceType::WorkloadConfig, "shop/pay-1".to_owned())));
}

#[test]
fn matches_are_in_the_order_of_gateway_api() {
    let (routing, problems) = routing(
        "  - matches:\n    - {}\n    - path: {value: /a}\n    - path: {value: /a/b/}\n    - {path: {value: /a}, method: GET}\n    \
         - {path: {value: /a}, headers: [{name: X, value: '1'}]}\n    \
         - {path: {value: /a}, queryParams: [{name: q, value: '1'}]}\n    - path: {type: Exact, value: /a}\n    \
         backendRefs: [{name: other, port: 80}]\n  - matches: [{path: {value: /a}}]\n",
    );
    assert_eq!(problems, [] as [String; 0]);
    let order: Vec<_> = routing
        .matches
        .iter()
        .map(|found| {
            let path = match found.path.clone().unwrap().kind.unwrap() {
                v1::path_match::Kind::Exact(path) => format!("={path}"),
                v1::path_match::Kind::Prefix(path) => path,
                v1::path_match::Kind::Regex(pattern) => format!("~{pattern}"),
            };
            format!("{path} {} {} {} {}", found.method, found.headers.len(), found.query.len(), found.rule)
        })
        .collect();
    assert_eq!(
        order,
        ["=/a  0 0 0", "/a/b  0 0 0", "/a GET 0 0 0", "/a  1 0 0", "/a  0 1 0", "/a  0 0 0", "/a  0 0 1", "/  0 0 0"]
    );
    assert_eq!(routing.matches[3].headers[0].name, "x");
}

#[test]
fn a_dangling_backend_is_reported_and_answers_500() {
    let (routing, problems) = routing(
        "  - backendRefs:\n    - {name: othr, port: 80}\n    - {name: other, port: 81, weight: 3}\n    \
         - {name: other, port: 80}\n",
    );
    assert_eq!(
        problems,
        [
            "f.yaml:18:14: spec.rules[0].backendRefs[0].name: Service \"default/othr\" does not exist (did you mean \
             \"default/other\"?)",
            "f.yaml:19:27: spec.rules[0].backendRefs[1].port: Service \"default/other\" has no such port (it has 80)",
        ]
    );
    let backends: Vec<_> = routing.rules[0].backends.iter().map(|b| (b.service.as_str(), b.weight)).collect();
    assert_eq!(backends, [("", 1), ("", 3), ("default/other", 1)]);
}

#[test]
fn a_missing_parent_is_reported() {
    let text = route("  - backendRefs: [{name: other, port: 80}]\n").replace("name: web}]\n", "name: wbe}]\n");
    let (_, problems) = compile(&load(&text), &[]);
    assert_eq!(
        texts(&problems),
        [
            "f.yaml:15:38: spec.parentRefs[0].name: Service \"default/wbe\" does not exist (did you mean \"default/web\"?)"
        ]
    );
}

#[test]
fn what_is_not_supported_is_said_and_answers_500() {
    let extension = "{type: ExtensionRef, extensionRef: {group: g.example, kind: K, name: n}}";
    let (routing, problems) = routing(&format!(
        "  - filters: [{extension}]\n    backendRefs: [{{name: other, port: 80}}]\n  \
         - backendRefs:\n    - {{name: other, port: 80}}\n    - {{name: web, port: 80, filters: [{extension}]}}\n",
    ));
    assert_eq!(
        problems,
        [
            "f.yaml:17:22: spec.rules[0].filters[0].type: filter ExtensionRef is not supported: the rule answers 500 \
             (remove the filter)",
            "f.yaml:21:46: spec.rules[1].backendRefs[1].filters[0].type: filter ExtensionRef at a backend is not \
             supported: its share answers 500 (remove the filter)",
        ]
    );
    let targets = |rule: usize| routing.rules[rule].backends.iter().map(|backend| backend.service.as_str());
    assert_eq!(targets(0).count(), 0);
    assert_eq!(targets(1).collect::<Vec<_>>(), ["default/other", ""]);
}

#[test]
fn a_registration_that_breaks_the_rules_is_reported_and_left_out() {
    let bad = registered("w", &[], &[(70000, "", v1::Protocol::Http)]);
    let (output, problems) = compile(&Resources::default(), &[bad]);
    assert!(output.is_empty());
    assert_eq!(
        texts(&problems),
        ["registration default/w: ports[0].port: \"70000\" is not a port: must be 1 to 65535"]
    );
}

#[test]
fn the_newer_incarnation_of_a_workload_wins() {
    let mut old = registered("w", &[], &[(80, "", v1::Protocol::Http)]);
    let mut new = registered("w", &[], &[(81, "", v1::Protocol::Http)]);
    Arc::make_mut(&mut old).registration.epoch_ms = 1;
    Arc::make_mut(&mut new).registration.epoch_ms = 2;
    for both in [[old.clone(), new.clone()], [new, old]] {
        let (output, _) = compile(&Resources::default(), &both);
        let config: v1::WorkloadConfig = get(&output, ResourceType::WorkloadConfig, "default/w");
        assert_eq!(config.ports[0].port, 81);
    }
}

#[test]
fn a_workload_beside_a_service_of_its_name_that_does_not_select_it_is_reported() {
    let instance = registered("c", &[("app", "catalog-v1")], &[(80, "", v1::Protocol::Http)]);
    let (_, problems) = compile(&load(SHOP), &[instance]);
    assert_eq!(
        texts(&problems),
        [
            "registration default/c: labels: Service \"default/catalog-v1\" exists and does not select this workload, nor \
          does another (give it the labels of the Service's selector)"
        ]
    );
}

#[test]
fn a_route_without_rules_answers_500_everywhere() {
    let text = route("").replace("  rules:\n", "");
    let (output, problems) = compile(&load(&text), &[]);
    assert_eq!(problems, []);
    let service: v1::Service = get(&output, ResourceType::Service, "default/web");
    let routing = service.ports[0].routing.as_ref().unwrap();
    assert_eq!((routing.matches.len(), routing.rules.len(), routing.rules[0].backends.len()), (1, 1, 0));
}

#[test]
fn whether_calls_may_leave_the_mesh_is_said_to_every_workload() {
    let mesh = |spec: &str| {
        format!("apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {{{spec}}}\n")
    };
    for (spec, expected) in [
        ("", v1::OutboundTraffic::AllowAny),
        ("outboundTraffic: AllowAny", v1::OutboundTraffic::AllowAny),
        ("outboundTraffic: RegistryOnly", v1::OutboundTraffic::RegistryOnly),
    ] {
        let (output, problems) = compile(&load(&mesh(spec)), &[registered("client", &[], &[])]);
        assert_eq!(problems, []);
        let config: v1::WorkloadConfig = get(&output, ResourceType::WorkloadConfig, "default/client");
        assert_eq!(config.outbound_traffic(), expected, "{spec}");
    }
}
