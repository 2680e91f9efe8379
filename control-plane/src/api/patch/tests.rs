//! The examples of RFC 7396 and RFC 6902, and those of Kubernetes' text on strategic merge patch.

use serde_json::{Value, json};

use super::*;

#[test]
fn the_examples_of_rfc_7396_hold() {
    for (target, patch, expected) in [
        (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
        (json!({"a":"b"}), json!({"a":null}), json!({})),
        (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
        (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
        (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
        (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({"a":"b"}), json!(["c"]), json!(["c"])),
        (json!({"a":"foo"}), Value::Null, Value::Null),
        (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
        (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
        (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
    ] {
        assert_eq!(merge(target.clone(), patch.clone()), expected, "{target} {patch}");
    }
}

#[test]
fn the_operations_of_rfc_6902_hold() {
    for (target, patch, expected) in [
        (json!({"foo":"bar"}), json!([{"op":"add","path":"/baz","value":"qux"}]), json!({"baz":"qux","foo":"bar"})),
        (json!({"foo":["a","c"]}), json!([{"op":"add","path":"/foo/1","value":"b"}]), json!({"foo":["a","b","c"]})),
        (json!({"foo":["a"]}), json!([{"op":"add","path":"/foo/-","value":["b"]}]), json!({"foo":["a",["b"]]})),
        (json!({"a":1,"b":2}), json!([{"op":"remove","path":"/a"}]), json!({"b":2})),
        (json!({"a":[1,2,3]}), json!([{"op":"remove","path":"/a/1"}]), json!({"a":[1,3]})),
        (json!({"a":1}), json!([{"op":"replace","path":"/a","value":[2]}]), json!({"a":[2]})),
        (json!({"a":{"b":1},"c":{}}), json!([{"op":"move","from":"/a/b","path":"/c/d"}]), json!({"a":{},"c":{"d":1}})),
        (json!({"a":[1,2,3]}), json!([{"op":"move","from":"/a/0","path":"/a/2"}]), json!({"a":[2,3,1]})),
        (json!({"a":{"b":1}}), json!([{"op":"copy","from":"/a","path":"/c"}]), json!({"a":{"b":1},"c":{"b":1}})),
        (
            json!({"a/b":1,"m~n":2}),
            json!([{"op":"test","path":"/a~1b","value":1},{"op":"test","path":"/m~0n","value":2.0}]),
            json!({"a/b":1,"m~n":2}),
        ),
        (json!({"a":1}), json!([{"op":"replace","path":"","value":{"b":2}}]), json!({"b":2})),
    ] {
        assert_eq!(json_patch(target.clone(), &patch), Ok(expected), "{target} {patch}");
    }
}

#[test]
fn a_json_patch_that_does_not_fit_says_which_operation_and_why() {
    for (patch, says) in [
        (json!([{"op":"test","path":"/a","value":2}]), "operation 0: testing value /a failed: it is 1, expected 2"),
        (json!([{"op":"add","path":"/c","value":1},{"op":"remove","path":"/b"}]), "operation 1: \"/b\" does not exist"),
        (json!([{"op":"add","path":"/l/9","value":1}]), "operation 0: \"/l/9\" does not exist"),
        (json!([{"op":"add","path":"/l/01","value":1}]), "operation 0: \"/l/01\" does not exist"),
        (json!([{"op":"replace","path":"/x/y","value":1}]), "operation 0: \"/x/y\" does not exist"),
        (json!([{"op":"move","from":"/m","path":"/m/n"}]), "operation 0: cannot move \"/m\" into itself"),
    ] {
        let target = json!({"a":1,"l":[1,2],"m":{}});
        assert_eq!(json_patch(target, &patch), Err(PatchError::Failed(says.into())));
    }
    for (patch, says) in [
        (json!({}), "a JSON patch is a list of operations"),
        (json!([1]), "operation 0: is not an object"),
        (json!([{"op":"frob","path":"/a"}]), "operation 0: \"op\" is \"frob\", expected one of"),
        (json!([{"op":"add","path":"/a"}]), "operation 0: \"value\" is missing"),
        (json!([{"op":"add","path":"a","value":1}]), "operation 0: \"a\" is not a JSON pointer"),
        (json!([{"op":"add","value":1}]), "operation 0: \"path\" is missing or no text"),
    ] {
        match json_patch(json!({"a":1}), &patch) {
            Err(PatchError::Malformed(why)) => assert!(why.starts_with(says), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn copies_cannot_grow_without_end() {
    let copies: Vec<Value> = (0..64).map(|at| json!({"op":"copy","from":"","path":format!("/a{at}")})).collect();
    let target = json!({"a":"x","b":"y".repeat(100)});
    assert!(matches!(json_patch(target, &Value::Array(copies)), Err(PatchError::Failed(_))));
}

#[test]
fn nesting_cannot_grow_without_end() {
    let deeper: Vec<Value> = (0..400).map(|at| json!({"op":"add","path":"/a".repeat(at + 1),"value":{}})).collect();
    let Err(PatchError::Failed(why)) = json_patch(json!({}), &Value::Array(deeper)) else { panic!("it was taken") };
    assert!(why.ends_with("nests values deeper than 128 levels"), "{why}");
}

fn patched(target: Value, patch: Value) -> Value {
    strategic(target, patch).expect("fits")
}

fn service(ports: Value) -> Value {
    json!({ "spec": { "ports": ports } })
}

#[test]
fn maps_are_merged_and_null_deletes() {
    let target = json!({"metadata":{"labels":{"a":"1","b":"2"}},"spec":{"type":"ClusterIP"}});
    let patch = json!({"metadata":{"labels":{"a":null,"c":"3"}}});
    assert_eq!(patched(target, patch), json!({"metadata":{"labels":{"b":"2","c":"3"}},"spec":{"type":"ClusterIP"}}));
}

#[test]
fn ports_are_merged_by_their_number() {
    let target = service(json!([{"port":80,"name":"http","targetPort":8080},{"port":90,"name":"grpc"}]));
    let patch = service(json!([{"port":80,"targetPort":8081},{"port":70,"name":"new"}]));
    assert_eq!(
        patched(target, patch),
        service(
            json!([{"port":80,"name":"http","targetPort":8081},{"port":90,"name":"grpc"},{"port":70,"name":"new"}])
        )
    );
}

#[test]
fn a_port_is_deleted_by_directive() {
    let target = service(json!([{"port":80},{"port":90}]));
    let patch = service(json!([{"$patch":"delete","port":80}]));
    assert_eq!(patched(target, patch), service(json!([{"port":90}])));
}

#[test]
fn a_list_is_replaced_by_directive() {
    let target = service(json!([{"port":80},{"port":90}]));
    let patch = service(json!([{"port":1},{"$patch":"replace"}]));
    assert_eq!(patched(target, patch), service(json!([{"port":1}])));
}

#[test]
fn a_map_is_replaced_or_deleted_by_directive() {
    let target = json!({"spec":{"selector":{"a":"1","b":"2"},"type":"x"}});
    let patch = json!({"spec":{"selector":{"$patch":"replace","c":"3"}}});
    assert_eq!(patched(target.clone(), patch), json!({"spec":{"selector":{"c":"3"},"type":"x"}}));
    let patch = json!({"spec":{"selector":{"$patch":"delete"}}});
    assert_eq!(patched(target, patch), json!({"spec":{"type":"x"}}));
}

#[test]
fn the_order_of_elements_is_set_and_others_keep_their_place() {
    let target = service(json!([{"port":1},{"port":2},{"port":3}]));
    let patch = json!({"spec":{
        "$setElementOrder/ports":[{"port":3},{"port":4},{"port":1}],
        "ports":[{"port":4}],
    }});
    let ordered = patched(target, patch);
    let ports: Vec<i64> =
        ordered["spec"]["ports"].as_array().expect("a list").iter().filter_map(|p| p["port"].as_i64()).collect();
    assert_eq!(ports, [2, 3, 4, 1]);
}

#[test]
fn finalizers_are_a_set_with_deletions() {
    let target = json!({"metadata":{"finalizers":["a/x","b/x"]}});
    let patch = json!({"metadata":{"finalizers":["b/x","c/x"],"$deleteFromPrimitiveList/finalizers":["a/x"]}});
    assert_eq!(patched(target, patch), json!({"metadata":{"finalizers":["b/x","c/x"]}}));
}

#[test]
fn only_retained_keys_stay() {
    let target = json!({"spec":{"a":1,"b":2,"c":3}});
    let patch = json!({"spec":{"$retainKeys":["a","d"],"d":4}});
    assert_eq!(patched(target, patch), json!({"spec":{"a":1,"d":4}}));
}

#[test]
fn lists_of_an_endpoint_slice_are_replaced() {
    let target = json!({"endpoints":[{"addresses":["10.0.0.1"]}],"ports":[{"port":80}]});
    let patch = json!({"endpoints":[{"addresses":["10.0.0.2"]}]});
    assert_eq!(patched(target, patch), json!({"endpoints":[{"addresses":["10.0.0.2"]}],"ports":[{"port":80}]}));
}

#[test]
fn directives_never_end_up_in_the_object() {
    let patch = json!({"spec":{"selector":{"$retainKeys":["a"],"a":"1"},"ports":[{"port":1,"$patch":"merge"}]}});
    assert_eq!(patched(json!({}), patch), json!({"spec":{"selector":{"a":"1"},"ports":[{"port":1}]}}));
}

#[test]
fn a_malformed_strategic_patch_says_where() {
    for (patch, says) in [
        (json!({"spec":{"ports":[{"name":"x"}]}}), "spec.ports: an item has no \"port\""),
        (json!({"spec":{"ports":[1]}}), "spec.ports: an item is not an object: 1"),
        (json!({"spec":{"$patch":"frob"}}), "spec: unknown directive \"frob\""),
        (json!({"$retainKeys":1}), "patch: $retainKeys is not a list"),
        (json!({"$frob":[1]}), "patch: unknown directive \"$frob\""),
        (json!([1]), "a strategic merge patch is an object"),
    ] {
        match strategic(json!({}), patch) {
            Err(PatchError::Malformed(why)) => assert!(why.starts_with(says), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}
