use super::*;
use crate::model::{Carrier, Session, SessionKey};

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
                    backends: vec![v1::WeightedBackend {
                        service: "shop/v1".into(),
                        port: 80,
                        weight: 3,
                        ..Default::default()
                    }],
                    requests: Some(v1::RequestPolicy {
                        timeout: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
                        ..Default::default()
                    }),
                    ..Default::default()
                }],
                matches: vec![v1::RouteMatch {
                    path: Some(v1::PathMatch { kind: Some(v1::path_match::Kind::Prefix("/a/".into())) }),
                    ..Default::default()
                }],
            }),
            ..Default::default()
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
    assert_eq!(routing.rules[0].requests.timeout, Some(Duration::from_secs(2)));
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

fn broken_requests(change: impl FnOnce(&mut v1::RequestPolicy)) -> String {
    broken_routing(|r| change(r.rules[0].requests.as_mut().expect("a policy")))
}

fn broken_filter(kind: v1::filter::Kind) -> String {
    broken_routing(|r| r.rules[0].filters.push(v1::Filter { kind: Some(kind) }))
}

#[test]
fn what_is_absent_is_the_default_of_the_mesh() {
    let service = service(wire_service()).expect("valid");
    let port = &service.ports[0];
    assert_eq!(*port.backend, crate::model::BackendPolicy::default());
    assert_eq!(*port.direct.requests, crate::model::RequestPolicy::default());
    assert_eq!(port.direct.backends[0].target.as_ref().map(|target| target.port), Some(8080));
}

#[test]
fn errors_of_policies_name_the_field() {
    let rule = "ports[0].routing.rules[0]";
    assert_eq!(
        broken_requests(|r| r.retry = Some(v1::Retry { attempts: 11, ..Default::default() })),
        format!("{rule}.requests.retry.attempts: \"11\": must be at most 10")
    );
    let fault = v1::Fault { delay_ppm: 1_000_001, ..Default::default() };
    assert_eq!(
        broken_requests(|r| r.faults.push(fault)),
        format!("{rule}.requests.faults[0].delay_ppm: \"1000001\": must be at most 1000000")
    );
    let hashed = v1::LoadBalancing { algorithm: v1::load_balancing::Algorithm::Maglev.into(), ..Default::default() };
    let backend = v1::BackendPolicy { load_balancing: Some(hashed), ..Default::default() };
    assert_eq!(
        broken(|s| s.ports[0].backend = Some(backend)),
        "ports[0].backend.load_balancing.hash_on: \"\": is required with this algorithm"
    );
    let limits = v1::Limits { connections: 1, pending: 0, requests: 1, retries: 0 };
    let backend = v1::BackendPolicy { limits: Some(limits), ..Default::default() };
    assert_eq!(
        broken(|s| s.ports[0].backend = Some(backend)),
        "ports[0].backend.limits.pending: \"0\": must be at least 1"
    );
}

#[test]
fn errors_of_filters_name_the_field() {
    use v1::filter::Kind;
    let rule = "ports[0].routing.rules[0].filters[0]";
    let header = v1::Header { name: "transfer-encoding".into(), value: "chunked".into() };
    let change = v1::HeaderModifier { set: vec![header], ..Default::default() };
    assert_eq!(
        broken_filter(Kind::RequestHeaders(change)),
        format!(
            "{rule}.request_headers.set[0].name: \"transfer-encoding\": belongs to the connection or to framing: it \
             cannot be changed"
        )
    );
    let full = v1::path_modifier::Kind::Full("/a b".into());
    let rewrite = v1::Rewrite { path: Some(v1::PathModifier { kind: Some(full) }), ..Default::default() };
    assert!(broken_filter(Kind::Rewrite(rewrite)).starts_with(&format!("{rule}.rewrite.path.full: \"/a b\"")));
    let redirect = v1::Redirect { status: 304, ..Default::default() };
    assert!(broken_filter(Kind::Redirect(redirect)).starts_with(&format!("{rule}.redirect.status: \"304\"")));
    let cors = v1::Cors { allow_origins: vec!["example.com".into()], ..Default::default() };
    assert!(broken_filter(Kind::Cors(cors)).starts_with(&format!("{rule}.cors.allow_origins[0]: \"example.com\"")));
    let at_backend = v1::Filter { kind: Some(Kind::Redirect(v1::Redirect { status: 301, ..Default::default() })) };
    let refused = broken_routing(|r| r.rules[0].backends[0].filters.push(at_backend));
    assert!(refused.starts_with("ports[0].routing.rules[0].backends[0].filters[0]: "), "{refused}");
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
        broken_requests(|r| r.timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 })),
        "ports[0].routing.rules[0].requests.timeout: \"-1s 0ns\": must not be negative or out of range"
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
    assert_eq!(slice.endpoints[0].ports.get(8080), Some(9000));
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
fn a_workload_port_is_unique() {
    let access = Some(v1::Access { tls_mode: v1::TlsMode::Strict.into(), policies: vec![] });
    let port = v1::InboundPort { port: 80, access, ..v1::InboundPort::default() };
    let wire = v1::WorkloadConfig { id: "a/b".into(), ports: vec![port.clone(), port], ..Default::default() };
    assert_eq!(workload_config(wire).expect_err("twice").field, "ports[1].port");
}

#[test]
fn what_becomes_of_calls_that_leave_the_mesh_is_known_or_refused() {
    let wire = |outbound_traffic| v1::WorkloadConfig { id: "a/b".into(), outbound_traffic, ..Default::default() };
    assert_eq!(workload_config(wire(0)).expect("valid").outbound, OutboundTraffic::AllowAny);
    assert_eq!(workload_config(wire(1)).expect("valid").outbound, OutboundTraffic::RegistryOnly);
    assert_eq!(workload_config(wire(2)).expect_err("not known").field, "outbound_traffic");
}

#[test]
fn a_session_that_cannot_be_meant_is_refused_and_its_key_is_not_shown() {
    use v1::session_persistence::Carrier as Wire;
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let rule = |session: v1::SessionPersistence| {
        let mut wire = wire_service();
        wire.ports[0].routing.as_mut().expect("routes").rules[0].session = Some(session);
        let routed = service(wire).map_err(|error| error.to_string())?;
        let rule = &routed.ports[0].routing.as_ref().expect("routes").rules[0];
        Ok::<_, String>(rule.session.as_deref().expect("a session").clone())
    };
    let cookie = |name: &str| v1::SessionPersistence { carrier: Some(Wire::Cookie(name.into())), ..Default::default() };
    let whole = v1::SessionPersistence {
        permanent: true,
        absolute_timeout: seconds(60),
        idle_timeout: seconds(5),
        key: vec![7; 32].into(),
        ..cookie("sid")
    };
    let expected = Session {
        carrier: Carrier::Cookie { name: "sid".into(), permanent: true },
        absolute: Some(Duration::from_secs(60)),
        idle: Some(Duration::from_secs(5)),
        key: Some(SessionKey([7; 32])),
    };
    assert_eq!(rule(whole), Ok(expected));
    let header = |name: &str| v1::SessionPersistence { carrier: Some(Wire::Header(name.into())), ..Default::default() };
    assert_eq!(rule(header("x-sid")).expect("valid").key, None);
    let path = "ports[0].routing.rules[0].session";
    let wrong = |wire, text: &str| assert_eq!(rule(wire), Err(format!("{path}.{text}")));
    wrong(cookie("a b"), "cookie: \"a b\": must be a token of at most 128 bytes");
    wrong(header("X-Sid"), "header: \"X-Sid\": must be a lower-case header name");
    wrong(v1::SessionPersistence::default(), "carrier: \"\": must be a cookie or a header");
    let endless = v1::SessionPersistence { permanent: true, ..cookie("sid") };
    wrong(endless, "absolute_timeout: \"0\": is required for a cookie that is permanent");
    let short = v1::SessionPersistence { key: vec![7; 5].into(), ..cookie("sid") };
    wrong(short, "key: \"5 bytes\": must have 32 bytes");
}
