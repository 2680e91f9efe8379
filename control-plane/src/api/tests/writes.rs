//! Create, replace, patch, delete: what is kept and what is refused.

use serde_json::{Value, json};

use super::common::{Api, CART, POLICIES, SERVICES, policy, service};
use crate::store::{Batch, Expect, Key, Write};

#[tokio::test]
async fn a_new_object_gets_identity_and_a_revision() {
    let api = Api::new();
    let made = api.made(SERVICES, &service("cart")).await;
    assert_eq!(made["metadata"]["resourceVersion"], "1");
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["metadata"]["namespace"], "shop");
    assert_eq!(made["metadata"]["uid"].as_str().map(str::len), Some(36));
    assert!(made["metadata"]["creationTimestamp"].as_str().expect("a time").ends_with('Z'));
    assert_eq!(api.get(CART).await.body, made);
    api.json("POST", SERVICES, &service("cart")).await.failed(409, "AlreadyExists");
}

#[tokio::test]
async fn a_name_is_generated_from_its_prefix() {
    let api = Api::new();
    let mut object = service("x");
    object["metadata"] = json!({ "generateName": "cart-" });
    let made = api.made(SERVICES, &object).await;
    let name = made["metadata"]["name"].as_str().expect("a name");
    assert!(name.starts_with("cart-") && name.len() == 10, "{name}");
    object["metadata"] = json!({});
    let reply = api.json("POST", SERVICES, &object).await;
    assert!(reply.failed(422, "Invalid").contains("metadata.name is missing"));
}

#[tokio::test]
async fn every_problem_is_a_cause_with_its_path() {
    let api = Api::new();
    let bad = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "Cart", "labels": { "a b": "c" } },
        "spec": { "ports": [{ "port": 70000 }, { "port": "x" }, { "port": 1, "targetport": 2 }], "selector": { "app": 1 } },
    });
    let reply = api.json("POST", SERVICES, &bad).await;
    reply.failed(422, "Invalid");
    let causes = reply.body["details"]["causes"].as_array().expect("causes");
    let fields: Vec<&str> = causes.iter().filter_map(|cause| cause["field"].as_str()).collect();
    assert_eq!(fields, ["spec.ports[2].targetport", "spec.ports[1].port", "spec.selector.app"]);
    assert!(causes[2]["message"].as_str().expect("text").contains("put the value in quotes"));
    let ranges = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "Cart", "labels": { "a b": "c" } },
        "spec": { "ports": [{ "port": 70000 }, { "port": 0 }] },
    });
    let reply = api.json("POST", SERVICES, &ranges).await;
    let count = reply.body["details"]["causes"].as_array().map(Vec::len);
    assert_eq!(count, Some(6), "name, label, two ports and their targets: {reply:?}");
}

#[tokio::test]
async fn unknown_fields_are_refused_warned_of_or_dropped_as_asked() {
    let api = Api::new();
    let mut object = service("cart");
    object["spec"]["colour"] = "red".into();
    let reply = api.json("POST", SERVICES, &object).await;
    assert!(reply.failed(400, "BadRequest").contains("strict decoding error: unknown field \"spec.colour\""));
    let reply = api.json("POST", &format!("{SERVICES}?fieldValidation=Warn"), &object).await;
    assert_eq!(reply.code, 201);
    assert_eq!(reply.warnings, ["299 - \"unknown field \\\"spec.colour\\\"\""]);
    assert_eq!(reply.body["spec"]["colour"], Value::Null, "it is dropped");
    object["metadata"]["name"] = "web".into();
    let reply = api.json("POST", &format!("{SERVICES}?fieldValidation=Ignore"), &object).await;
    assert_eq!((reply.code.as_u16(), reply.warnings.len()), (201, 0));
    let twice = r#"{"metadata":{"name":"a"},"metadata":{"name":"b"},"spec":{"ports":[{"port":1}]}}"#;
    let reply = api.send("POST", SERVICES, "application/json", twice).await;
    assert!(reply.failed(400, "BadRequest").contains("duplicate field \"metadata\""));
}

#[tokio::test]
async fn generation_counts_changes_of_content_only() {
    let api = Api::new();
    let made = api.made(SERVICES, &service("cart")).await;
    let labelled = api.merge(CART, &json!({ "metadata": { "labels": { "tier": "back" } } })).await.body;
    assert_eq!(
        (&labelled["metadata"]["generation"], &labelled["metadata"]["resourceVersion"]),
        (&json!(1), &json!("2"))
    );
    let changed = api.merge(CART, &json!({ "spec": { "selector": { "app": "other" } } })).await.body;
    assert_eq!(changed["metadata"]["generation"], 2);
    assert_eq!(changed["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(changed["metadata"]["creationTimestamp"], made["metadata"]["creationTimestamp"]);
}

#[tokio::test]
async fn a_write_without_a_change_makes_no_event() {
    let api = Api::new();
    let made = api.made(SERVICES, &service("cart")).await;
    let same = api.merge(CART, &json!({ "metadata": { "labels": { "app": "cart" } } })).await;
    assert_eq!((same.code.as_u16(), &same.body), (200, &made));
    assert_eq!(api.json("PUT", CART, &made).await.body, made);
    assert_eq!(api.store.revision(), 1);
}

#[tokio::test]
async fn a_stale_version_is_a_conflict_and_none_is_not() {
    let api = Api::new();
    let old = api.made(SERVICES, &service("cart")).await;
    api.merge(CART, &json!({ "metadata": { "labels": { "x": "y" } } })).await;
    let reply = api.json("PUT", CART, &old).await;
    assert!(reply.failed(409, "Conflict").contains("the object has been modified"));
    let reply = api.merge(CART, &json!({ "metadata": { "resourceVersion": "1", "labels": { "x": "z" } } })).await;
    reply.failed(409, "Conflict");
    let mut unversioned = old.clone();
    unversioned["metadata"].as_object_mut().expect("fields").remove("resourceVersion");
    assert_eq!(api.json("PUT", CART, &unversioned).await.code, 200);
    unversioned["metadata"]["uid"] = "another".into();
    assert!(api.json("PUT", CART, &unversioned).await.failed(409, "Conflict").contains("UID in precondition"));
    api.json("PUT", &format!("{SERVICES}/none"), &service("none")).await.failed(404, "NotFound");
}

#[tokio::test]
async fn the_object_must_be_the_one_of_the_path() {
    let api = Api::new();
    api.made(SERVICES, &service("cart")).await;
    for (change, says) in [
        (json!({ "metadata": { "name": "web" } }), "the name of the object (web)"),
        (json!({ "metadata": { "namespace": "other" } }), "the namespace of the object (other)"),
        (json!({ "kind": "Pod" }), "kind of the body is \"Pod\""),
        (json!({ "apiVersion": "v2" }), "apiVersion of the body is \"v2\""),
        (json!({ "metadata": 1 }), "metadata is not an object: 1"),
    ] {
        let reply = api.merge(CART, &change).await;
        assert!(reply.failed(400, "BadRequest").starts_with(says), "{reply:?}");
    }
}

#[tokio::test]
async fn status_is_written_apart_from_the_rest() {
    let api = Api::new();
    api.made(SERVICES, &service("cart")).await;
    let condition = json!([{
        "type": "Ready", "status": "True", "reason": "X", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]);
    let change = json!({ "status": { "conditions": condition }, "spec": { "type": "NodePort" } });
    let main = api.merge(CART, &change).await.body;
    assert_eq!((&main["status"], &main["spec"]["type"]), (&Value::Null, &json!("NodePort")));
    let change = json!({ "status": { "conditions": condition }, "spec": { "type": "ClusterIP" } });
    let status = api.merge(&format!("{CART}/status"), &change).await;
    assert_eq!(status.code, 200, "{status:?}");
    assert_eq!((&status.body["status"]["conditions"], &status.body["spec"]["type"]), (&condition, &json!("NodePort")));
    assert_eq!(status.body["metadata"]["generation"], 2, "status is no content");
    let bad = json!({ "status": { "conditions": 1 } });
    api.merge(&format!("{CART}/status"), &bad).await.failed(422, "Invalid");
}

#[tokio::test]
async fn a_dry_run_answers_like_the_write_and_writes_nothing() {
    let api = Api::new();
    let reply = api.json("POST", &format!("{SERVICES}?dryRun=All"), &service("cart")).await;
    assert_eq!(reply.code, 201);
    assert!(reply.body["metadata"]["uid"].is_string());
    api.get(CART).await.failed(404, "NotFound");
    api.made(SERVICES, &service("cart")).await;
    let patched = api.merge(&format!("{CART}?dryRun=All"), &json!({ "spec": { "type": "NodePort" } })).await;
    assert_eq!(patched.body["spec"]["type"], "NodePort");
    assert_eq!(api.delete(&format!("{CART}?dryRun=All")).await.code, 200);
    assert_eq!(api.get(CART).await.body["spec"]["type"], "ClusterIP");
    assert_eq!(api.store.revision(), 1);
}

#[tokio::test]
async fn an_object_with_finalizers_goes_with_the_last_of_them() {
    let api = Api::new();
    let mut object = service("cart");
    object["metadata"]["finalizers"] = json!(["weft.dev/hold"]);
    api.made(SERVICES, &object).await;
    let marked = api.delete(CART).await;
    assert!(marked.body["metadata"]["deletionTimestamp"].is_string(), "{marked:?}");
    assert_eq!(api.delete(CART).await.code, 200, "again changes nothing");
    assert_eq!(api.store.revision(), 2);
    let added = api.merge(CART, &json!({ "metadata": { "finalizers": ["weft.dev/hold", "weft.dev/more"] } })).await;
    assert!(added.failed(422, "Invalid").contains("is being deleted"));
    assert_eq!(api.merge(CART, &json!({ "metadata": { "finalizers": null } })).await.code, 200);
    api.get(CART).await.failed(404, "NotFound");
}

#[tokio::test]
async fn a_deletion_keeps_to_its_preconditions() {
    let api = Api::new();
    let made = api.made(SERVICES, &service("cart")).await;
    let wrong = json!({ "preconditions": { "uid": "other" } });
    assert!(api.json("DELETE", CART, &wrong).await.failed(409, "Conflict").contains("UID in precondition: other"));
    let wrong = json!({ "preconditions": { "resourceVersion": "9" } });
    api.json("DELETE", CART, &wrong).await.failed(409, "Conflict");
    let wrong = json!({ "propagationPolicy": "Sideways" });
    api.json("DELETE", CART, &wrong).await.failed(400, "BadRequest");
    let right = json!({ "preconditions": { "uid": made["metadata"]["uid"] }, "propagationPolicy": "Background" });
    let reply = api.json("DELETE", CART, &right).await;
    assert_eq!(reply.body["metadata"]["uid"], made["metadata"]["uid"]);
    api.delete(CART).await.failed(404, "NotFound");
}

#[tokio::test]
async fn a_deletion_answers_with_what_typed_clients_read() {
    let api = Api::new();
    let made = api.made(SERVICES, &service("cart")).await;
    let gone = api.delete(CART).await.body;
    assert_eq!((&gone["kind"], &gone["spec"]), (&json!("Service"), &made["spec"]));
    assert_eq!(gone["metadata"]["resourceVersion"], api.store.revision().to_string());
    let made = api.made(POLICIES, &policy("cart", "cart")).await;
    let gone = api.delete(&format!("{POLICIES}/cart")).await.body;
    assert_eq!((&gone["status"], &gone["details"]["uid"]), (&json!("Success"), &made["metadata"]["uid"]));
}

#[tokio::test]
async fn a_namespace_takes_what_is_in_it_along() {
    let api = Api::new();
    api.made("/api/v1/namespaces", &json!({ "metadata": { "name": "shop" } })).await;
    api.made(SERVICES, &service("cart")).await;
    api.made(&SERVICES.replace("shop", "other"), &service("cart")).await;
    assert_eq!(api.delete("/api/v1/namespaces/shop").await.code, 200);
    api.get(CART).await.failed(404, "NotFound");
    assert_eq!(api.get(&CART.replace("shop", "other")).await.code, 200);
}

#[tokio::test]
async fn policies_warn_of_targets_that_are_not_there_or_taken() {
    let api = Api::new();
    let reply = api.json("POST", POLICIES, &policy("p", "cart")).await;
    assert_eq!(reply.warnings.len(), 1, "{reply:?}");
    assert!(reply.warnings[0].contains("spec.targetRefs[0].name: Service shop/cart does not exist (yet)"));
    assert_eq!(reply.body["status"], Value::Null, "what holds for it is found later");
    let again = api.json("POST", POLICIES, &policy("q", "cart")).await;
    assert!(again.warnings[1].contains("TrafficPolicy shop/p has the same target"), "{again:?}");
    let changed = api.merge(&format!("{POLICIES}/p"), &json!({ "spec": { "retries": { "attempts": 5 } } })).await.body;
    assert_eq!(changed["metadata"]["generation"], 2);
}

#[tokio::test]
async fn routes_warn_of_dangling_references_and_overlaps() {
    let api = Api::new();
    let routes = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes";
    let route = |name: &str| {
        json!({ "metadata": { "name": name }, "spec": {
            "parentRefs": [{ "kind": "Service", "group": "", "name": "cart" }],
            "rules": [{ "backendRefs": [{ "name": "none", "port": 80 }] }],
        }})
    };
    api.made(SERVICES, &service("cart")).await;
    let reply = api.json("POST", routes, &route("a")).await;
    assert_eq!(reply.warnings, ["299 - \"spec.rules[0].backendRefs[0]: Service shop/none does not exist (yet)\""]);
    let reply = api.json("POST", routes, &route("b")).await;
    assert!(reply.warnings[1].contains("HTTPRoute shop/a has a rule with the same matches"), "{reply:?}");
}

#[tokio::test]
async fn bodies_and_patches_of_other_types_are_refused_with_a_way_out() {
    let api = Api::new();
    api.made(POLICIES, &policy("p", "cart")).await;
    let path = format!("{POLICIES}/p");
    for (content_type, says) in [
        ("application/apply-patch+yaml", "use client-side apply"),
        ("application/strategic-merge-patch+json", "takes no strategic merge patch"),
        ("application/json", "the patch of type \"application/json\" is not supported"),
    ] {
        let reply = api.send("PATCH", &path, content_type, "{}").await;
        assert!(reply.failed(415, "UnsupportedMediaType").contains(says), "{reply:?}");
    }
    let reply = api.send("POST", POLICIES, "text/html", "<p>").await;
    assert!(reply.failed(415, "UnsupportedMediaType").contains("application/json and application/yaml are taken"));
    let reply =
        api.send("POST", SERVICES, "application/yaml", "metadata: {name: web}\nspec: {ports: [{port: 1}]}").await;
    assert_eq!(reply.code, 201);
    let reply = api.send("POST", SERVICES, "application/json", "{").await;
    assert!(reply.failed(400, "BadRequest").contains("line 1 column 1"));
    let reply = api.send("POST", SERVICES, "application/json", vec![b' '; 3 * 1024 * 1024 + 1]).await;
    reply.failed(413, "RequestEntityTooLarge");
    let mut large = service("large");
    large["metadata"]["annotations"] = json!({ "a": "x".repeat(300_000) });
    assert!(api.json("POST", SERVICES, &large).await.failed(422, "Invalid").contains("bytes are too many"));
}

#[tokio::test]
async fn the_reason_of_a_write_is_in_the_history() {
    let api = Api::new();
    api.made(&format!("{SERVICES}?reason=first%20try"), &service("cart")).await;
    let annotated = json!({ "metadata": { "annotations": { "weft.dev/reason": "second" } } });
    api.merge(CART, &annotated).await;
    api.merge(CART, &json!({ "spec": { "type": "NodePort" } })).await;
    let history = api.get("/weft/v1/history?kind=svc&namespace=shop&name=cart&objects=true").await.body;
    let reasons: Vec<&str> =
        history["items"].as_array().expect("items").iter().filter_map(|e| e["reason"].as_str()).collect();
    assert_eq!(reasons, ["", "second", "first try"], "an old annotation speaks of an earlier change");
    assert_eq!(history["items"][0]["object"]["spec"]["type"], "NodePort");
    assert_eq!(history["items"][0]["beforeObject"]["spec"]["type"], "ClusterIP");
    assert!(!history["items"][0]["author"].as_str().expect("an author").is_empty());
    assert_eq!(api.get("/weft/v1/history/verify").await.body["verified"], true);
    assert!(
        api.get("/weft/v1/history?kind=servic").await.failed(400, "BadRequest").contains("did you mean \"Service\"?")
    );
}

#[tokio::test]
async fn a_rollback_makes_new_events_that_restore_the_past() {
    let api = Api::new();
    let made = api.made(SERVICES, &service("cart")).await;
    api.made(SERVICES, &service("web")).await;
    api.merge(CART, &json!({ "spec": { "type": "NodePort" } })).await;
    api.delete(&format!("{SERVICES}/web")).await;
    api.made(SERVICES, &service("new")).await;
    let wanted = json!({ "toRevision": 2, "dryRun": true });
    let dry = api.json("POST", "/weft/v1/rollback", &wanted).await.body;
    let actions: Vec<String> = dry["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| format!("{} {}", item["action"], item["name"]))
        .collect();
    assert_eq!(actions, ["\"delete\" \"new\"", "\"update\" \"cart\"", "\"create\" \"web\""]);
    assert_eq!(api.store.revision(), 5);
    let done = api.json("POST", "/weft/v1/rollback", &json!({ "toRevision": 2, "reason": "it broke" })).await;
    assert_eq!(done.body["revision"], 8, "{done:?}");
    let cart = api.get(CART).await.body;
    assert_eq!(cart["spec"], made["spec"]);
    assert_eq!((&cart["metadata"]["uid"], &cart["metadata"]["generation"]), (&made["metadata"]["uid"], &json!(3)));
    assert_eq!(api.get(&format!("{SERVICES}/web")).await.code, 200);
    api.get(&format!("{SERVICES}/new")).await.failed(404, "NotFound");
    let again = api.json("POST", "/weft/v1/rollback", &json!({ "toRevision": 2 })).await;
    assert_eq!(again.body["items"].as_array().map(Vec::len), Some(0), "twice over is no change: {again:?}");
    let future = api.json("POST", "/weft/v1/rollback", &json!({ "toRevision": 99 })).await;
    assert!(future.failed(400, "BadRequest").contains("lies in the future"));
    api.json("POST", "/weft/v1/rollback", &json!({ "toRevison": 2 })).await.failed(400, "BadRequest");
}

#[tokio::test]
async fn a_rollback_to_what_is_refused_today_restores_nothing_and_names_it() {
    let api = Api::new();
    // As an older version wrote them.
    let mut bad = service("bad");
    bad["metadata"]["namespace"] = "shop".into();
    bad["spec"]["ports"][0]["port"] = 0.into();
    let old = [("Service", "bad", bad), ("Gadget", "x", json!({})), ("Service", "good", service("good"))];
    let writes = old.map(|(kind, name, object)| Write {
        key: Key::new(kind, "shop", name),
        expect: Expect::Absent,
        object: Some(object),
    });
    let keys = writes.each_ref().map(|write| write.key.clone());
    let batch = |writes| Batch { author: "old".into(), reason: String::new(), writes };
    api.store.append(batch(writes.into())).await.expect("taken");
    let gone = keys.map(|key| Write { key, expect: Expect::Any, object: None });
    api.store.append(batch(gone.into())).await.expect("taken");
    for dry_run in [true, false] {
        let wanted = json!({ "toRevision": 3, "dryRun": dry_run });
        let reply = api.json("POST", "/weft/v1/rollback", &wanted).await;
        let message = reply.failed(422, "Invalid");
        for part in ["Service shop/bad: spec.ports[0].port: 0 is not a port", "Gadget shop/x: this version"] {
            assert!(message.contains(part), "{part} in {message}");
        }
        assert!(!message.contains("shop/good"), "{message}");
    }
    assert_eq!(api.store.revision(), 6, "nothing was restored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_are_no_part_of_a_rollback_and_do_not_stop_it() {
    use crate::store::{Batch, Expect, Key, Write};

    let api = Api::new();
    api.made(SERVICES, &service("cart")).await;
    api.made(SERVICES, &service("web")).await;
    let status = json!({ "status": { "loadBalancer": {} } });
    assert_eq!(api.merge(&format!("{CART}/status"), &status).await.code, 200);
    let rolled = api.json("POST", "/weft/v1/rollback", &json!({ "toRevision": 2 })).await;
    assert_eq!(rolled.body["items"], json!([]), "only a status differs");
    api.merge(CART, &json!({ "spec": { "type": "NodePort" } })).await;
    api.delete(&format!("{SERVICES}/web")).await;
    let (store, mut states) = (api.store.clone(), api.store.state());
    // A status, a few times, after each write of others.
    let writing = tokio::spawn(async move {
        let key = Key::new("Service", "shop", "cart");
        while states.changed().await.is_ok() {
            states.mark_unchanged();
            for last in 0..3 {
                let stored = store.get(&key).expect("there");
                let mut object = (*stored.object).clone();
                object["status"]["loadBalancer"] = json!({ "ingress": [{ "ip": format!("127.0.0.{last}") }] });
                let expect = Expect::Revision(stored.revision);
                let writes = vec![Write { key: key.clone(), expect, object: Some(object) }];
                let _ = store.append(Batch { author: "weft".into(), reason: "status".into(), writes }).await;
                states.mark_unchanged();
            }
        }
    });
    for to in [3, 4, 3, 5, 3].repeat(20) {
        let rolled = api.json("POST", "/weft/v1/rollback", &json!({ "toRevision": to })).await;
        assert_eq!(rolled.code, 200, "{rolled:?}");
        assert!(api.get(CART).await.body["status"]["loadBalancer"].is_object(), "the status stays");
    }
    writing.abort();
}
