use super::*;

fn wire_service() -> v1::Service {
    v1::Service {
        id: "shop/catalog".into(),
        hostnames: vec!["catalog.shop".into()],
        virtual_ips: vec!["10.0.0.1".into()],
        ports: vec![v1::ServicePort {
            port: 8080,
            name: "http".into(),
            protocol: v1::Protocol::Http1.into(),
            routing: Some(v1::Routing {
                rules: vec![v1::RouteRule {
                    name: "shop/r#0".into(),
                    backends: vec![v1::WeightedBackend { service: "shop/v1".into(), port: 80, weight: 3 }],
                    timeout: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
                    backend_timeout: None,
                }],
                matches: vec![v1::RouteMatch {
                    path: Some(v1::PathMatch { kind: Some(v1::path_match::Kind::Prefix("/a/".into())) }),
                    ..Default::default()
                }],
            }),
        }],
    }
}

fn broken(change: impl FnOnce(&mut v1::Service)) -> String {
    let mut wire = wire_service();
    change(&mut wire);
    service(wire).expect_err("the change breaks it").to_string()
}

#[test]
fn a_valid_service_is_converted_whole() {
    let service = service(wire_service()).expect("valid");
    let routing = service.ports[0].routing.as_ref().expect("routes");
    assert_eq!(routing.matches[0].path, PathMatch::Prefix("/a".into()), "no trailing slash in the model");
    assert_eq!(routing.rules[0].total_weight, 3);
    assert_eq!(routing.rules[0].timeout, Some(Duration::from_secs(2)));
    assert_eq!(service.referenced().next().map(|target| target.service.as_str()), Some("shop/v1"));
}

#[test]
fn every_error_has_path_value_and_reason() {
    assert_eq!(broken(|s| s.ports[0].port = 70_000), "ports[0].port: \"70000\": must be 1 to 65535");
    assert_eq!(broken(|s| s.id = "Shop".into()), "id: \"Shop\": must be namespace/name in lower-case DNS labels");
    assert_eq!(broken(|s| s.ports.clear()), "ports: \"[]\": must have at least one port");
    assert_eq!(
        broken(|s| s.hostnames[0] = "A".into()),
        "hostnames[0]: \"A\": must be a lower-case host name without a port"
    );
    assert_eq!(broken(|s| s.virtual_ips[0] = "x".into()), "virtual_ips[0]: \"x\": must be an IP address");
    assert_eq!(
        broken(|s| s.ports[0].protocol = 99),
        "ports[0].protocol: \"99\": is no protocol that this version knows"
    );
    assert_eq!(broken(|s| s.ports.push(s.ports[0].clone())), "ports[1].port: \"8080\": must be unique in the service");
}

fn broken_routing(change: impl FnOnce(&mut v1::Routing)) -> String {
    broken(|s| change(s.ports[0].routing.as_mut().expect("routes")))
}

#[test]
fn errors_of_routes_name_the_rule() {
    assert_eq!(
        broken_routing(|r| r.matches[0].rule = 1),
        "ports[0].routing.matches[0].rule: \"1\": must be below the number of rules, 1"
    );
    assert_eq!(
        broken_routing(|r| r.rules[0].backends[0].weight = 2_000_000),
        "ports[0].routing.rules[0].backends[0].weight: \"2000000\": must be at most 1000000"
    );
    assert_eq!(
        broken_routing(|r| r.rules[0].timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 })),
        "ports[0].routing.rules[0].timeout: \"-1s 0ns\": must not be negative or out of range"
    );
}

fn wire_slice() -> v1::EndpointSlice {
    v1::EndpointSlice {
        service: "shop/catalog".into(),
        index: 0,
        slice_count: 1,
        endpoints: vec![v1::Endpoint {
            address: "127.0.0.1".into(),
            ports: [(8080, 9000)].into(),
            mesh_address: "127.0.0.1:15008".into(),
            spiffe_id: "spiffe://weft.local/ns/shop/sa/catalog".into(),
            healthy: true,
            ..Default::default()
        }],
    }
}

#[test]
fn a_slice_is_converted_and_a_missing_weight_is_one() {
    let slice = endpoint_slice(wire_slice()).expect("valid");
    assert_eq!(slice.endpoints[0].weight, 1);
    assert_eq!(slice.endpoints[0].ports[&8080], 9000);
    assert_eq!(slice.slice_count, Some(1));
}

#[test]
fn a_mesh_address_without_an_identity_is_refused() {
    let mut wire = wire_slice();
    wire.endpoints[0].spiffe_id.clear();
    let error = endpoint_slice(wire).expect_err("no identity");
    assert_eq!(error.field, "endpoints[0].spiffe_id");
}

#[test]
fn a_slice_count_belongs_to_slice_zero() {
    let mut wire = wire_slice();
    wire.slice_count = 0;
    assert_eq!(endpoint_slice(wire).expect_err("0 of 0").field, "slice_count");
    let mut wire = wire_slice();
    wire.index = 1;
    assert_eq!(endpoint_slice(wire).expect_err("count on slice 1").field, "slice_count");
    let mut wire = wire_slice();
    wire.endpoints = vec![wire.endpoints[0].clone(); 101];
    assert_eq!(endpoint_slice(wire).expect_err("101 endpoints").field, "endpoints");
}

#[test]
fn a_workload_port_is_unique_and_a_mode_is_known() {
    let port = v1::InboundPort { port: 80, protocol: 0, services: vec![] };
    let wire = v1::WorkloadConfig { id: "a/b".into(), ports: vec![port.clone(), port], tls_mode: 0 };
    assert_eq!(workload_config(wire).expect_err("twice").field, "ports[1].port");
    let wire = v1::WorkloadConfig { id: "a/b".into(), ports: vec![], tls_mode: 7 };
    assert_eq!(workload_config(wire).expect_err("unknown").field, "tls_mode");
}

#[test]
fn a_trust_bundle_needs_a_root() {
    let wire = v1::TrustBundle { trust_domain: "td".into(), roots: vec![] };
    assert_eq!(trust_bundle(wire).expect_err("empty").field, "roots");
}
