//! What stands in for what, and where.

use super::*;
use crate::source::policies::security::Action;

/// The file's stand-ins among resources, and what is told of them.
fn at_first(text: &str) -> (Resources, Vec<String>) {
    let (mut resources, mut problems) = (Resources::of("weft.local"), Vec::new());
    let rest = of_file(&"shop.yaml".into(), text);
    rest.good.into_iter().for_each(|(object, _)| object.insert(&mut resources, &mut problems));
    assert_eq!(problems, []);
    rest.stand_ins.iter().for_each(|stand_in| stand_in.insert(&mut resources, &mut problems));
    (resources, problems.iter().map(ToString::to_string).collect())
}

fn object(kind: &str, metadata: &str, spec: &str) -> String {
    format!("apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {{{spec}}}\n---\n")
}

fn shop(spec: &str) -> String {
    object("AuthorizationPolicy", "name: p, namespace: shop", spec)
}

/// Name, and `namespace` or targets, of the only policy, which denies.
fn only(text: &str) -> (String, String) {
    let (resources, told) = at_first(text);
    assert_eq!(resources.authorization_policies.len(), 1, "{text}{told:?}");
    assert_eq!(told.len(), 1, "{text}");
    let (id, policy) = resources.authorization_policies.first_key_value().expect("there");
    let spec = &policy.value.spec;
    assert_eq!((spec.action, spec.dry_run, spec.rules.len()), (Action::Deny, false, 1));
    assert_eq!(&*policy.origin.file, "shop.yaml");
    let targets: Vec<_> = spec.target_refs.iter().map(|target| target.name.clone()).collect();
    let labels = spec.selector.iter().flat_map(|selector| selector.match_labels.values().cloned());
    (id.clone(), targets.into_iter().chain(labels).collect::<Vec<_>>().join(" "))
}

#[test]
fn what_stands_in_denies_at_the_targets_that_can_be_read_else_in_the_namespace_else_everywhere() {
    let cases = [
        ("action: Deny, rules: [{form: []}]", "shop/p", ""),
        ("action: Deny", "shop/p", ""),
        ("action: Dney, rules: [{}], targetRefs: [{kind: Service, name: web}]", "shop/p", "web"),
        ("rules: 5, selector: {matchLabels: {app: db}}", "shop/p", "db"),
        ("action: Deny, rules: [{}], targetRefs: [{kind: Servise, name: web}]", "shop/p", ""),
        ("action: Deny, rules: [{}], selector: {matchLabels: {}}", "shop/p", ""),
        ("action: Deny, rules: [{}], targetRef: {kind: Service, name: web}", "shop/p", ""),
    ];
    for (spec, id, targets) in cases {
        assert_eq!(only(&shop(spec)), (id.to_owned(), targets.to_owned()), "{spec}");
    }
    let bad = "action: Deny";
    for (metadata, id) in [
        ("name: p", "default/p"),
        ("name: P_1, namespace: shop", "shop/left-out"),
        ("name: 5, namespace: shop", "shop/left-out"),
        ("name: p, namespace: Shop_1", "weft-system/p"),
        ("name: p, namespace: [shop]", "weft-system/p"),
        ("name: P_1, namespace: Shop_1", "weft-system/left-out"),
    ] {
        assert_eq!(only(&object("AuthorizationPolicy", metadata, bad)).0, id, "{metadata}");
    }
}

#[test]
fn a_kind_or_version_that_is_nearly_right_is_meant() {
    for text in [
        shop("action: Deny, rules: [{}]").replace("Policy", "Polcy"),
        shop("action: Deny, rules: [{}]").replace("weft.dev/v1alpha1", "weft.dev/v1"),
    ] {
        assert_eq!(only(&text).0, "shop/p");
    }
    let others = shop("").replace("AuthorizationPolicy", "TrafficPolicy").replace("spec: {}", "spec: {x: 1}");
    for other in [others, object("Gadget", "name: g", ""), "kind: [1]\n".to_owned()] {
        assert_eq!(at_first(&other).1, Vec::<String>::new(), "{other}");
    }
}

#[test]
fn what_could_not_have_denied_anything_has_no_stand_in() {
    let (resources, told) = at_first(&shop("action: Deny, dryRun: true"));
    assert!(resources.authorization_policies.is_empty() && told.is_empty());
    let peer = |spec: &str| at_first(&object("PeerAuthentication", "name: p, namespace: shop", spec)).1.len();
    assert_eq!(peer("mode: Permissive, x: 1"), 0);
    assert_eq!(peer("mode: Permissive, ports: {80: Strct}"), 1);
    let mesh = |name: &str, spec: &str| at_first(&object("MeshConfig", &format!("name: {name}"), spec)).1.len();
    assert_eq!((mesh("default", "x: 1"), mesh("default", "x: 1, peerMode: Permissive")), (0, 0));
    assert_eq!((mesh("other", "x: 1, peerMode: Strict"), mesh("default", "peerMode: strict")), (0, 1));
    assert_eq!((mesh("default", "peermode: Strict"), mesh("default", "peer: Strict")), (1, 0), "misspelt, or another");
}

#[test]
fn other_kinds_leave_a_policy_that_refuses_plaintext_or_everyone_or_the_mode_of_the_mesh() {
    let text =
        object("PeerAuthentication", "name: p, namespace: shop", "mode: Strictt, selector: {matchLabels: {a: b}}");
    assert_eq!(only(&text), ("shop/p.peer-authentication".to_owned(), "b".to_owned()));
    let (resources, told) = at_first(&text);
    let rules = &resources.authorization_policies["shop/p.peer-authentication"].value.spec.rules;
    let from = rules[0].from.as_ref().expect("given");
    assert_eq!(from[0].not_identities.as_deref(), Some(&["*".to_owned()][..]));
    assert_eq!(
        told,
        [
            "shop.yaml:1:1: PeerAuthentication \"p\" cannot be used: until it can, nobody is let in without mutual TLS at \
          what it applies to (correct what is wrong with it, or remove it)"
        ]
    );
    let text = object("RequestAuthentication", "name: p, namespace: shop", "jwt: []");
    assert_eq!(only(&text).0, "shop/p.request-authentication");
    let (resources, _) = at_first(&object("MeshConfig", "name: default", "peerMode: Strict, traffic: 5"));
    let mode = resources.mesh_configs["default"].value.spec.peer_mode;
    assert_eq!(mode, Some(crate::source::policies::security::PeerMode::Strict));
}

fn is_registry_only(resources: &Resources) -> bool {
    let mesh = resources.mesh_configs.get("default").and_then(|mesh| mesh.value.spec.outbound_traffic);
    matches!(mesh, Some(crate::source::policies::mesh::OutboundTraffic::RegistryOnly))
}

#[test]
fn a_mesh_config_that_may_close_the_way_out_closes_it_until_it_can_be_read() {
    let of = |spec: &str| is_registry_only(&at_first(&object("MeshConfig", "name: default", spec)).0);
    for spec in ["outboundTraffic: RegistryOnly, x: 1", "outboundTraffic: RegistryOnli", "outboundTrafic: RegistryOnly"]
    {
        assert!(of(spec), "{spec}");
    }
    for spec in ["x: 1", "outboundTraffic: AllowAny, x: 1", "peerMode: Strictt"] {
        assert!(!of(spec), "{spec}");
    }
    let mode = |resources: &Resources| resources.mesh_configs["default"].value.spec.peer_mode;
    let (resources, told) = at_first(&object("MeshConfig", "name: default", "outboundTraffic: RegistryOnly, x: 1"));
    assert_eq!(mode(&resources), None, "it said nothing of who is let in");
    assert!(told[0].contains("its outboundTraffic is RegistryOnly, the rest by default"), "{told:?}");
    let (resources, _) = at_first("kind: MeshConfig\nspec: {outboundTraffic: [\n");
    assert!(is_registry_only(&resources) && mode(&resources).is_some());
}

#[test]
fn good_policies_of_a_bad_file_stay_and_other_objects_do_not() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}\n---\n";
    let bad = service.replace("80", "0");
    let (resources, told) = at_first(&format!("{service}{bad}{}", shop("action: Deny, rules: [{}]")));
    assert!(resources.services.is_empty() && told.is_empty());
    assert_eq!(resources.authorization_policies.len(), 1);
}

#[test]
fn a_file_that_is_no_yaml_denies_everything_if_it_may_hold_a_policy() {
    let text = format!("{}kind: [", shop("action: Deny, rules: [{}]"));
    assert_eq!(only(&text).0, "weft-system/shop-yaml");
    assert!(at_first(&text).1[0].ends_with(
        "file \"shop.yaml\" cannot be used: until it can, nobody is let in at every workload of the mesh (correct what is \
         wrong with it, or remove it)"
    ));
    assert!(at_first("kind: [\n").1.is_empty());
    let unreadable = of_unreadable(&"/etc/weft/A b.yaml".into(), None);
    let mut resources = Resources::default();
    unreadable.iter().for_each(|one| one.insert(&mut resources, &mut Vec::new()));
    assert!(resources.authorization_policies.contains_key("weft-system/a-b-yaml"));
    assert!(is_registry_only(&resources), "it may say so");
}
