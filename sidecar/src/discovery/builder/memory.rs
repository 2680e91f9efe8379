//! What the sidecar keeps of each service and each endpoint, in bytes asked of the allocator: bounds that only go down.
//! All is counted, from the wire to the snapshot: state, clusters, balancers, circuits, metrics.

use weft_policy::model::ObjectName;
use weft_proto::{
    ResourceType,
    discovery::{DeltaDiscoveryResponse, Resource},
    v1,
};

use super::*;

const SERVICES: usize = 200;

fn response<M: prost::Message>(
    kind: ResourceType,
    resources: impl Iterator<Item = (String, M)>,
) -> DeltaDiscoveryResponse {
    let resource = |(name, message): (String, M)| Resource {
        name,
        version: "0123456789abcdef0123456789abcdef".into(),
        resource: Some(weft_proto::Any { type_url: kind.type_url().into(), value: message.encode_to_vec().into() }),
        ..Resource::default()
    };
    DeltaDiscoveryResponse {
        type_url: kind.type_url().into(),
        resources: resources.map(resource).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn service(number: usize) -> (String, v1::Service) {
    let (name, namespace) = (format!("service-{number}"), "shop");
    let hostnames = ["", ".shop", ".shop.svc.cluster.local", ".shop.mesh"].map(|suffix| format!("{name}{suffix}"));
    let port =
        v1::ServicePort { port: 80, name: "http".into(), protocol: v1::Protocol::Http.into(), ..Default::default() };
    let id = format!("{namespace}/{name}");
    (id.clone(), v1::Service { id, hostnames: hostnames.into(), ports: vec![port], ..Default::default() })
}

fn slice(number: usize, endpoints: usize) -> (String, v1::EndpointSlice) {
    let endpoint = |index: usize| v1::Endpoint {
        address: format!("10.{}.{}.{index}", number / 250, number % 250),
        ports: [(80, 8080)].into(),
        mesh_address: format!("10.{}.{}.{index}:15008", number / 250, number % 250),
        spiffe_id: format!("spiffe://weft.local/ns/shop/sa/service-{number}"),
        locality: Some(v1::Locality { region: "europe-west".into(), zone: format!("europe-west-{}", index % 3) }),
        workload: format!("shop/service-{number}-5d4f7b9c6d-{index}"),
        weight: 1,
        healthy: true,
        ..Default::default()
    };
    let service = format!("shop/service-{number}");
    let endpoints = (0..endpoints).map(endpoint).collect();
    (format!("{service}/0"), v1::EndpointSlice { service, index: 0, slice_count: 1, endpoints })
}

/// Bytes that are held when so many endpoints are known of each service, for one service.
fn held(endpoints: usize) -> usize {
    let services = response(ResourceType::Service, (0..SERVICES).map(service));
    let slices = response(ResourceType::EndpointSlice, (0..SERVICES).map(|number| slice(number, endpoints)));
    let mut builder = Builder::new(Telemetry::new("shop/client"), Locality::default(), Clock::start());
    let mut state = State::new("shop/client", []);
    let mut snapshot = Snapshot::default();
    let counted = allocation_counter::measure(|| {
        state.want((0..SERVICES).map(|number| ObjectName::new("shop", &format!("service-{number}"))));
        for update in [slices.clone(), services.clone()] {
            assert_eq!(state.apply(update).error_detail, None);
            snapshot = builder.build(&mut state, "shop");
        }
    });
    assert!(snapshot.clusters.values().all(|cluster| cluster.endpoints.len() == endpoints));
    usize::try_from(counted.bytes_current).expect("more is held than before") / SERVICES
}

#[test]
fn a_service_and_an_endpoint_take_few_bytes() {
    let (none, ten) = (held(0), held(10));
    let endpoint = (ten - none) / 10;
    println!("bytes: {none} for a service, {endpoint} for each of its endpoints");
    assert!(none <= 2800, "a service takes {none} bytes");
    assert!(endpoint <= 560, "an endpoint takes {endpoint} bytes");
}
