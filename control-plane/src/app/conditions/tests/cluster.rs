//! Statuses of objects that live in the API server of a cluster.

use kube::Client;

use super::*;
use crate::kubernetes::{self, mirror::Mirror, testing::Cluster};

const LIMIT: Duration = Duration::from_secs(60);

/// A cluster that is followed, and whose statuses are written.
struct World {
    cluster: Cluster,
    store: Store,
    resources: watch::Receiver<Current>,
    found: watch::Sender<Arc<Found>>,
    statuses: Statuses,
    leading: watch::Sender<bool>,
}

impl World {
    async fn start(objects: impl IntoIterator<Item = Value>) -> Self {
        let cluster = Cluster::start().await;
        cluster.apply(objects);
        let mut config = kube::Config::new(cluster.url().parse().expect("a URL"));
        config.default_retry = false;
        let (client, store) = (Client::try_from(config).expect("a client"), Store::memory());
        let mut mirror = Mirror::follow(&client, store.clone(), "weft.local");
        tokio::time::timeout(LIMIT, mirror.complete()).await.expect("in time");
        let Mirror { resources, versions, .. } = mirror;
        let resources = crate::source::stored::follow(resources, store.state());
        let (leading, leads) = watch::channel(true);
        let (found, following) = watch::channel(Arc::default());
        let sink = Sink::Cluster(Writer::new(client, versions, leads));
        let statuses = Statuses::new(store.clone(), sink, following, Proxies::default());
        Self { cluster, store, resources, found, statuses, leading }
    }

    /// Compiles what is there, and writes.
    async fn pass(&mut self) {
        let resources = Arc::clone(&self.resources.borrow_and_update().resources);
        let (_, problems) = crate::compile::compile(&resources, &[]);
        self.found.send_replace(Arc::new(Found { resources, problems }));
        self.statuses.pass().await;
    }

    /// Waits until the store has what the cluster has of this object.
    async fn reflected(&self, object: &Value) {
        let key = Key::new(
            object["kind"].as_str().expect("a kind"),
            "shop",
            object["metadata"]["name"].as_str().expect("a name"),
        );
        let same = |state: &crate::store::State| {
            let wanted = self.cluster.get(object).map(|object| object["status"].clone());
            state.get(&key).map(|stored| stored.object["status"].clone()) == wanted
        };
        let mut state = self.store.state();
        tokio::time::timeout(LIMIT, state.wait_for(|state| same(state))).await.expect("in time").expect("alive");
    }

    fn patches(&self) -> Vec<String> {
        self.cluster.state().asked.iter().filter(|asked| asked.starts_with("patch ")).cloned().collect()
    }
}

fn policy(name: &str, target: &str) -> Value {
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "targetRefs": [{ "kind": "Service", "name": target }], "timeouts": { "request": "1s" } } })
}

fn state_of<'a>(conditions: &'a Value, name: &str) -> (&'a str, &'a str) {
    let found = entries(conditions).find(|condition| condition["type"] == name).expect("the condition");
    (found["status"].as_str().expect("a status"), found["reason"].as_str().expect("a reason"))
}

#[tokio::test]
async fn what_holds_for_an_object_is_written_into_its_status_in_the_cluster_once() {
    let mut invalid = policy("invalid", "cart");
    invalid["spec"]["retries"] = json!({ "budget": { "percent": 1000 } });
    let mut world =
        World::start([service("cart"), policy("good", "cart"), policy("lost", "nowhere"), invalid.clone()]).await;
    world.pass().await;
    let of = |world: &World, object: &Value| {
        world.cluster.get(object).expect("there")["status"]["ancestors"][0]["conditions"].clone()
    };
    assert_eq!(state_of(&of(&world, &policy("good", "")), "Accepted"), ("True", "Accepted"));
    assert_eq!(state_of(&of(&world, &policy("lost", "")), "Accepted"), ("False", "TargetNotFound"));
    assert_eq!(state_of(&of(&world, &invalid), "Accepted").0, "False");
    assert_eq!(
        world.patches(),
        vec!["patch trafficpolicies.weft.dev/status"; 3],
        "and none of a Service, which is Kubernetes' own"
    );
    for name in ["good", "lost", "invalid"] {
        world.reflected(&policy(name, "")).await;
    }
    world.pass().await;
    assert_eq!(world.patches().len(), 3, "it says so already");
}

#[tokio::test]
async fn of_a_route_only_the_parents_that_are_services_are_ours() {
    let theirs = json!({ "parentRef": { "name": "edge" }, "controllerName": "example.com/gateway", "conditions": [] });
    let route = json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "r", "namespace": "shop" }, "status": { "parents": [theirs] },
        "spec": { "parentRefs": [{ "name": "edge" }, { "kind": "Service", "group": "", "name": "cart" }] } });
    let mut world = World::start([service("cart"), route.clone()]).await;
    world.pass().await;
    let parents = world.cluster.get(&route).expect("there")["status"]["parents"].clone();
    let written: Vec<(&Value, &Value)> =
        entries(&parents).map(|one| (&one["controllerName"], &one["parentRef"]["name"])).collect();
    let [ours, others] = [json!([CONTROLLER, "cart"]), json!(["example.com/gateway", "edge"])];
    assert_eq!(written, [(&ours[0], &ours[1]), (&others[0], &others[1])]);
}

#[tokio::test]
async fn who_does_not_lead_writes_nothing_until_it_does() {
    let mut world = World::start([service("cart"), policy("good", "cart")]).await;
    world.leading.send_replace(false);
    world.pass().await;
    assert_eq!(world.patches(), Vec::<String>::new());
    world.found.send_modify(|_| {});
    assert!(world.statuses.changed().await, "what was found");
    world.leading.send_replace(true);
    let woken = tokio::time::timeout(LIMIT, world.statuses.changed()).await;
    assert!(woken.expect("that it leads is a reason to look again"));
    world.statuses.pass().await;
    assert_eq!(world.patches().len(), 1);
}

#[tokio::test]
async fn a_status_that_somebody_has_changed_meanwhile_is_not_overwritten_but_made_anew() {
    let mut world = World::start([service("cart"), policy("good", "cart")]).await;
    // The watch does not tell of the change before the status is written.
    world.cluster.state().broken = true;
    world.cluster.cut();
    let others = json!({ "ancestorRef": { "name": "x" }, "controllerName": "example.com/other", "conditions": [] });
    let mut changed = world.cluster.get(&policy("good", "")).expect("there");
    changed["status"] = json!({ "ancestors": [others] });
    world.cluster.apply([changed]);
    world.cluster.state().refused.insert("watch trafficpolicies.weft.dev".into());
    world.cluster.state().broken = false;
    world.pass().await;
    let ancestors = || world.cluster.get(&policy("good", "")).expect("there")["status"]["ancestors"].clone();
    assert_eq!(ancestors(), json!([others]), "409: it is as they left it");
    assert!(world.statuses.again.is_some(), "and tried again");
    world.cluster.state().refused.clear();
    // Whoever is told first, store or writer: it comes to that.
    let settled = async {
        loop {
            world.statuses.pass().await;
            let written = ancestors();
            let controllers: Vec<&Value> = entries(&written).map(|one| &one["controllerName"]).collect();
            if controllers == [CONTROLLER, "example.com/other"] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, settled).await.expect("in time");
}

#[tokio::test]
async fn nothing_is_asked_of_the_api_server_that_the_roles_do_not_allow() {
    let route = json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute",
        "metadata": { "name": "r", "namespace": "shop" },
        "spec": { "parentRefs": [{ "kind": "Service", "group": "", "name": "cart" }] } });
    let mut world = World::start([service("cart"), policy("good", "cart"), route]).await;
    world.pass().await;
    let needs = kubernetes::needs();
    let allowed = needs.iter().map(|(group, resource, verb)| {
        let (plural, sub) = resource.split_once('/').map_or((resource.as_str(), ""), |(plural, _)| (plural, "/status"));
        let group = if group.is_empty() { String::new() } else { format!(".{group}") };
        format!("{verb} {plural}{group}{sub}")
    });
    let allowed: std::collections::BTreeSet<String> = allowed.collect();
    let asked = world.cluster.state().asked.clone();
    assert!(asked.iter().any(|asked| asked == "patch grpcroutes.gateway.networking.k8s.io/status"), "{asked:?}");
    let beyond: Vec<&String> = asked.iter().filter(|asked| !allowed.contains(*asked)).collect();
    assert!(beyond.is_empty(), "{beyond:?}");
}
