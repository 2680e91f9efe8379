//! What validation says of policies that nobody can mean: the field, and why.

use crate::source::Resources;

/// The problem of a policy of this kind with this spec, without its file and place.
fn problem(kind: &str, spec: &str) -> String {
    let text = format!("apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: default}}\nspec: {{{spec}}}\n");
    let problems = Resources::from_text("f.yaml", &text).1;
    let [problem] = problems.as_slice() else { panic!("{spec}: {problems:?}") };
    format!("{}: {}", problem.path, problem.message)
}

#[test]
fn a_traffic_policy_says_which_field_is_wrong() {
    for (spec, expected) in [
        ("timeouts: {connect: 0s}", "timeouts.connect: must be more than 0s"),
        ("timeouts: {request: 8761h}", "timeouts.request: is longer than a year"),
        ("timeouts: {request: -1s}", "timeouts.request: \"-1s\" is not a duration, such as 10s, 500ms or 1m30s"),
        ("timeouts: {request: 1s, backendRequest: 2s}", "timeouts.backendRequest: is longer than timeouts.request"),
        ("retries: {attempts: 11}", "retries.attempts: 11 is too many"),
        ("retries: {codes: [200]}", "retries.codes[0]: 200 is not the status of a failure"),
        ("retries: {grpcCodes: [OK]}", "retries.grpcCodes[0]: unknown gRPC code \"OK\""),
        ("retries: {methods: []}", "retries.methods: is empty"),
        ("retries: {methods: ['a b']}", "retries.methods[0]: \"a b\" is not a method"),
        ("retries: {backoff: {base: 0s}}", "retries.backoff.base: must be more than 0s"),
        ("retries: {backoff: {base: 2s, max: 1s}}", "retries.backoff.base: is longer than max"),
        ("retries: {budget: {percent: 100.5}}", "retries.budget.percent: 100.5 is not a percentage"),
        ("loadBalancing: {algorithm: RingHash}", "loadBalancing.hashOn: is missing"),
        ("loadBalancing: {hashOn: {cookie: a}}", "loadBalancing.hashOn: has no use with this algorithm"),
        (
            "loadBalancing: {algorithm: Maglev, hashOn: {header: 'a b'}}",
            "loadBalancing.hashOn.header: \"a b\" is not a header name",
        ),
        ("loadBalancing: {locality: [Zone, Zone]}", "loadBalancing.locality[1]: is given twice"),
        ("limits: {connections: 0}", "limits.connections: 0 would stop everything"),
        ("limits: {retries: 0}", "limits.retries: 0 is not a limit"),
        (
            "outlierDetection: {successPercent: 0.00001}",
            "outlierDetection.successPercent: 0.00001 is less than one of a million",
        ),
        ("outlierDetection: {minimumRequests: 0}", "outlierDetection.minimumRequests: 0 would stop everything"),
        ("outlierDetection: {window: 0s}", "outlierDetection.window: must be more than 0s"),
        ("circuitBreaker: {baseOpen: 2s, maxOpen: 1s}", "circuitBreaker.baseOpen: is longer than maxOpen"),
        ("connection: {maxAge: 0s}", "connection.maxAge: must be more than 0s"),
    ] {
        assert_eq!(problem("TrafficPolicy", spec), format!("spec.{expected}"));
        assert_eq!(problem("MeshConfig", &format!("traffic: {{{spec}}}")), format!("spec.traffic.{expected}"));
    }
}

#[test]
fn what_belongs_to_the_service_cannot_be_set_at_a_route() {
    let route = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}]";
    for (spec, field) in [
        ("timeouts: {connect: 1s}", "timeouts.connect"),
        ("retries: {budget: {percent: 1}}", "retries.budget"),
        ("loadBalancing: {algorithm: Random}", "loadBalancing"),
        ("limits: {requests: 1}", "limits"),
        ("outlierDetection: {window: 1s}", "outlierDetection"),
        ("circuitBreaker: {breakOn: Never}", "circuitBreaker"),
        ("connection: {maxStreams: 1}", "connection"),
    ] {
        let found = problem("TrafficPolicy", &format!("{route}, {spec}"));
        assert_eq!(found, format!("spec.{field}: cannot be set at a route"));
    }
}

#[test]
fn a_fault_injection_says_which_field_is_wrong() {
    for (spec, expected) in [
        ("", ": nothing would fail"),
        ("delay: {fixed: 0s}", ".delay.fixed: must be more than 0s"),
        ("delay: {fixed: 1s, percent: -1}", ".delay.percent: -1 is not a percentage"),
        ("abort: {httpStatus: 199}", ".abort.httpStatus: 199 is not the status of an answer"),
        ("abort: {httpStatus: 503, reset: true}", ".abort: needs exactly one of httpStatus, grpcStatus and reset"),
        ("abort: {reset: false}", ".abort.reset: false does nothing"),
        ("abort: {percent: 5}", ".abort: needs exactly one of httpStatus, grpcStatus and reset"),
        ("bandwidth: {bytesPerSecond: 0}", ".bandwidth.bytesPerSecond: 0 would never end"),
        ("delay: {fixed: 1s}, headers: {'a b': c}", ".headers.a b: \"a b\" is not a header name"),
        ("delay: {fixed: 1s}, headers: {a: \"\\n\"}", ".headers.a: \"\\n\" is not a header value"),
        ("delay: {fixed: 1s}, expiresAfter: 0s", ".expiresAfter: must be more than 0s"),
    ] {
        let found = problem("FaultInjection", &format!("targetRefs: [{{kind: Service, name: web}}], {spec}"));
        assert_eq!(found, format!("spec{expected}"));
    }
    let found = problem("FaultInjection", "targetRefs: [{kind: Namespace, name: shop}], delay: {fixed: 1s}");
    assert_eq!(found, "spec.targetRefs[0].kind: unknown target kind \"Namespace\"");
}

#[test]
fn a_rate_limit_says_which_field_is_wrong() {
    for (limit, expected) in [
        ("requests: 0", "requests: 0 would stop everything"),
        ("requests: 1, burst: 0", "burst: 0 would stop everything"),
        ("requests: 1, per: 0s", "per: a period of 0s has no rate"),
        ("requests: 1, per: 25h", "per: is longer than a day"),
        ("requests: 1, key: Header", "header: goes with key Header, and only with it"),
        ("requests: 1, key: Header, header: 'a b'", "header: \"a b\" is not a header name"),
    ] {
        assert_eq!(problem("RateLimitPolicy", &format!("limits: [{{{limit}}}]")), format!("spec.limits[0].{expected}"));
    }
    let found =
        problem("RateLimitPolicy", "targetRefs: [{kind: Namespace, name: a, sectionName: b}], limits: [{requests: 1}]");
    assert_eq!(found, "spec.targetRefs[0].sectionName: a Namespace has no sections");
}

#[test]
fn an_authorization_policy_says_which_field_is_wrong() {
    for (rule, expected) in [
        ("from: []", "from: is an empty list"),
        ("from: [{}]", "from[0]: says nothing of who calls"),
        ("to: [{}]", "to[0]: says nothing of what is called"),
        ("from: [{identities: []}]", "from[0].identities: is an empty list"),
        ("from: [{notNamespaces: []}]", "from[0].notNamespaces: is an empty list"),
        ("from: [{namespaces: ['a.b']}]", "from[0].namespaces[0]: \"a.b\" is not a DNS label"),
        ("from: [{serviceAccounts: ['*']}]", "from[0].serviceAccounts[0]: \"*\" is not a name"),
        (
            "from: [{identities: [web]}]",
            "from[0].identities[0]: \"web\" is no SPIFFE id: scheme must be exactly \"spiffe://\"",
        ),
        (
            "from: [{notIdentities: ['spiffe://td*']}]",
            "from[0].notIdentities[0]: \"spiffe://td*\" is no beginning of SPIFFE ids: the * comes after spiffe://<trust domain>/",
        ),
        (
            "from: [{notNetworks: [10.1.0.0/8]}]",
            "from[0].notNetworks[0]: \"10.1.0.0/8\" has bits beyond /8: use 10.0.0.0/8",
        ),
        ("to: [{notPorts: [0]}]", "to[0].notPorts[0]: 0 is not a port"),
        ("to: [{notMethods: [get]}]", "to[0].notMethods[0]: \"get\" is not a method"),
        ("to: [{paths: [admin]}]", "to[0].paths[0]: \"admin\" does not begin with a slash"),
        ("to: [{notPaths: ['/%61']}]", "to[0].notPaths[0]: \"/%61\" is not in canonical form: write it as /a"),
        ("to: [{hosts: ['a:80']}]", "to[0].hosts[0]: \"a:80\" has a port, which is not looked at: leave it out"),
        ("to: [{headers: {}}]", "to[0].headers: is empty"),
        ("to: [{headers: {a: []}}]", "to[0].headers.a: is an empty list"),
        ("to: [{notHeaders: {Host: [a]}}]", "to[0].notHeaders.Host: \"Host\" is what hosts are for"),
        (
            "to: [{headers: {connection: [a]}}]",
            "to[0].headers.connection: \"connection\" is taken away before rules look at headers",
        ),
        ("claims: {sub: []}", "claims.sub: is an empty list"),
        ("notClaims: {}", "notClaims: is empty"),
    ] {
        let found = problem("AuthorizationPolicy", &format!("rules: [{{{rule}}}]"));
        assert_eq!(found, format!("spec.rules[0].{expected}"));
    }
    assert_eq!(
        problem("AuthorizationPolicy", "action: Deny"),
        "spec.rules: a Deny policy without rules denies nothing"
    );
    let many = format!("rules: [{{to: [{{methods: [{}]}}]}}]", vec!["GET"; 4097].join(", "));
    assert_eq!(problem("AuthorizationPolicy", &many), "spec.rules: 4097 values in all are too many");
}
