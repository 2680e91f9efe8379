//! What is to be seen of requests that follow rules: the tables.

use super::Row;

pub const MATCHING: &[Row] = &[
    ("GET /m/exact", &[], &["status 200", "at web x-rule: exact", "at web host: web", "seen 1"]),
    ("GET /m/exact/", &[], &["at web x-rule: prefix"]),
    ("GET /m?a=b", &[], &["at web x-rule: prefix", "at web GET /m?a=b"]),
    ("GET /mm", &[], &["status 404", "..no_route", "seen 0"]),
    ("GET /m/longer/x", &[], &["at web x-rule: longer"]),
    ("GET /m/longerx", &[], &["at web x-rule: prefix"]),
    ("GET /r/12/x", &[], &["at web x-rule: regex"]),
    ("GET /r/12x", &[], &["status 404", "..no_route"]),
    ("PUT /m/x", &[], &["at web x-rule: method", "at web PUT /m/x"]),
    ("PUT /m/longer", &[], &["at web x-rule: longer"]),
    ("PUT /m/x", &["x-version: 2"], &["at web x-rule: method"]),
    ("GET /m/x", &["x-version: 2"], &["at web x-rule: header"]),
    ("GET /m/x?version=2", &["x-version: 2"], &["at web x-rule: header"]),
    ("GET /m/x", &["x-version: 22"], &["at web x-rule: prefix"]),
    ("GET /m/x", &["x-version: 3.14"], &["at web x-rule: header-regex"]),
    ("GET /m/x", &["x-version: 3x14"], &["at web x-rule: prefix"]),
    ("GET /m/x", &["x-version: 3.14b"], &["at web x-rule: prefix"]),
    ("GET /m/x?a=b&version=2", &[], &["at web x-rule: query"]),
    ("GET /m/x?version=3.1", &[], &["at web x-rule: query-regex"]),
    ("GET /m/x?version=4", &[], &["at web x-rule: prefix"]),
    ("GET /m/x", &["x-version: 2", "x-user: eve"], &["at web x-rule: two-headers"]),
    ("GET /m/x", &["x-version: 1", "x-user: eve"], &["at web x-rule: prefix"]),
    ("GET /m/x?version=2&user=eve", &[], &["at web x-rule: two-keys"]),
    ("GET /m/x?user=eve", &[], &["at web x-rule: prefix"]),
    ("GET /m/x?version=2&version=4", &[], &["at web x-rule: query"]),
    ("GET /m/x?version=4&version=2", &[], &["at web x-rule: prefix"]),
    ("GET /m/x?Version=2", &[], &["at web x-rule: prefix"]),
    ("GET /q/1", &[], &["at web x-rule: q-exact"]),
    ("GET /q/2", &[], &["at web x-rule: q-regex"]),
    ("GET /q/a", &[], &["at web x-rule: q-prefix"]),
    ("GET /either/one", &[], &["at web x-rule: either"]),
    ("GET /either/two/x", &[], &["at web x-rule: either"]),
    ("GET /either/three", &[], &["status 404", "seen 0"]),
    // Of two that match alike the first rule of a route counts, and of two routes the older or first by name.
    ("GET /alike", &[], &["at web x-rule: alike-first"]),
    ("GET /both-routes", &[], &["at web x-rule: changing"]),
    // Names of hosts mean nothing in a mesh.
    ("GET /named", &[], &["at web x-rule: named"]),
];

/// Requests to a rule that sends three of four to one backend.
pub const MANY: u32 = 400;

/// Several times each: what has no weight gets none of them.
pub const WEIGHTS: &[Row] = &[
    ("GET /all-to-web", &[], &["answer x-app: web", "no at other", "seen 1"]),
    ("GET /all-to-other", &[], &["answer x-app: other", "no at web", "seen 1"]),
];

pub const CHANGING: &[Row] = &[
    (
        "GET /request",
        &["x-set: caller", "x-add: caller", "x-remove: caller", "x-kept: caller"],
        &[
            "at web x-set: rule",
            "no at web x-set: caller",
            "at web x-add: caller",
            "at web x-add: rule",
            "no at web x-remove",
            "at web x-kept: caller",
        ],
    ),
    ("GET /request", &[], &["at web x-add: rule", "at web x-set: rule"]),
    (
        "GET /response",
        &[],
        &[
            "answer x-set: rule",
            "no answer x-set: app",
            "answer x-add: app",
            "answer x-add: rule",
            "no answer x-remove",
        ],
    ),
    (
        "GET /old/a/b?c=d",
        &[],
        &["status 301", "answer location: https://new.example:8443/new/a/b?c=d", "..redirect of route", "seen 0"],
    ),
    ("GET /moved/303", &[], &["status 303", "answer location: http://web/moved/303", "seen 0"]),
    ("GET /moved/307", &[], &["status 307", "seen 0"]),
    ("GET /moved/308", &[], &["status 308", "answer location: http://web:8080/moved/308", "seen 0"]),
    ("GET /here/a", &[], &["status 302", "answer location: http://web/there", "seen 0"]),
    ("GET /rewrite-host/a", &[], &["at web host: inner.example", "at web GET /rewrite-host/a"]),
    ("GET /rewrite-path/a?b=c", &[], &["at web host: web", "at web GET /full?b=c"]),
    ("GET /rewrite-prefix/a?b=c", &[], &["at web host: web", "at web GET /inner/a?b=c"]),
    ("GET /rewrite-prefix", &[], &["at web GET /inner"]),
    (
        "OPTIONS /cors",
        &["origin: https://a.shop.example", "access-control-request-method: PUT"],
        &[
            "status 204",
            "answer access-control-allow-origin: https://a.shop.example",
            "answer access-control-allow-credentials: true",
            "answer access-control-allow-methods: GET, PUT",
            "answer access-control-allow-headers: x-token",
            "answer access-control-max-age: 60",
            "seen 0",
        ],
    ),
    (
        "OPTIONS /cors",
        &["origin: https://evil.example", "access-control-request-method: PUT"],
        &["no answer access-control", "seen 0"],
    ),
    (
        "GET /cors",
        &["origin: https://a.shop.example"],
        &[
            "status 200",
            "answer access-control-allow-origin: https://a.shop.example",
            "answer access-control-expose-headers: x-set",
            "answer vary: Origin",
            "seen 1",
        ],
    ),
    ("GET /cors", &["origin: https://evil.example"], &["status 200", "no answer access-control", "seen 1"]),
    // Not a preflight: the app answers it.
    ("OPTIONS /cors", &["origin: https://a.shop.example"], &["status 200", "seen 1"]),
    (
        "OPTIONS /open-cors",
        &[
            "origin: https://evil.example",
            "access-control-request-method: PATCH",
            "access-control-request-headers: x-a, x-b",
        ],
        &[
            "status 204",
            "answer access-control-allow-origin: *",
            "answer access-control-allow-methods: PATCH",
            "answer access-control-allow-headers: x-a, x-b",
            "answer access-control-max-age: 5",
            "no answer access-control-allow-credentials",
        ],
    ),
    (
        "GET /mirror/percent?a=b",
        &["x-kept: caller", "x-weft-rule: x"],
        &[
            "answer x-app: web",
            "later at other get /mirror/percent?a=b http/1.1",
            "at other host: web",
            "at other x-kept: caller",
            "at other x-copied: rule",
            "no at other x-weft",
        ],
    ),
    (
        "GET /mirror/two",
        &[],
        &["answer x-app: web", "later at other get /mirror/two http/1.1", "later at rpc GET /mirror/two"],
    ),
    ("GET /mirror/backend", &[], &["answer x-app: web", "later at other get /mirror/backend http/1.1"]),
];

pub const FAILING: &[Row] = &[
    ("GET /hang", &[], &["status 504", "..request_timeout", "seen 1"]),
    ("GET /slow-once", &[], &["status 200", "seen 2"]),
    ("GET /fails-twice/rule", &[], &["status 200", "seen 3"]),
    ("GET /fails-twice/too-few", &[], &["status 500", "answer x-app: web", "seen 2"]),
    ("GET /fails-twice/too-few", &[], &["status 200", "seen 1"]),
    ("GET /fails-always/untouched", &[], &["status 500", "answer x-app: web", "seen 1"]),
    ("GET /fails-twice/policy", &[], &["status 200", "seen 3"]),
    ("GET /hang/policy", &[], &["status 504", "..request_timeout", "seen 1"]),
    ("GET /aborted", &[], &["status 418", "..fault_abort: by FaultInjection default/aborted", "seen 0"]),
    (
        "GET /delayed",
        &[],
        &["status 200", "..fault_delay: by FaultInjection default/delayed", "took over 200", "seen 1"],
    ),
    ("GET /reset", &[], &["reset", "seen 0"]),
    (
        "GET /bandwidth",
        &[],
        &[
            "status 200",
            "..fault_bandwidth: by FaultInjection default/bandwidth",
            "body hello",
            "took over 400",
            "seen 1",
        ],
    ),
    ("GET /expired", &[], &["status 200", "no answer proxy-status", "seen 1"]),
    ("GET /hang/given-up", &["x-weft-timeout-ms: 300"], &["status 504", "..request_timeout", "seen 1"]),
    ("GET /deadline", &["x-weft-timeout-ms: 30000"], &["status 200", "at web x-weft-timeout-ms: 29.."]),
    // The shorter of the caller's and the rule's counts.
    ("GET /deadline", &["x-weft-timeout-ms: 90000"], &["status 200", "at web x-weft-timeout-ms: 39.."]),
    ("GET /limited", &[], &["status 200", "answer ratelimit-policy: \"default/limited#0\";q=1;w=3600", "seen 1"]),
    (
        "GET /limited",
        &[],
        &[
            "status 429",
            "..rate_limited",
            "answer retry-after: ..",
            "answer ratelimit: \"default/limited#0\";r=0;t=..",
            "seen 0",
        ],
    ),
    // A rule's limit counts what follows the rule: whatever its new path, and not what another rule takes.
    (
        "GET /limited-rewritten",
        &["x-weft-rule: x"],
        &["status 200", "at web GET /elsewhere", "no at web x-weft", "seen 1"],
    ),
    ("GET /limited-rewritten", &["x-weft-rule: x"], &["status 429", "seen 0"]),
    ("GET /wide/free", &[], &["status 200", "no answer ratelimit", "seen 1"]),
    ("GET /wide/free", &[], &["status 200", "no answer ratelimit", "seen 1"]),
    ("GET /wide/x", &[], &["status 200", "answer ratelimit: ..", "seen 1"]),
    ("GET /wide/x", &[], &["status 429", "seen 0"]),
    ("GET /invalid", &[], &["status 500", "..invalid_backend", "seen 0"]),
    ("GET /nowhere", &[], &["status 404", "..no_route", "seen 0"]),
];

pub const EDGES: &[Row] = &[
    ("GET /to-root/a?b=c", &[], &["at web GET /a?b=c"]),
    ("GET /to-root", &[], &["at web GET /"]),
    ("GET /not-granted", &[], &["status 500", "..invalid_backend", "seen 0"]),
    ("GET /granted", &[], &["status 200", "answer x-app: web", "seen 1"]),
    ("GET /half-invalid", &[], &["status 200", "answer x-app: web", "seen 1"]),
    ("GET /bad-mirror", &[], &["status 200", "answer x-app: web", "seen 1"]),
    ("GET /secure/a?b=c", &[], &["status 302", "answer location: https://web/secure/a?b=c"]),
    ("GET /of-backend", &[], &["at web x-rule: backend", "no at web x-rule: rule", "no answer x-remove"]),
    ("GET /no-copies", &[], &["answer x-app: web", "no at other", "seen 1"]),
    ("GET /too-late", &[], &["status 504", "..fault_delay", "seen 0"]),
    ("GET /sometimes", &[], &["status 200", "answer x-set: rule", "no answer proxy-status", "body hello", "seen 1"]),
    ("GET /sometimes", &["x-fail: yes"], &["status 404", "..fault_abort", "answer x-set: rule", "seen 0"]),
    // Only what may be done twice is tried twice.
    ("POST /fails-always/rule/post", &[], &["status 500", "seen 1"]),
];

/// A gRPC caller at an HTTPRoute.
pub const GRPC_AT_HTTP: &[Row] = &[
    ("POST /m/exact", &[], &["status 200", "answer grpc-status: 0", "at web x-rule: exact", "seen 1"]),
    ("POST /hang", &[], &["status 200", "answer grpc-status: 4", "..request_timeout", "seen 1"]),
    ("POST /aborted", &[], &["status 200", "answer grpc-status: 2", "..fault_abort", "seen 0"]),
    ("POST /sometimes", &["x-fail: yes"], &["status 200", "answer grpc-status: 5", "..fault_abort", "seen 0"]),
    ("POST /limited", &[], &["answer grpc-status: 0", "seen 1"]),
    ("POST /limited", &[], &["status 200", "answer grpc-status: 8", "answer retry-after: ..", "seen 0"]),
    ("POST /delayed", &[], &["answer grpc-status: 0", "..fault_delay", "took over 200", "seen 1"]),
    ("POST /reset", &[], &["reset", "seen 0"]),
    ("POST /bandwidth", &[], &["answer grpc-status: 0", "..fault_bandwidth", "took over 400", "seen 1"]),
    ("POST /expired", &[], &["answer grpc-status: 0", "no answer proxy-status", "seen 1"]),
    ("POST /too-late", &[], &["answer grpc-status: 4", "..fault_delay", "seen 0"]),
    ("POST /hang/given-up", &["grpc-timeout: 300m"], &["answer grpc-status: 4", "..request_timeout", "seen 1"]),
    ("POST /deadline", &["grpc-timeout: 30S"], &["answer grpc-status: 0", "at web grpc-timeout: 29.."]),
    ("POST /deadline", &["grpc-timeout: 90S"], &["answer grpc-status: 0", "at web grpc-timeout: 39.."]),
    ("GET /slow-once", &[], &["answer grpc-status: 0", "seen 2"]),
    ("POST /limited-rewritten", &[], &["answer grpc-status: 0", "at web POST /elsewhere", "seen 1"]),
    ("POST /limited-rewritten", &[], &["answer grpc-status: 8", "seen 0"]),
    ("POST /of-backend", &[], &["at web x-rule: backend", "no at web x-rule: rule", "no answer x-remove"]),
    ("POST /not-granted", &[], &["answer grpc-status: 14", "..invalid_backend", "seen 0"]),
    ("POST /granted", &[], &["answer grpc-status: 0", "seen 1"]),
    ("POST /invalid", &[], &["status 200", "answer grpc-status: 14", "..invalid_backend", "seen 0"]),
    ("POST /nowhere", &[], &["status 200", "answer grpc-status: 12", "..no_route", "seen 0"]),
];

pub const GRPC: &[Row] = &[
    ("POST /shop.Cart/List", &[], &["status 200", "answer grpc-status: 0", "at rpc x-rule: service", "seen 1"]),
    ("POST /shop.Cart/Add", &[], &["answer grpc-status: 0", "at rpc x-rule: method"]),
    ("POST /shop.v12.Cart/Any", &[], &["answer grpc-status: 0", "at rpc x-rule: regex"]),
    ("POST /shop.vx.Cart/Any", &[], &["status 200", "answer grpc-status: 12", "..no_route", "seen 0"]),
    (
        "POST /shop.Cart/List",
        &["x-version: 2"],
        &["at rpc x-rule: header", "answer x-set: rule", "no answer x-remove", "answer grpc-status: 0"],
    ),
    ("POST /shop.FailsTwice/Patient", &[], &["answer grpc-status: 0", "seen 3"]),
    ("POST /shop.FailsTwice/Impatient", &[], &["answer grpc-status: 10", "answer x-app: rpc", "seen 1"]),
    ("POST /shop.Hang/On", &[], &["status 200", "answer grpc-status: 4", "..request_timeout", "seen 1"]),
    ("POST /shop.Aborted/ByGrpc", &[], &["status 200", "answer grpc-status: 15", "..fault_abort", "seen 0"]),
    ("POST /shop.Aborted/ByHttp", &[], &["status 200", "answer grpc-status: 7", "..fault_abort", "seen 0"]),
    ("POST /shop.Limited/Call", &[], &["answer grpc-status: 0", "answer ratelimit: ..", "seen 1"]),
    (
        "POST /shop.Limited/Call",
        &[],
        &["status 200", "answer grpc-status: 8", "answer retry-after: ..", "answer ratelimit: ..", "seen 0"],
    ),
    (
        "POST /shop.Session/Call",
        &[],
        &["answer grpc-status: 0", "answer x-session: ..", "no answer set-cookie", "seen 1"],
    ),
    ("POST /shop.Cart/List", &["x-version: 3.1"], &["at rpc x-rule: header-regex", "answer grpc-status: 0"]),
    ("POST /shop.Cart/List", &["x-version: 4"], &["at rpc x-rule: service"]),
    ("POST /shop.Any/Everywhere", &[], &["at rpc x-rule: any-service", "answer grpc-status: 0"]),
    ("POST /shop.Cartx/List", &[], &["answer grpc-status: 12", "..no_route"]),
    ("POST /shop.Cart/Addx", &[], &["at rpc x-rule: service"]),
    ("POST /shop.AllToWeb/Call", &[], &["answer x-app: web", "no at rpc", "answer grpc-status: 0"]),
    (
        "POST /shop.OfBackend/Call",
        &[],
        &["at rpc x-rule: backend", "no at rpc x-rule: rule", "no answer x-remove", "answer grpc-status: 0"],
    ),
    ("POST /shop.Mirrored/Call", &[], &["answer x-app: rpc", "later at web POST /shop.Mirrored/Call"]),
    ("POST /shop.Delayed/Call", &[], &["answer grpc-status: 0", "..fault_delay", "took over 200", "seen 1"]),
    ("POST /shop.Reset/Call", &[], &["reset", "seen 0"]),
    ("POST /shop.Bandwidth/Call", &[], &["answer grpc-status: 0", "..fault_bandwidth", "took over 400", "seen 1"]),
    ("POST /shop.Sometimes/Call", &[], &["answer grpc-status: 0", "no answer proxy-status", "seen 1"]),
    ("POST /shop.Sometimes/Call", &["x-fail: yes"], &["answer grpc-status: 5", "..fault_abort", "seen 0"]),
    ("POST /shop.SlowOnce/Call", &[], &["answer grpc-status: 0", "seen 2"]),
    ("POST /shop.Invalid/Call", &[], &["status 200", "answer grpc-status: 14", "..invalid_backend", "seen 0"]),
];

/// By the name of a service, of ports and namespaces.
pub const ELSEWHERE: &[(&str, Row)] = &[
    ("ports", ("GET /a", &[], &["status 200", "no at web x-rule"])),
    ("ports:81", ("GET /a", &[], &["status 200", "at web x-rule: port-81"])),
    // A consumer's route takes the place of all of the producer's.
    ("far.away", ("GET /consumer", &[], &["status 200", "at web x-rule: consumer"])),
    ("far.away", ("GET /producer", &[], &["status 404", "..no_route", "seen 0"])),
    ("near.away", ("GET /producer", &[], &["status 200", "at web x-rule: producer"])),
];
