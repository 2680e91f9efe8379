//! Values that cannot be meant, as people write them, refused when they are applied.

use crate::mesh::TestMesh;

/// An object with something that cannot be meant, and what is said of it.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "HTTPRoute",
        "rules: [{timeouts: {request: -1s}, backendRefs: [{name: web, port: 80}]}]",
        "spec.rules[0].timeouts.request: \"-1s\" is not a duration",
    ),
    (
        "HTTPRoute",
        "rules: [{matches: [{path: {type: RegularExpression, value: '(\\w{100}){100}'}}]}]",
        "spec.rules[0].matches[0].path.value: \"(\\w{100}){100}\" is too large when compiled",
    ),
    (
        "HTTPRoute",
        "rules: [{backendRefs: [{name: web, port: 80, weight: 0}, {name: other, port: 80, weight: 0}]}]",
        "spec.rules[0].backendRefs: the weights sum to 0",
    ),
    (
        "GRPCRoute",
        "rules: [{backendRefs: [{name: web, port: 80, weight: 0}]}]",
        "spec.rules[0].backendRefs: the weights sum to 0",
    ),
    ("TrafficPolicy", "timeouts: {request: -1s}", "spec.timeouts.request: "),
    ("TrafficPolicy", "retries: {budget: {percent: 101}}", "spec.retries.budget.percent: 101 is not a percentage"),
    ("FaultInjection", "abort: {httpStatus: 500, percent: 101}", "spec.abort.percent: 101 is not a percentage"),
    ("FaultInjection", "delay: {fixed: -1s}", "spec.delay.fixed: "),
    ("RateLimitPolicy", "limits: [{requests: 0}]", "spec.limits[0].requests: "),
    ("RateLimitPolicy", "limits: [{requests: 1, per: -1s}]", "spec.limits[0].per: "),
];

#[test]
fn values_that_cannot_be_meant_are_refused_with_path_and_reason() {
    let mesh = TestMesh::builder("refused-values").start();
    for (kind, spec, said) in REFUSED {
        let (group, target) = match kind.ends_with("Route") {
            true => ("gateway.networking.k8s.io/v1", "parentRefs: [{group: '', kind: Service, name: web}]"),
            false => ("weft.dev/v1alpha1", "targetRefs: [{kind: Service, name: web}]"),
        };
        let text = format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: bad}}\nspec:\n  {target}\n  {spec}\n");
        let file = mesh.dir.join("bad.yaml");
        std::fs::write(&file, text).expect("writable");
        let refused = mesh.weft(&["apply", "-f", &file.to_string_lossy()]);
        assert_eq!(refused.code, Some(1), "{kind} {spec}: {}", refused.text);
        assert!(refused.text.contains(said), "{kind} {spec}: {said:?} in {}", refused.text);
        let object = format!("{}/bad", kind.to_lowercase());
        let got = mesh.weft(&["get", &object]);
        assert_ne!(got.code, Some(0), "{kind} {spec} is there: {}", got.text);
    }
}
