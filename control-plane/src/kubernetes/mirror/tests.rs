//! What comes of a cluster, while its API server does what API servers do.

mod belief;

use serde_json::json;
use weft_proto::{ResourceType, v1};

use super::*;
use crate::{
    compile::{Registered, compile},
    kubernetes::testing::Cluster,
    source::stored::{self, Current},
    store::{HistoryFilter, OWN_AUTHOR, STATUS},
};

const LIMIT: Duration = Duration::from_secs(60);

struct World {
    cluster: Cluster,
    store: Store,
    mirror: Mirror,
    resources: watch::Receiver<Current>,
}

impl World {
    /// Follows a cluster into this store, until all of it is known.
    async fn of(cluster: Cluster, store: Store) -> Self {
        let mut mirror = follow(&cluster, &store);
        tokio::time::timeout(LIMIT, mirror.complete()).await.expect("everything is listed in time");
        let resources = stored::follow(mirror.resources.clone(), store.state());
        Self { cluster, store, mirror, resources }
    }

    async fn start(objects: impl IntoIterator<Item = Value>) -> Self {
        let cluster = Cluster::start().await;
        cluster.apply(objects);
        Self::of(cluster, Store::memory()).await
    }

    fn now(&self) -> Arc<Resources> {
        Arc::clone(&self.resources.borrow().resources)
    }

    async fn eventually(&mut self, what: impl Fn(&Resources) -> bool) {
        let told = self.resources.wait_for(|current| what(&current.resources));
        tokio::time::timeout(LIMIT, told).await.expect("in time").expect("alive");
    }

    /// The endpoints of `shop/cart` as sidecars get them.
    fn endpoints(&self) -> Vec<v1::Endpoint> {
        let (output, _) = compile(&self.now(), &[]);
        let slice = &output[&(ResourceType::EndpointSlice, "shop/cart/0".to_owned())];
        <v1::EndpointSlice as prost::Message>::decode(slice.bytes.clone()).expect("a slice").endpoints
    }

    /// Every request that was made so far is answered: what follows was asked later.
    async fn asked(&self, what: &str, times: usize) {
        let enough = async {
            while self.cluster.count(what) < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, enough).await.expect("in time");
    }
}

fn follow(cluster: &Cluster, store: &Store) -> Mirror {
    let mut config = kube::Config::new(cluster.url().parse().expect("a URL"));
    config.default_retry = false;
    let client = Client::try_from(config).expect("a client");
    Mirror::follow(&client, store.clone(), "weft.local")
}

fn service(name: &str, port: u16) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "selector": { "app": name }, "ports": [{ "name": "http", "port": port }] } })
}

fn slice(name: &str, service: &str, pods: &[(&str, &str)]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(pod, address)| {
            json!({ "addresses": [address], "conditions": { "ready": true }, "zone": "z1",
                "targetRef": { "kind": "Pod", "namespace": "shop", "name": pod } })
        })
        .collect();
    json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "namespace": "shop", "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }], "endpoints": endpoints })
}

fn pod(name: &str, address: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "shop", "labels": { "app": "cart" } },
        "spec": { "serviceAccountName": "buyer", "initContainers": [{ "name": "weft-sidecar" }] },
        "status": { "podIP": address, "podIPs": [{ "ip": address }] } })
}

fn policy(name: &str, timeout: &str) -> Value {
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": { "name": name, "namespace": "shop",
            "managedFields": [{ "manager": "kubectl", "time": "2026-01-02T00:00:00Z" }] },
        "spec": { "targetRefs": [{ "kind": "Service", "name": "cart" }], "timeouts": { "request": timeout } } })
}

fn shop() -> Vec<Value> {
    vec![service("cart", 80), slice("cart-1", "cart", &[("cart-a", "10.0.0.1")]), pod("cart-a", "10.0.0.1")]
}

#[tokio::test]
async fn a_service_and_its_endpoints_come_with_the_identity_of_their_pods() {
    let world = World::start(shop()).await;
    let [endpoint] = world.endpoints().try_into().expect("one endpoint");
    assert_eq!((endpoint.address.as_str(), endpoint.mesh_address.as_str()), ("10.0.0.1", "10.0.0.1:15008"));
    assert_eq!(endpoint.spiffe_id, "spiffe://weft.local/ns/shop/sa/buyer");
    assert_eq!(endpoint.ports, [(80, 8080)].into());
    assert_eq!(endpoint.locality.map(|locality| locality.zone).as_deref(), Some("z1"));
    assert!(endpoint.healthy && !endpoint.draining);
    assert_eq!(world.mirror.written.borrow().list("EndpointSlice", None).count(), 1, "the API shows them");
}

#[tokio::test]
async fn what_happens_while_a_watch_is_cut_is_not_missed_and_not_listed_again() {
    let mut world = World::start(shop()).await;
    world.asked("watch endpointslices.discovery.k8s.io", 1).await;
    world.cluster.cut();
    let two = slice("cart-1", "cart", &[("cart-a", "10.0.0.1"), ("cart-b", "10.0.0.2")]);
    world.cluster.apply([pod("cart-b", "10.0.0.2"), two, policy("slow", "5s")]);
    world.eventually(|now| now.traffic_policies.contains_key("shop/slow")).await;
    world.eventually(|now| now.pods.as_ref().is_some_and(|pods| pods.len() == 2)).await;
    world.eventually(|now| now.endpoint_slices["shop/cart-1"].value.endpoints.len() == 2).await;
    assert_eq!(world.endpoints().len(), 2);
    for resource in ["services", "pods", "endpointslices.discovery.k8s.io", "trafficpolicies.weft.dev"] {
        assert_eq!(world.cluster.count(&format!("list {resource}")), 1, "{resource}");
    }
}

#[tokio::test]
async fn a_server_that_has_forgotten_is_asked_for_all_and_what_was_deleted_meanwhile_is_gone() {
    let mut world = World::start(shop()).await;
    world.cluster.apply([policy("slow", "5s"), service("old", 81)]);
    world.eventually(|now| now.services.contains_key("shop/old") && !now.traffic_policies.is_empty()).await;
    // Nothing of it is in a watch that may go on.
    world.cluster.state().broken = true;
    world.cluster.cut();
    world.cluster.delete(&service("old", 81));
    world.cluster.delete(&policy("slow", "5s"));
    world.cluster.delete(&slice("cart-1", "cart", &[]));
    world.cluster.forget(10);
    world.cluster.state().broken = false;
    world.eventually(|now| !now.services.contains_key("shop/old") && now.traffic_policies.is_empty()).await;
    world.eventually(|now| now.endpoint_slices.is_empty()).await;
    assert_eq!(world.endpoints(), []);
    assert!(world.now().services.contains_key("shop/cart"));
}

#[tokio::test]
async fn events_that_are_repeated_or_older_than_what_is_known_change_nothing() {
    let mut world = World::start(shop()).await;
    world.cluster.state().repeats = 2;
    world.cluster.apply([policy("slow", "1s")]);
    let first = world.cluster.get(&policy("slow", "")).expect("there");
    world.cluster.apply([policy("slow", "2s")]);
    let two = |now: &Resources| {
        let timeouts = now.traffic_policies.get("shop/slow").and_then(|policy| policy.value.spec.timeouts.clone());
        timeouts.and_then(|timeouts| timeouts.request).is_some_and(|span| span.0 == Duration::from_secs(2))
    };
    world.eventually(two).await;
    // The first version, and its end, of a server that repeats what was long ago; and what is gone.
    world.cluster.replay(&first, "MODIFIED");
    world.cluster.replay(&first, "DELETED");
    world.cluster.apply([policy("ended", "1s")]);
    let ended = world.cluster.get(&policy("ended", "")).expect("there");
    world.cluster.delete(&policy("ended", ""));
    world.cluster.replay(&ended, "ADDED");
    world.cluster.apply([policy("last", "3s")]);
    world.eventually(|now| now.traffic_policies.contains_key("shop/last")).await;
    assert!(two(&world.now()), "it is as it was");
    assert!(!world.now().traffic_policies.contains_key("shop/ended"));
    let filter = HistoryFilter { name: Some("slow".into()), ..HistoryFilter::default() };
    let events = world.store.history(filter).await.expect("readable").events;
    assert!(events.len() <= 2, "no event for what was known: {events:?}");
    assert_eq!(events[0].author, "kubernetes:kubectl");
}

#[tokio::test]
async fn nobody_is_served_before_everything_is_known_and_a_refusal_says_what_is_missing() {
    let cluster = Cluster::start().await;
    cluster.apply(shop());
    cluster.state().refused.insert("list pods".into());
    let store = Store::memory();
    let mut mirror = follow(&cluster, &store);
    let mut waiting = mirror.waiting.clone();
    let only_pods = waiting.wait_for(|waiting| waiting.len() == 1 && waiting["Pod"].contains("list pods"));
    let why = tokio::time::timeout(LIMIT, only_pods).await.expect("in time").expect("alive")["Pod"].clone();
    assert!(why.contains("User \"test\" cannot list pods") && why.contains("allow the verb list on pods"), "{why}");
    cluster.state().refused.clear();
    tokio::time::timeout(LIMIT, mirror.complete()).await.expect("in time");
}

#[tokio::test]
async fn kinds_that_are_not_installed_are_empty_and_come_when_they_are() {
    let cluster = Cluster::start().await;
    cluster.apply(shop());
    let route = json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "r", "namespace": "shop" },
        "spec": { "parentRefs": [{ "kind": "Service", "group": "", "name": "cart" }] } });
    let grant = json!({ "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
        "metadata": { "name": "g", "namespace": "shop" }, "spec": { "from": [{ "group": "gateway.networking.k8s.io",
            "kind": "HTTPRoute", "namespace": "a" }], "to": [{ "group": "", "kind": "Service" }] } });
    let (routes, grants) = ("httproutes.gateway.networking.k8s.io", "referencegrants.gateway.networking.k8s.io");
    cluster.state().missing.insert(routes.into());
    cluster.state().versions.insert(grants.into(), "v1beta1".into());
    cluster.apply([grant]);
    let mut world = World::of(cluster, Store::memory()).await;
    assert!(world.now().reference_grants.contains_key("shop/g"), "as an older Gateway API has it");
    let about = |now: &Resources| {
        now.problems.iter().any(|problem| problem.message.contains("install the CRDs of Gateway API"))
    };
    world.eventually(about).await;
    world.cluster.apply([route]);
    world.cluster.state().missing.clear();
    world.eventually(|now| now.routes.contains_key("shop/r")).await;
    world.eventually(|now| !about(now)).await;
}

#[tokio::test]
async fn while_the_server_fails_everything_stays_as_it_was() {
    let mut world = World::start(shop()).await;
    world.cluster.state().broken = true;
    world.cluster.forget(10);
    world.eventually(|now| now.problems.iter().any(|problem| problem.message.contains("it is broken"))).await;
    assert_eq!(world.endpoints().len(), 1, "no answer is no empty list");
    assert!(world.now().services.contains_key("shop/cart"));
    world.cluster.state().broken = false;
    world.cluster.apply([service("new", 81)]);
    world.eventually(|now| now.services.contains_key("shop/new") && now.problems.is_empty()).await;
}

#[tokio::test]
async fn a_watch_that_works_again_is_no_problem_though_it_has_nothing_to_tell() {
    let mut world = World::start(shop()).await;
    world.cluster.state().refused.insert("watch services".into());
    world.cluster.cut();
    world.eventually(|now| now.problems.iter().any(|problem| problem.message.contains("cannot watch services"))).await;
    assert!(world.now().services.contains_key("shop/cart"));
    world.cluster.state().refused.clear();
    world.eventually(|now| now.problems.is_empty()).await;
    assert_eq!(world.cluster.count("list services"), 1);
}

#[tokio::test]
async fn a_restart_makes_events_only_of_what_has_changed_since() {
    let world = World::start([service("cart", 80), service("old", 81), policy("slow", "1s")]).await;
    let (cluster, store, before) = (world.cluster.clone(), world.store.clone(), world.store.revision());
    drop(world);
    let world = World::of(cluster.clone(), store.clone()).await;
    assert_eq!(store.revision(), before, "nothing is new");
    drop(world);
    cluster.delete(&service("old", 81));
    cluster.apply([service("cart", 82)]);
    let world = World::of(cluster, store.clone()).await;
    assert_eq!(store.revision(), before + 2);
    assert_eq!(world.now().services.keys().collect::<Vec<_>>(), ["shop/cart"]);
}

#[tokio::test]
async fn a_status_is_no_change_of_what_somebody_wrote() {
    let mut world = World::start([service("cart", 80), policy("slow", "1s")]).await;
    let mut with_status = world.cluster.get(&policy("slow", "")).expect("there");
    with_status["status"] = json!({ "ancestors": [] });
    let revision = world.store.revision();
    world.cluster.apply([with_status]);
    let changed = world.resources.wait_for(|current| current.revision > revision);
    tokio::time::timeout(LIMIT, changed).await.expect("in time").expect("alive");
    let filter = HistoryFilter { limit: 1, ..HistoryFilter::default() };
    let event = &world.store.history(filter).await.expect("readable").events[0];
    assert_eq!((event.author.as_str(), event.reason.as_str()), (OWN_AUTHOR, STATUS));
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let cluster = Cluster::start().await;
    cluster.state().page = 2;
    cluster.apply((0..5).map(|number| service(&format!("s{number}"), 80)));
    let world = World::of(cluster, Store::memory()).await;
    assert_eq!(world.now().services.len(), 5);
    assert_eq!(world.cluster.count("list services"), 3);
}

#[tokio::test]
async fn what_is_not_valid_is_left_out_alone() {
    let mut bad = policy("bad", "1s");
    bad["spec"]["retries"] = json!({ "budget": { "percent": 1000 } });
    let world = World::start([service("cart", 80), bad, policy("good", "1s")]).await;
    let now = world.now();
    assert_eq!(now.traffic_policies.keys().collect::<Vec<_>>(), ["shop/good"]);
    assert!(now.left_out.contains_key(&Key::new("TrafficPolicy", "shop", "bad")), "its status can say so");
}

#[tokio::test]
async fn only_what_the_api_server_says_of_a_pod_counts() {
    let world = World::start(shop()).await;
    let registration = v1::Registration {
        name: "cart-a".into(),
        namespace: "shop".into(),
        labels: [("app".to_owned(), "vault".to_owned())].into(),
        address: "10.0.0.1".into(),
        mesh_address: "10.0.0.1:15008".into(),
        healthy: true,
        draining: true,
        ..Default::default()
    };
    let spiffe_id = "spiffe://weft.local/ns/shop/sa/buyer".to_owned();
    let (output, problems) = compile(&world.now(), &[Arc::new(Registered { registration, spiffe_id })]);
    assert_eq!(problems, []);
    assert!(
        !output.contains_key(&(ResourceType::Service, "shop/vault".to_owned())),
        "it is in no service by its own word"
    );
    let config = &output[&(ResourceType::WorkloadConfig, "shop/cart-a".to_owned())];
    let config = <v1::WorkloadConfig as prost::Message>::decode(config.bytes.clone()).expect("a config");
    assert!(config.ports.iter().any(|port| port.services.iter().any(|served| served.service == "shop/cart")));
    let slice = &output[&(ResourceType::EndpointSlice, "shop/cart/0".to_owned())];
    let slice = <v1::EndpointSlice as prost::Message>::decode(slice.bytes.clone()).expect("a slice");
    assert!(slice.endpoints[0].draining && !slice.endpoints[0].healthy, "a sidecar tells of its end first");
}

#[tokio::test]
async fn a_bookmark_is_a_place_to_go_on_from_for_kinds_of_which_nothing_is_told() {
    let mut world = World::start(shop()).await;
    let watches = watched::all().count();
    let asked = |world: &World| world.cluster.state().asked.iter().filter(|asked| asked.starts_with("watch ")).count();
    let enough = async {
        while asked(&world) < watches {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.cluster.apply([service("cart", 81)]);
        while world.cluster.state().bookmarked < watches {
            if world.cluster.state().bookmarked == 0 {
                world.cluster.bookmark();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, enough).await.expect("in time");
    world.cluster.forget(0);
    world.cluster.apply([pod("cart-b", "10.0.0.2")]);
    world.eventually(|now| now.pods.as_ref().is_some_and(|pods| pods.contains_key("shop/cart-b"))).await;
    assert_eq!(world.cluster.count("list pods"), 1, "it was not too old");
}

#[tokio::test]
async fn a_kubeconfig_leads_to_its_cluster_and_one_that_is_none_is_named() {
    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        args: crate::config::ControlPlaneArgs,
    }
    let cluster = Cluster::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("kubeconfig");
    let args = || {
        let words = ["weft", "--source", "kubernetes", "--kubeconfig", file.to_str().expect("UTF-8")];
        <Flags as clap::Parser>::try_parse_from(words).expect("flags").args
    };
    std::fs::write(&file, cluster.kubeconfig()).expect("written");
    let client = crate::kubernetes::client(&args()).await.expect("a client");
    let mut mirror = Mirror::follow(&client, Store::memory(), "weft.local");
    tokio::time::timeout(LIMIT, mirror.complete()).await.expect("in time");
    std::fs::write(&file, "clusters: 7").expect("written");
    let error = format!("{:#}", crate::kubernetes::client(&args()).await.err().expect("refused"));
    assert!(error.starts_with("--kubeconfig ") && error.contains("kubeconfig"), "{error}");
}
