//! What is refused when it is applied, with path and reason: a row for each.

use super::*;

/// A rule of an HTTPRoute, and what is wrong with it below `spec.rules[0]`.
const HTTP: &[(&str, &[&str])] = &[
    ("matches: [{path: {value: a}}]", &[".matches[0].path.value: \"a\" does not start with \"/\""]),
    ("matches: [{path: {type: Exact, value: ''}}]", &[".matches[0].path.value: \"\" does not start with \"/\""]),
    (
        "matches: [{path: {type: RegularExpression, value: '/(a'}}]",
        &[".matches[0].path.value: \"/(a\" is not a regular expression: unclosed group (the syntax is that of RE2)"],
    ),
    (
        "matches: [{path: {type: RegularExpression, value: '(\\w{100}){100}'}}]",
        &[
            ".matches[0].path.value: \"(\\w{100}){100}\" is too large when compiled: use fewer or smaller repetitions (the \
           syntax is that of RE2)",
        ],
    ),
    (
        "matches: [{headers: [{name: a, type: RegularExpression, value: '*'}]}]",
        &[".matches[0].headers[0].value: \"*\" is not a regular expression: repetition operator missing expression \
           (the syntax is that of RE2)"],
    ),
    (
        "matches: [{queryParams: [{name: a, type: RegularExpression, value: '['}]}]",
        &[".matches[0].queryParams[0].value: \"[\" is not a regular expression: unclosed character class (the syntax \
           is that of RE2)"],
    ),
    ("matches: [{headers: [{name: 'a b', value: x}]}]", &[".matches[0].headers[0].name: \"a b\" is not a header name"]),
    ("matches: [{queryParams: [{name: '', value: x}]}]", &[".matches[0].queryParams[0].name: is empty"]),
    ("name: Upper", &[".name: \"Upper\" is not a name (lower-case letters, digits, \"-\" and \".\", at most 253)"]),
    ("backendRefs: [{name: o, port: 0}]", &[".backendRefs[0].port: 0 is not a port (1 to 65535)"]),
    ("backendRefs: [{name: o, port: 1, weight: -1}]", &[".backendRefs[0].weight: -1 is not a weight (0 to 1000000)"]),
    (
        "backendRefs: [{name: o, port: 1, weight: 0}, {name: p, port: 1, weight: 0}]",
        &[".backendRefs: the weights sum to 0 (at least one backend needs a weight)"],
    ),
    ("timeouts: {request: 1x}", &[".timeouts.request: \"1x\" is not a duration (such as 10s, 500ms or 1m30s)"]),
    ("timeouts: {request: 1s, backendRequest: 2s}", &[".timeouts.backendRequest: is longer than timeouts.request"]),
    ("retry: {attempts: 11}", &[".retry.attempts: 11 is too many or too few (0 to 10)"]),
    ("retry: {attempts: -1}", &[".retry.attempts: -1 is too many or too few (0 to 10)"]),
    ("retry: {codes: [500, 200]}", &[".retry.codes[1]: 200 is not an error status (400 to 599)"]),
    (
        "retry: {backoff: 5}",
        &[".retry.backoff: invalid type: integer `5`, expected a string (put the value in quotes)"],
    ),
    (
        "sessionPersistence: {absoluteTimeout: 1x}",
        &[".sessionPersistence.absoluteTimeout: \"1x\" is not a duration (such as 1h, 30m or 90s)"],
    ),
    (
        "sessionPersistence: {idleTimeout: 10ms}",
        &[".sessionPersistence.idleTimeout: 10ms is too short: tokens count seconds (1s, or leave it out for none)"],
    ),
    (
        "sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}",
        &[
            ".sessionPersistence: a permanent cookie needs absoluteTimeout (it says how long the caller keeps the cookie)",
        ],
    ),
    (
        "sessionPersistence: {type: Header, cookieConfig: {lifetimeType: Session}}",
        &[".sessionPersistence.cookieConfig: goes with type Cookie only (leave it out)"],
    ),
    (
        "sessionPersistence: {sessionName: 'a b'}",
        &[".sessionPersistence.sessionName: \"a b\" is not the name of a cookie (letters, digits, \"-\" and \"_\")"],
    ),
    (
        "sessionPersistence: {type: Header, sessionName: Host}",
        &[".sessionPersistence.sessionName: \"Host\" belongs to the connection, to framing or to the mesh (choose a \
           field of your own)"],
    ),
    ("retry: {backoff: 0s}", &[".retry.backoff: is 0: retries would come at once (such as 25ms)"]),
];

/// A filter of a rule of an HTTPRoute, and what is wrong with it below `spec.rules[0].filters[0]`.
const FILTERS: &[(&str, &[&str])] = &[
    ("type: URLRewrite", &[".urlRewrite: is missing (a filter of type URLRewrite has it)"]),
    ("type: CORS, cors: {}, urlRewrite: {hostname: a}", &[".urlRewrite: does not belong to a filter of type CORS"]),
    (
        "type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: 'a b', value: x}]}",
        &[".requestHeaderModifier.set[0].name: \"a b\" must be a lower-case header name"],
    ),
    (
        "type: RequestHeaderModifier, requestHeaderModifier: {remove: [Content-Length]}",
        &[
            ".requestHeaderModifier.remove[0]: \"content-length\" belongs to the connection or to framing: it cannot be \
           changed",
        ],
    ),
    (
        "type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: a, value: \"x\\ny\"}]}",
        &[".responseHeaderModifier.add[0].value: \"x\ny\" has bytes that a header may not have"],
    ),
    (
        "type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: a, value: x}, {name: A, value: y}]}",
        &[".responseHeaderModifier.set[1].name: \"a\" is given twice (join the values with a comma)"],
    ),
    (
        "type: RequestRedirect, requestRedirect: {statusCode: 200}",
        &[".requestRedirect.statusCode: \"200\" must be 301, 302, 303, 307 or 308"],
    ),
    (
        "type: RequestRedirect, requestRedirect: {scheme: ftp}",
        &[".requestRedirect.scheme: unknown value \"ftp\", expected one of http, https"],
    ),
    ("type: RequestRedirect, requestRedirect: {port: 0}", &[".requestRedirect.port: 0 is not a port (1 to 65535)"]),
    (
        "type: RequestRedirect, requestRedirect: {hostname: 'A:1'}",
        &[".requestRedirect.hostname: \"A:1\" must be a lower-case host name without a port"],
    ),
    (
        "type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath}}",
        &[".requestRedirect.path.replaceFullPath: is missing (type ReplaceFullPath needs it)"],
    ),
    (
        "type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /x, replacePrefixMatch: /y}}",
        &[".urlRewrite.path.replacePrefixMatch: does not belong to type ReplaceFullPath"],
    ),
    (
        "type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: x}}",
        &[".requestRedirect.path.replaceFullPath: \"x\" must begin with a slash"],
    ),
    (
        "type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: '/a?b'}}",
        &[".urlRewrite.path.replacePrefixMatch: \"/a?b\" must be a path of printable ASCII without query and fragment"],
    ),
    (
        "type: RequestMirror, requestMirror: {backendRef: {name: m, port: 0}}",
        &[".requestMirror.backendRef.port: 0 is not a port (1 to 65535)"],
    ),
    (
        "type: RequestMirror, requestMirror: {backendRef: {name: m, port: 1}, percent: 101}",
        &[".requestMirror.percent: 101 is not a percentage (0 to 100)"],
    ),
    (
        "type: RequestMirror, requestMirror: {backendRef: {name: m, port: 1}, percent: 1, fraction: {numerator: 1}}",
        &[".requestMirror.fraction: percent and fraction exclude each other"],
    ),
    (
        "type: RequestMirror, requestMirror: {backendRef: {name: m, port: 1}, fraction: {numerator: 101}}",
        &[".requestMirror.fraction.numerator: 101 is out of range (0 to the denominator, 100)"],
    ),
    (
        "type: RequestMirror, requestMirror: {backendRef: {name: m, port: 1}, fraction: {numerator: 0, denominator: 0}}",
        &[".requestMirror.fraction.denominator: 0 is too small (at least 1)"],
    ),
    (
        "type: CORS, cors: {allowOrigins: [a.example]}",
        &[".cors.allowOrigins[0]: \"a.example\" must be * or scheme://host[:port]"],
    ),
    ("type: CORS, cors: {allowMethods: [GET, '*']}", &[".cors.allowMethods: \"*\" excludes all others"]),
    (
        "type: CORS, cors: {exposeHeaders: ['a b']}",
        &[".cors.exposeHeaders[0]: \"a b\" must be a lower-case header name"],
    ),
    ("type: CORS, cors: {maxAge: 0}", &[".cors.maxAge: 0 is too short (at least 1 second)"]),
];

/// Filters of a rule with a backend, and what is wrong with them below `spec.rules[0]`.
const TOGETHER: &[(&str, &[&str])] = &[
    (
        "filters: [{type: URLRewrite, urlRewrite: {hostname: a}}, {type: URLRewrite, urlRewrite: {hostname: b}}]",
        &[".filters[1]: URLRewrite is given twice (once in a rule or backend)"],
    ),
    (
        "filters: [{type: RequestRedirect, requestRedirect: {port: 1}}]",
        &[
            ".filters[0]: RequestRedirect excludes backendRefs (a redirect is an answer: remove backendRefs or the filter)",
        ],
    ),
    (
        "matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: \
         ReplacePrefixMatch, replacePrefixMatch: /b}}}]",
        &[
            ".filters[0].urlRewrite.path: ReplacePrefixMatch has no prefix to replace (the rule needs exactly one match, \
           and that with a PathPrefix)",
        ],
    ),
    (
        "matches: [{path: {value: /a}}, {path: {value: /b}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: \
         ReplacePrefixMatch, replacePrefixMatch: /b}}}]",
        &[
            ".filters[0].urlRewrite.path: ReplacePrefixMatch has no prefix to replace (the rule needs exactly one match, \
           and that with a PathPrefix)",
        ],
    ),
];

/// A rule of a GRPCRoute, and what is wrong with it below `spec.rules[0]`.
const GRPC: &[(&str, &[&str])] = &[
    ("matches: [{method: {}}]", &[".matches[0].method: needs service or method"]),
    (
        "matches: [{method: {service: a/B}}]",
        &[
            ".matches[0].method.service: \"a/B\" is not the name of a gRPC service (a service is named as in its .proto \
           file, such as shop.v1.Catalog)",
        ],
    ),
    (
        "matches: [{method: {method: Get.All}}]",
        &[".matches[0].method.method: \"Get.All\" is not the name of a gRPC method"],
    ),
    (
        "matches: [{method: {type: RegularExpression, service: 'a)(b'}}]",
        &[
            ".matches[0].method.service: \"a)(b\" is not a regular expression: unopened group (the syntax is that of RE2)",
        ],
    ),
    ("matches: [{headers: [{name: 'a b', value: x}]}]", &[".matches[0].headers[0].name: \"a b\" is not a header name"]),
    (
        "matches: [{headers: [{name: a, type: RegularExpression, value: '('}]}]",
        &[
            ".matches[0].headers[0].value: \"(\" is not a regular expression: unclosed group (the syntax is that of RE2)",
        ],
    ),
    (
        "backendRefs: [{name: o, port: 1, weight: 0}]",
        &[".backendRefs: the weights sum to 0 (at least one backend needs a weight)"],
    ),
    (
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [te]}}]",
        &[".filters[0].requestHeaderModifier.remove[0]: \"te\" belongs to the connection or to framing: it cannot be \
           changed"],
    ),
    (
        "filters: [{type: URLRewrite}]",
        &[".filters[0].type: unknown value \"URLRewrite\", expected one of ResponseHeaderModifier, \
           RequestHeaderModifier, RequestMirror, ExtensionRef"],
    ),
];

fn refused(kind: &str, rules: &str, below: &str, expected: &[&str]) {
    let expected: Vec<String> = expected.iter().map(|text| format!("{below}{text}")).collect();
    assert_eq!(wrong(&route(kind, "name: r", rules)), expected, "{rules}");
}

#[test]
fn a_bad_value_of_an_http_route_is_refused_with_path_and_reason() {
    for (rule, expected) in HTTP {
        refused("HTTPRoute", &format!("{{{rule}}}"), "spec.rules[0]", expected);
    }
}

#[test]
fn a_bad_filter_is_refused_with_path_and_reason_at_a_rule_and_at_a_backend() {
    for (filter, expected) in FILTERS {
        refused("HTTPRoute", &format!("{{filters: [{{{filter}}}]}}"), "spec.rules[0].filters[0]", expected);
        let rule = format!("{{backendRefs: [{{name: o, port: 1, filters: [{{{filter}}}]}}]}}");
        refused("HTTPRoute", &rule, "spec.rules[0].backendRefs[0].filters[0]", expected);
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    for (rule, expected) in TOGETHER {
        let rule = format!("{{{rule}, backendRefs: [{{name: o, port: 1}}]}}");
        refused("HTTPRoute", &rule, "spec.rules[0]", expected);
    }
    let both = "{filters: [{type: RequestRedirect, requestRedirect: {port: 1}}, {type: URLRewrite, urlRewrite: \
                {hostname: a}}]}";
    refused("HTTPRoute", both, "spec.rules[0]", &[".filters[1]: RequestRedirect and URLRewrite exclude each other"]);
    let many = vec!["{type: RequestMirror, requestMirror: {backendRef: {name: m, port: 1}}}"; 17].join(", ");
    refused(
        "HTTPRoute",
        &format!("{{filters: [{many}]}}"),
        "spec.rules[0]",
        &[".filters: 17 are too many (at most 16)"],
    );
}

#[test]
fn a_bad_value_of_a_grpc_route_is_refused_with_path_and_reason() {
    for (rule, expected) in GRPC {
        refused("GRPCRoute", &format!("{{{rule}}}"), "spec.rules[0]", expected);
    }
}

#[test]
fn rules_have_names_of_their_own_and_a_parent_is_given_once() {
    for kind in ["HTTPRoute", "GRPCRoute"] {
        let hint = "the name of a rule is unique in its route";
        let expected = format!("[1].name: \"a\" is given twice ({hint})");
        refused(kind, "{name: a}, {name: a}", "spec.rules", &[&expected]);
        let parent = "{kind: Service, group: '', name: web, port: 80}";
        let twice = attached(kind, "name: r", &format!("{parent}, {parent}"), "{}");
        let hint = "several references to one parent need different ports or sectionNames";
        assert_eq!(wrong(&twice), [format!("spec.parentRefs[1]: is given twice ({hint})")]);
        let bad = attached(kind, "name: r", "{kind: Service, name: web, port: 70000}", "{}");
        assert_eq!(wrong(&bad), ["spec.parentRefs[0].port: 70000 is not a port (1 to 65535)"]);
    }
}
