//! What is not believed: what a pod says of itself, and a server that does not have a kind.

use super::*;

#[tokio::test]
async fn a_pod_chooses_neither_its_name_nor_its_services() {
    let mut payments = pod("payments-a", "10.0.0.7");
    payments["spec"]["serviceAccountName"] = "payments".into();
    payments["metadata"]["labels"]["app"] = "payments".into();
    let objects = [service("payments", 80), slice("payments-1", "payments", &[("payments-a", "10.0.0.7")]), payments];
    let world = World::start(shop().into_iter().chain(objects)).await;
    let registered = |name: &str, account: &str| {
        let registration = v1::Registration {
            name: name.into(),
            namespace: "shop".into(),
            labels: [("app".to_owned(), "payments".to_owned())].into(),
            address: "10.0.0.1".into(),
            mesh_address: "10.0.0.1:15008".into(),
            healthy: true,
            draining: true,
            ..Default::default()
        };
        Arc::new(Registered { registration, spiffe_id: format!("spiffe://weft.local/ns/shop/sa/{account}") })
    };
    let endpoints = |entry: Arc<Registered>| {
        let (output, problems) = compile(&world.now(), &[entry]);
        let slice = &output[&(ResourceType::EndpointSlice, "shop/payments/0".to_owned())];
        let slice = <v1::EndpointSlice as prost::Message>::decode(slice.bytes.clone()).expect("a slice");
        let all = slice.endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint.draining));
        (all.collect::<Vec<_>>(), problems.into_iter().map(|problem| problem.message).collect::<Vec<_>>())
    };
    let as_it_is = ("10.0.0.7".to_owned(), false);
    let (found, problems) = endpoints(registered("anything", "buyer"));
    assert_eq!(found, std::slice::from_ref(&as_it_is), "the identity of a pod is that of a pod");
    assert!(problems[0].contains("\"anything\" is no pod that is known"), "{problems:?}");
    let (found, problems) = endpoints(registered("payments-a", "buyer"));
    assert_eq!(found, std::slice::from_ref(&as_it_is), "another's end is not its to tell");
    assert!(problems[0].contains("is a pod whose identity is spiffe://weft.local/ns/shop/sa/payments"), "{problems:?}");
    let (found, problems) = endpoints(registered("vm", "outside"));
    assert_eq!((found.len(), problems), (2, Vec::new()), "a machine outside of the cluster is no pod");
}

#[tokio::test]
async fn a_server_that_says_it_does_not_have_a_kind_makes_nothing_vanish() {
    let world = World::start([service("cart", 80), policy("slow", "1s")]).await;
    let (cluster, store) = (world.cluster.clone(), world.store.clone());
    drop(world);
    let policies = "trafficpolicies.weft.dev";
    cluster.state().missing.insert(policies.into());
    let before = cluster.count(&format!("list {policies}"));
    let mut world = World::of(cluster, store).await;
    world.eventually(|now| now.problems.iter().any(|problem| problem.message.contains("weft install"))).await;
    world.asked(&format!("list {policies}"), before + 3).await;
    assert!(world.now().traffic_policies.contains_key("shop/slow"), "it is in the log");
    world.cluster.state().missing.clear();
    world.eventually(|now| now.problems.is_empty()).await;
    assert!(world.now().traffic_policies.contains_key("shop/slow"));
    world.cluster.delete(&policy("slow", ""));
    world.eventually(|now| now.traffic_policies.is_empty()).await;
}

#[tokio::test]
async fn a_server_without_the_kinds_of_every_cluster_is_not_believed() {
    let cluster = Cluster::start().await;
    cluster.apply(shop());
    cluster.state().missing.insert("endpointslices.discovery.k8s.io".into());
    let mut mirror = follow(&cluster, &Store::memory());
    let mut waiting = mirror.waiting.clone();
    let told = waiting.wait_for(|waiting| waiting.len() == 1 && waiting[SLICE].contains("the API server has no"));
    tokio::time::timeout(LIMIT, told).await.expect("in time").expect("alive");
    cluster.state().missing.clear();
    tokio::time::timeout(LIMIT, mirror.complete()).await.expect("in time");
}
