//! Compiling again makes what compiling anew makes, and knows when it need not do more.

use super::*;
use crate::compile::compile;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: picks}
spec: {ports: [{port: 80}], selector: {app: w}}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: w, labels: {app: w}}
spec: {address: 127.0.0.9, ports: [{port: 80}]}
---
";

fn slice(service: &str, count: usize) -> String {
    let list: Vec<_> = (0..count).map(|k| format!("{{addresses: [127.0.{}.{}]}}", k / 250, k % 250 + 1)).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nports: [{{port: 80}}]\n\
         metadata: {{name: s, labels: {{kubernetes.io/service-name: {service}}}}}\nendpoints: [{}]\n",
        list.join(", ")
    )
}

fn load(text: &str) -> Resources {
    let (resources, problems) = Resources::from_text("f.yaml", text);
    assert_eq!(problems, []);
    resources
}

#[test]
fn compiling_again_makes_what_compiling_anew_makes() {
    let key = (ResourceType::TrustBundle, "weft.local".to_owned());
    let always = Compiled::from(Vec::new());
    let mut compiler = Compiler::new((key.clone(), always), Secret::default());
    let (registered, sets) = (Arc::default(), Arc::default());
    let mesh = load(MESH);
    let steps = [
        slice("a", 1),
        slice("a", 2),
        // More slices, fewer, another service's, and one that has none of its own.
        slice("a", 250),
        slice("a", 3),
        slice("b", 3),
        slice("picks", 3),
        slice("none", 3),
        String::new(),
    ];
    for (number, step) in steps.iter().enumerate() {
        let resources = Arc::new(Resources { endpoint_slices: load(step).endpoint_slices, ..mesh.clone() });
        assert!(compiler.last.as_ref().is_none_or(|last| only_slices(&last.resources, &resources)), "{number}");
        let (output, problems) = compiler.compile(&resources, &registered, &sets);
        let (mut anew, found) = compile(&resources, &registered);
        anew.insert(key.clone(), output[&key].clone());
        assert_eq!((output, problems), (&anew, found.as_slice()), "{number}");
    }
}

#[test]
fn in_a_cluster_endpoints_and_pods_are_compiled_again_to_what_compiling_anew_makes() {
    let registration = weft_proto::v1::Registration {
        name: "p1".into(),
        namespace: "default".into(),
        labels: [("app".into(), "w".into())].into(),
        address: "127.0.0.1".into(),
        mesh_address: "127.0.0.1:15008".into(),
        ..Default::default()
    };
    let spiffe_id = "spiffe://weft.local/ns/default/sa/x".to_owned();
    let registered = Arc::new(vec![Arc::new(Registered { registration, spiffe_id })]);
    let endpoints = |pods: &[u8]| {
        let list = pods.iter().map(|k| format!("{{addresses: [127.0.0.{k}], targetRef: {{kind: Pod, name: p{k}}}}}"));
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nports: [{{port: 80}}]\nmetadata: \
             {{name: s, labels: {{kubernetes.io/service-name: picks}}}}\nendpoints: [{}]\n",
            list.collect::<Vec<_>>().join(", ")
        )
    };
    let pod = |k: u8, account: &str, app: &str| {
        let object = serde_json::json!({
            "metadata": { "labels": { "app": app } }, "status": { "podIP": format!("127.0.0.{k}") },
            "spec": { "serviceAccountName": account, "initContainers": [{ "name": "weft-sidecar" }] },
        });
        (format!("default/p{k}"), Arc::new(crate::source::pods::Pod::of(&object)))
    };
    let unnamed = endpoints(&[3]).replace(", targetRef: {kind: Pod, name: p3}", "");
    let steps = [
        (endpoints(&[1]), vec![], true),
        (endpoints(&[1]), vec![pod(1, "x", "w")], false),
        (endpoints(&[1, 2]), vec![pod(1, "x", "w")], true),
        (endpoints(&[1, 2]), vec![pod(1, "x", "w"), pod(2, "b", "w")], true),
        (endpoints(&[1, 2]), vec![pod(1, "x", "w"), pod(2, "c", "w")], true),
        // Policies select a registered pod by its labels.
        (endpoints(&[1, 2]), vec![pod(1, "x", "other"), pod(2, "c", "w")], false),
        // It is not the one that has registered, or it is none.
        (endpoints(&[1, 2]), vec![pod(1, "y", "other"), pod(2, "c", "w")], false),
        (endpoints(&[2]), vec![pod(2, "c", "other")], false),
        (endpoints(&[2]), vec![pod(2, "x", "other")], false),
        // Known by its address alone.
        (unnamed.clone(), vec![pod(2, "x", "w")], true),
        (unnamed, vec![pod(2, "x", "w"), pod(3, "c", "w")], true),
        (String::new(), vec![pod(2, "x", "w")], true),
    ];
    let key = (ResourceType::TrustBundle, "weft.local".to_owned());
    let mut compiler = Compiler::new((key.clone(), Compiled::from(Vec::new())), Secret::default());
    let (mesh, sets) = (load(MESH), Arc::default());
    for (number, (text, pods, alone)) in steps.into_iter().enumerate() {
        let pods = Some(Arc::new(pods.into_iter().collect()));
        let resources = Arc::new(Resources { endpoint_slices: load(&text).endpoint_slices, pods, ..mesh.clone() });
        if let Some(last) = &compiler.last {
            let enough = only_slices(&last.resources, &resources) && last.same_labels(&resources);
            assert_eq!(enough, alone, "{number}");
        }
        let (output, problems) = compiler.compile(&resources, &registered, &sets);
        let (mut anew, found) = compile(&resources, &registered);
        anew.insert(key.clone(), output[&key].clone());
        assert_eq!((output, problems), (&anew, found.as_slice()), "{number}");
    }
}

#[test]
fn what_is_not_an_endpoint_compiles_everything() {
    let (old, mut new) = (load(MESH), load(MESH));
    assert!(only_slices(&old, &old.clone()));
    assert!(!only_slices(&old, &new), "objects that were read again may be others");
    new = old.clone();
    new.services.remove("default/a");
    assert!(!only_slices(&old, &new));
}

/// Objects that come, change and go; each is read once, so that it is shared for as long as it stays.
fn pool() -> Vec<Vec<Resources>> {
    let policy = |kind: &str, name: &str, spec: &str| {
        format!("apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
    };
    let to_a = "targetRefs: [{kind: Service, name: a}]";
    let traffic = |name, connections: u32| {
        policy("TrafficPolicy", name, &format!("{to_a}, limits: {{connections: {connections}}}"))
    };
    let route = |timeout: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec: {{parentRefs: \
             [{{kind: Service, group: '', name: a}}], rules: [{{name: x, timeouts: {{request: {timeout}}}}}]}}\n"
        )
    };
    let pool = [
        vec![traffic("p", 1), traffic("p", 2)],
        vec![traffic("q", 3)],
        vec![policy("TrafficPolicy", "whole", "timeouts: {request: 1s, connect: 1s}")],
        vec![policy("FaultInjection", "f", &format!("{to_a}, abort: {{reset: true}}"))],
        vec![policy("RateLimitPolicy", "l", "targetRefs: [{kind: Service, name: picks}], limits: [{requests: 1}]")],
        vec![
            policy("MeshConfig", "default", "traffic: {retries: {attempts: 5}}"),
            policy("MeshConfig", "default", "traffic: {connection: {maxStreams: 7}}"),
        ],
        vec![route("1s"), route("2s")],
        vec![slice("a", 1), slice("a", 2)],
        vec![slice("b", 3)],
    ];
    pool.iter().map(|variants| variants.iter().map(|text| load(text)).collect()).collect()
}

fn with(mut all: Resources, one: &Resources) -> Resources {
    all.traffic_policies.extend(one.traffic_policies.clone());
    all.fault_injections.extend(one.fault_injections.clone());
    all.rate_limit_policies.extend(one.rate_limit_policies.clone());
    all.mesh_configs.extend(one.mesh_configs.clone());
    all.routes.extend(one.routes.clone());
    all.endpoint_slices.extend(one.endpoint_slices.clone());
    all
}

proptest::proptest! {
    #[test]
    fn whatever_changes_compiling_again_makes_what_compiling_anew_makes(
        steps in proptest::collection::vec(proptest::collection::vec(0usize..3, 9), 1..8),
    ) {
        let (mesh, pool, sets) = (load(MESH), pool(), Arc::default());
        let key = (ResourceType::TrustBundle, "weft.local".to_owned());
        let mut compiler = Compiler::new((key.clone(), Compiled::from(Vec::new())), Secret::default());
        let registration = weft_proto::v1::Registration {
            name: "w".into(),
            namespace: "default".into(),
            labels: [("app".into(), "w".into())].into(),
            address: "127.0.0.9".into(),
            ..Default::default()
        };
        let registered = Arc::new(vec![Arc::new(Registered { registration, spiffe_id: String::new() })]);
        for step in steps {
            // 0 is not there; the others are its variants.
            let chosen = step.iter().zip(&pool).filter_map(|(choice, of)| of.get(choice.checked_sub(1)?));
            let resources = Arc::new(chosen.fold(mesh.clone(), with));
            let (output, problems) = compiler.compile(&resources, &registered, &sets);
            let (mut anew, found) = compile(&resources, &registered);
            anew.insert(key.clone(), output[&key].clone());
            proptest::prop_assert_eq!((output, problems), (&anew, found.as_slice()));
        }
    }
}
