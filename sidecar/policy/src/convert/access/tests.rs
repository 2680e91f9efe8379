use weft_proto::v1::{
    Condition, ConditionGroup, ConditionSet, ValueList, authorization_policy::Action, condition::Kind,
};

use super::*;

fn list(values: &[&str]) -> ValueList {
    ValueList { values: values.iter().map(ToString::to_string).collect() }
}

fn with(kind: Option<Kind>) -> v1::AuthorizationRule {
    let set = ConditionSet { all_of: vec![Condition { negated: false, kind }] };
    v1::AuthorizationRule { everything: false, groups: vec![ConditionGroup { any_of: vec![set] }] }
}

fn policy_with(rules: Vec<v1::AuthorizationRule>) -> v1::AuthorizationPolicy {
    v1::AuthorizationPolicy { name: "shop/p".into(), action: Action::Allow.into(), dry_run: false, rules }
}

fn of(policies: Vec<v1::AuthorizationPolicy>) -> v1::Access {
    v1::Access { tls_mode: v1::TlsMode::Strict.into(), policies }
}

fn refused(policy: v1::AuthorizationPolicy) -> String {
    access(Some(of(vec![policy]))).expect_err("refused").field
}

#[test]
fn a_port_without_access_or_with_an_unknown_mode_is_refused() {
    assert_eq!(access(None).expect_err("missing").field, "access");
    for mode in [0, 7, -1] {
        let wire = v1::Access { tls_mode: mode, policies: vec![] };
        assert_eq!(access(Some(wire)).expect_err("unknown").field, "access.tls_mode", "{mode}");
    }
    assert_eq!(access(Some(of(vec![]))).expect("valid").tls_mode, TlsMode::Strict);
}

#[test]
fn an_action_or_a_condition_that_is_not_known_is_refused() {
    for action in [0, 3, -1] {
        let policy = v1::AuthorizationPolicy { action, ..policy_with(vec![with(None)]) };
        assert_eq!(refused(policy), "access.policies[0].action", "{action}");
    }
    assert_eq!(
        refused(policy_with(vec![with(None)])),
        "access.policies[0].rules[0].groups[0].any_of[0].all_of[0].kind"
    );
}

#[test]
fn what_is_empty_is_neither_any_nor_none() {
    let rule = "access.policies[0].rules[0]";
    let group = |group| v1::AuthorizationRule { everything: false, groups: vec![group] };
    let empty_set = ConditionGroup { any_of: vec![ConditionSet::default()] };
    for (wire, field) in [
        (v1::AuthorizationRule::default(), "everything"),
        (v1::AuthorizationRule { everything: true, ..with(Some(Kind::Methods(list(&["GET"])))) }, "everything"),
        (group(ConditionGroup::default()), "groups[0].any_of"),
        (group(empty_set), "groups[0].any_of[0].all_of"),
    ] {
        assert_eq!(refused(policy_with(vec![wire])), format!("{rule}.{field}"));
    }
    for (kind, field) in [
        (Kind::Identities(list(&[])), "identities"),
        (Kind::Networks(list(&[])), "networks"),
        (Kind::Ports(v1::PortList::default()), "ports"),
        (Kind::Methods(list(&[])), "methods"),
        (Kind::Paths(list(&[])), "paths"),
        (Kind::Hosts(list(&[])), "hosts"),
        (Kind::Header(v1::NamedValues { name: "x".into(), values: vec![] }), "header.values"),
        (Kind::Claim(v1::NamedValues { name: "x".into(), values: vec![] }), "claim.values"),
        (Kind::Claim(v1::NamedValues { name: String::new(), values: vec!["a".into()] }), "claim.name"),
    ] {
        let expected = format!("{rule}.groups[0].any_of[0].all_of[0].{field}");
        assert_eq!(refused(policy_with(vec![with(Some(kind))])), expected);
    }
    let deny = v1::AuthorizationPolicy { action: Action::Deny.into(), ..policy_with(vec![]) };
    assert_eq!(refused(deny), "access.policies[0].rules");
    assert!(access(Some(of(vec![policy_with(vec![])]))).is_ok(), "an ALLOW without rules lets nobody in");
}

#[test]
fn each_value_that_cannot_be_meant_is_refused_at_its_index() {
    for (kind, field) in [
        (Kind::Identities(list(&["*", "web"])), "identities[1]"),
        (Kind::Networks(list(&["10.0.0.0/8", "10.0.0.1/8"])), "networks[1]"),
        (Kind::Ports(v1::PortList { values: vec![80, 65616] }), "ports[1]"),
        (Kind::Methods(list(&["GET", "G T"])), "methods[1]"),
        (Kind::Paths(list(&["/a", "/a/../b"])), "paths[1]"),
        (Kind::Hosts(list(&["a", "a:80"])), "hosts[1]"),
        (Kind::Header(v1::NamedValues { name: "x".into(), values: vec!["a".into(), "\n".into()] }), "header.values[1]"),
        (Kind::Header(v1::NamedValues { name: "X".into(), values: vec!["a".into()] }), "header.name"),
        (Kind::Header(v1::NamedValues { name: "host".into(), values: vec!["a".into()] }), "header.name"),
    ] {
        let expected = format!("access.policies[0].rules[0].groups[0].any_of[0].all_of[0].{field}");
        assert_eq!(refused(policy_with(vec![with(Some(kind))])), expected);
    }
}

#[test]
fn names_are_unique_and_everything_is_bounded() {
    let policy = || policy_with(vec![with(Some(Kind::Methods(list(&["GET"]))))]);
    let error = access(Some(of(vec![policy(), policy()]))).expect_err("twice");
    assert_eq!(error.field, "access.policies[1].name");
    assert_eq!(refused(v1::AuthorizationPolicy { name: "p".into(), ..policy() }), "access.policies[0].name");
    let many = access(Some(of(vec![policy(); MAX_POLICIES + 1]))).expect_err("too many");
    assert_eq!(many.field, "access.policies");
    assert_eq!(refused(policy_with(vec![policy().rules[0].clone(); MAX_RULES + 1])), "access.policies[0].rules");
    let half = vec!["GET"; MAX_VALUES / 2 + 1];
    let rules = vec![with(Some(Kind::Methods(list(&half)))); 2];
    assert_eq!(refused(policy_with(rules)), "access.policies[0].rules[1].groups[0].any_of[0].all_of[0].methods");
}
