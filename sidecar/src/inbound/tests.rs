//! Who is let in, who is not, and what ends when that changes: over real sockets, with real certificates.

mod ends;
mod enters;
mod exchanges;
mod side;

use weft_policy::{
    authorize::Authorization,
    model::{Access, InboundPort, ObjectName, Protocol, Target, TlsMode, WorkloadConfig},
};

use super::{app_port, parse_authority, parse_sni};

fn target(name: &str, port: u16) -> Target {
    Target { service: ObjectName::parse(name).expect("a valid name"), port }
}

#[test]
fn an_sni_names_a_service_port() {
    assert_eq!(parse_sni("p8080.catalog.shop.weft"), Some(target("shop/catalog", 8080)));
}

#[test]
fn an_sni_that_is_not_ours_selects_nothing() {
    for name in
        ["", "catalog.shop.weft", "p0x.catalog.shop.weft", "p80.shop.weft", "p80.a.b.example", "p70000.a.b.weft"]
    {
        assert_eq!(parse_sni(name), None, "{name}");
    }
}

#[test]
fn a_tunnel_authority_names_a_service_port() {
    assert_eq!(parse_authority("ledger.shop:5432"), Some(target("shop/ledger", 5432)));
    assert_eq!(parse_authority("ledger:5432"), None);
    assert_eq!(parse_authority("ledger.shop"), None);
}

#[test]
fn an_app_port_is_found_by_service_port_only() {
    let workload = WorkloadConfig {
        id: ObjectName::new("shop", "ledger-1"),
        ports: vec![InboundPort {
            port: 9000,
            protocol: Protocol::Tcp,
            services: vec![target("shop/ledger", 5432)],
            rate_limits: vec![],
            request_authentications: vec![],
            access: Access { tls_mode: TlsMode::Permissive, authorization: Authorization::default() },
        }],
        telemetry: Default::default(),
        outbound: Default::default(),
    };
    assert_eq!(app_port(&workload, &target("shop/ledger", 5432)).map(|port| port.port), Some(9000));
    assert_eq!(app_port(&workload, &target("shop/ledger", 9000)), None);
}
