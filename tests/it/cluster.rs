//! A control plane that takes everything from the API server of a cluster, here one for tests, and sidecars that get it.

// It has more than these tests use.
#[allow(dead_code)]
#[path = "../../control-plane/src/kubernetes/testing.rs"]
mod testing;

use std::net::SocketAddr;

use serde_json::{Value, json};

use self::testing::Cluster;
use crate::{
    apps::recorder,
    mesh::{TestMesh, Workload},
    net::{eventually, get, metric, ok},
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

fn service(name: &str, target: u16) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
        "spec": { "selector": { "app": name },
            "ports": [{ "name": "main", "port": 80, "targetPort": target, "appProtocol": "http" }] } })
}

fn slice(service: &str, app: SocketAddr) -> Value {
    let endpoint = json!({ "addresses": [app.ip().to_string()], "conditions": { "ready": true },
        "targetRef": { "kind": "Pod", "namespace": "default", "name": service } });
    json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": service, "namespace": "default", "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "name": "main", "port": app.port(), "protocol": "TCP" }], "endpoints": [endpoint] })
}

fn pod(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
        "spec": { "serviceAccountName": name, "initContainers": [{ "name": "weft-sidecar" }] },
        "status": { "podIPs": [{ "ip": "127.0.0.1" }] } })
}

#[test]
fn what_appears_in_a_cluster_reaches_the_sidecars() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let cluster = runtime.block_on(Cluster::start());
    // Of the kinds of Gateway API there is none.
    cluster.state().missing.insert("grpcroutes.gateway.networking.k8s.io".into());
    let (catalog, _calls) = recorder(ANSWER);
    cluster.apply([service("catalog", catalog.port()), slice("catalog", catalog), pod("catalog")]);
    let mesh = TestMesh::builder("cluster")
        .cluster(&cluster.kubeconfig())
        // Under the name of the pod, as in one.
        .workload(Workload::beside("catalog", catalog, "http"))
        .calls("catalog")
        .start();
    eventually("a call to a pod", || ok(get(mesh.local("catalog"), "catalog", "/items")));
    let requests = "weft_http_requests_total";
    assert!(metric(mesh.client_admin(), requests, &["default/catalog", "tls=\"mtls\"", "2xx"]) > 0.0);

    // A Service that nobody knew, with a pod that has no sidecar.
    let (app, _heads) = recorder(ANSWER);
    let mut plain = pod("late");
    plain["spec"]["initContainers"] = json!([]);
    cluster.apply([service("late", app.port()), slice("late", app), plain]);
    eventually("a call to a new service", || ok(get(mesh.outbound(), "late.default", "/")));

    let route = json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "moved", "namespace": "default" },
        "spec": { "parentRefs": [{ "kind": "Service", "group": "", "name": "late" }],
            "rules": [{ "filters": [{ "type": "RequestRedirect", "requestRedirect": { "statusCode": 302, "hostname": "new" } }] }] } });
    cluster.apply([route.clone()]);
    eventually("a route", || match get(mesh.outbound(), "late.default", "/")? {
        (302, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    eventually("its status in the cluster", || {
        let status = cluster.get(&route).map(|route| route["status"]["parents"][0].clone()).unwrap_or_default();
        let programmed = |one: &Value| one["type"] == "Programmed" && one["status"] == "True";
        let holds = status["conditions"].as_array().is_some_and(|all| all.iter().any(programmed));
        if holds { Ok(()) } else { Err(status.to_string()) }
    });

    // What the API shows is read-only, and says where to change it.
    let shown = mesh.weft(&["get", "httproute", "moved", "-o", "json"]).json();
    assert_eq!(shown["metadata"]["name"], "moved");
    let refused = mesh.weft(&["delete", "httproute", "moved"]);
    assert!(
        refused.code == Some(1) && refused.text.contains("live in the API server of the cluster"),
        "{}",
        refused.text
    );
    let errors = mesh.weft(&["get", "endpointslices"]).ok();
    assert!(errors.contains("late"), "{errors}");

    cluster.delete(&route);
    cluster.delete(&slice("late", app));
    eventually("no endpoint", || match get(mesh.outbound(), "late.default", "/")? {
        (503, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
