//! The semantics one by one; `reference` compares with an independent reading of them.

mod reference;

use http::HeaderName;

use super::*;
use crate::model::{Condition, ConditionKind, HostMatch, IdentityMatch, Network, ObjectName, PathPattern, TextMatch};

const WEB: &str = "spiffe://td/ns/shop/sa/web";
const EVIL: &str = "spiffe://td/ns/shop/sa/evil";

fn parsed<T>(values: &[&str], parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
    values.iter().map(|value| parse(value).unwrap_or_else(|why| panic!("{value}: {why}"))).collect()
}

/// The kind of condition that YAML has under this name.
fn kind(field: &str, values: &[&str]) -> ConditionKind {
    match field {
        "identities" => ConditionKind::Identities(parsed(values, IdentityMatch::parse)),
        "networks" => ConditionKind::Networks(parsed(values, Network::parse)),
        "ports" => ConditionKind::Ports(values.iter().map(|port| port.parse().unwrap()).collect()),
        "methods" => ConditionKind::Methods(values.iter().map(|method| method.parse().unwrap()).collect()),
        "paths" => ConditionKind::Paths(parsed(values, PathPattern::parse)),
        "hosts" => ConditionKind::Hosts(parsed(values, HostMatch::parse)),
        _ => match field.split_once(':') {
            Some(("header", name)) => {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                ConditionKind::Header(name, parsed(values, TextMatch::parse_header))
            }
            Some(("claim", name)) => ConditionKind::Claim(name.into(), parsed(values, TextMatch::parse)),
            _ => panic!("{field}"),
        },
    }
}

/// `field` or `!field`.
fn condition(field: &str, values: &[&str]) -> Condition {
    let negated = field.starts_with('!');
    Condition { negated, kind: kind(field.trim_start_matches('!'), values) }
}

fn rule(conditions: &[(&str, &[&str])]) -> AuthorizationRule {
    AuthorizationRule {
        groups: conditions.iter().map(|(field, values)| vec![vec![condition(field, values)]]).collect(),
    }
}

fn policy(name: &str, action: Action, rules: Vec<AuthorizationRule>) -> AuthorizationPolicy {
    AuthorizationPolicy { name: ObjectName::new("shop", name), action, dry_run: false, rules }
}

fn trial(name: &str, action: Action, rules: Vec<AuthorizationRule>) -> AuthorizationPolicy {
    AuthorizationPolicy { dry_run: true, ..policy(name, action, rules) }
}

/// What asks; the default is a GET of / at host a from nobody.
#[derive(Clone)]
struct Ask {
    id: Option<SpiffeId>,
    address: IpAddr,
    port: u16,
    method: Method,
    path: String,
    host: String,
    headers: HeaderMap,
    claims: Option<Claims>,
}

impl Default for Ask {
    fn default() -> Self {
        Self {
            id: None,
            address: "127.0.0.1".parse().unwrap(),
            port: 8080,
            method: Method::GET,
            path: "/".into(),
            host: "a".into(),
            headers: HeaderMap::new(),
            claims: None,
        }
    }
}

impl Ask {
    fn by(id: &str) -> Self {
        Self { id: Some(SpiffeId::parse(id).unwrap()), ..Self::default() }
    }

    fn path(path: &str) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    fn lines(lines: &[(&'static str, &str)]) -> Self {
        let mut ask = Self::default();
        for (name, value) in lines {
            ask.headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        ask
    }

    fn with<T>(&self, decide: impl Fn(&Caller<'_>, &Operation<'_>) -> T) -> T {
        let host = Authority { host: self.host.clone().into(), port: None };
        let caller = Caller { id: self.id.as_ref(), address: self.address };
        let operation = Operation {
            method: &self.method,
            path: &self.path,
            host: &host,
            headers: &self.headers,
            claims: self.claims.as_ref(),
        };
        decide(&caller, &operation)
    }

    fn verdict(&self, policies: &[AuthorizationPolicy]) -> String {
        let engine = Authorization::new(policies.to_vec());
        self.with(|caller, operation| told(engine.request(caller, self.port, operation)))
    }

    fn opaque(&self, policies: &[AuthorizationPolicy]) -> String {
        let engine = Authorization::new(policies.to_vec());
        self.with(|caller, _| told(engine.connection(caller, self.port)))
    }

    fn before(&self, policies: &[AuthorizationPolicy]) -> String {
        let engine = Authorization::new(policies.to_vec());
        self.with(|caller, _| told(engine.before_requests(caller, self.port)))
    }

    /// Whether a rule with this one condition matches, when it allows and when it denies.
    fn both(&self, field: &str, values: &[&str]) -> (bool, bool) {
        let rules = || vec![rule(&[(field, values)])];
        let allows = self.verdict(&[policy("a", Action::Allow, rules())]) == "allowed";
        let denies = self.verdict(&[policy("d", Action::Deny, rules())]) != "allowed";
        (allows, denies)
    }
}

fn told(decision: Decision<'_>) -> String {
    let verdict = match decision.verdict {
        Verdict::Allowed => "allowed",
        Verdict::Denied { policy: None } => "no match",
        Verdict::Denied { policy: Some(policy) } => policy,
    };
    decision.shadow.map_or_else(|| verdict.to_owned(), |shadow| format!("{verdict}, shadow {shadow}"))
}

const YES: (bool, bool) = (true, true);
const NO: (bool, bool) = (false, false);
/// What is not clear: allowed by no rule, denied by each.
const UNCLEAR: (bool, bool) = (false, true);

#[test]
fn without_a_policy_everything_is_let_in_and_an_allow_selects() {
    let web = || vec![rule(&[("identities", &[WEB])])];
    assert_eq!(Ask::default().verdict(&[]), "allowed");
    let allow = [policy("a", Action::Allow, web())];
    assert_eq!(Ask::by(WEB).verdict(&allow), "allowed");
    assert_eq!(Ask::by(EVIL).verdict(&allow), "no match");
    assert_eq!(Ask::default().verdict(&[policy("none", Action::Allow, vec![])]), "no match");
    let deny = [policy("d", Action::Deny, web())];
    assert_eq!(Ask::by(WEB).verdict(&deny), "shop/d");
    assert_eq!(Ask::by(EVIL).verdict(&deny), "allowed");
}

#[test]
fn a_policy_that_denies_goes_before_those_that_allow_whatever_their_order() {
    let everything = || vec![rule(&[])];
    let (allow, deny) = (policy("a", Action::Allow, everything()), policy("d", Action::Deny, everything()));
    for policies in [[allow.clone(), deny.clone()], [deny, allow]] {
        assert_eq!(Ask::default().verdict(&policies), "shop/d");
    }
}

#[test]
fn one_rule_of_one_policy_and_in_it_all_groups_must_match() {
    let rules = vec![rule(&[("identities", &[WEB]), ("methods", &["GET", "HEAD"])]), rule(&[("ports", &["1"])])];
    let policies = [policy("a", Action::Allow, rules), policy("b", Action::Allow, vec![rule(&[("paths", &["/b"])])])];
    assert_eq!(Ask::by(WEB).verdict(&policies), "allowed");
    assert_eq!(Ask::by(EVIL).verdict(&policies), "no match");
    assert_eq!(Ask { method: Method::POST, ..Ask::by(WEB) }.verdict(&policies), "no match");
    assert_eq!(Ask { port: 1, ..Ask::by(EVIL) }.verdict(&policies), "allowed");
    assert_eq!(Ask::path("/b").verdict(&policies), "allowed");
}

#[test]
fn a_dry_run_decides_nothing_and_says_what_it_would_refuse() {
    let web = || vec![rule(&[("identities", &[WEB])])];
    let evil = || vec![rule(&[("identities", &[EVIL])])];
    let deny = trial("t", Action::Deny, evil());
    assert_eq!(Ask::by(EVIL).verdict(std::slice::from_ref(&deny)), "allowed, shadow shop/t");
    assert_eq!(Ask::by(WEB).verdict(&[deny.clone(), trial("u", Action::Deny, evil())]), "allowed");
    let allow = trial("t", Action::Allow, web());
    assert_eq!(Ask::by(EVIL).verdict(std::slice::from_ref(&allow)), "allowed, shadow shop/t");
    assert_eq!(Ask::by(WEB).verdict(std::slice::from_ref(&allow)), "allowed");
    let two = [allow.clone(), trial("u", Action::Allow, evil())];
    assert_eq!(Ask::by(EVIL).verdict(&two), "allowed", "together they let both in");
    assert_eq!(Ask::default().verdict(&two), "allowed, shadow shop/t");
    let in_force = [policy("a", Action::Allow, evil()), allow];
    assert_eq!(Ask::by(EVIL).verdict(&in_force), "allowed", "one in force lets it in");
    assert_eq!(Ask::by(WEB).verdict(&in_force), "no match", "one on trial does not");
    assert_eq!(Ask::default().verdict(&in_force), "no match, shadow shop/t");
}

#[test]
fn identities_are_compared_as_values() {
    let both = |id: &str, values: &[&str]| Ask::by(id).both("identities", values);
    assert_eq!(both(WEB, &[EVIL, WEB]), YES);
    assert_eq!(both(WEB, &["*"]), YES);
    assert_eq!(both(WEB, &["spiffe://td/ns/shop/*"]), YES);
    assert_eq!(both("spiffe://td/ns/shop2/sa/web", &["spiffe://td/ns/shop/*"]), NO);
    assert_eq!(both("spiffe://td.evil/ns/shop/sa/web", &["spiffe://td/*"]), NO);
    assert_eq!(both("spiffe://td/ns/shop/sa/aXb", &["spiffe://td/ns/shop/sa/a.b"]), NO, "a dot is a dot");
    assert_eq!(both("spiffe://td/ns/shop/sa/web2", &[WEB]), NO);
    assert_eq!(Ask::by(WEB).both("!identities", &[EVIL]), YES);
    assert_eq!(Ask::by(EVIL).both("!identities", &[EVIL]), NO);
}

#[test]
fn a_caller_without_an_identity_has_none_to_match_and_cannot_pass_for_another() {
    assert_eq!(Ask::default().both("identities", &["*"]), NO);
    assert_eq!(Ask::default().both("!identities", &[EVIL]), UNCLEAR);
    assert_eq!(Ask::default().both("!identities", &["*"]), UNCLEAR, "deny what is not in the mesh");
}

#[test]
fn networks_know_both_families_and_the_mapped_form() {
    let both = |address: &str, values: &[&str]| {
        Ask { address: address.parse().unwrap(), ..Ask::default() }.both("networks", values)
    };
    for (address, network, expected) in [
        ("10.1.2.3", "10.0.0.0/8", YES),
        ("::ffff:10.1.2.3", "10.0.0.0/8", YES),
        ("10.1.2.3", "::ffff:10.0.0.0/104", YES),
        ("11.1.2.3", "10.0.0.0/8", NO),
        ("10.0.0.255", "10.0.0.254/31", YES),
        ("10.0.0.253", "10.0.0.254/31", NO),
        ("1.2.3.4", "0.0.0.0/0", YES),
        ("fd00::1", "0.0.0.0/0", NO),
        ("1.2.3.4", "::/0", NO),
        ("fd12::1", "fd00::/8", YES),
        ("fe00::1", "fd00::/8", NO),
        ("::1", "::1", YES),
        ("::2", "::1", NO),
    ] {
        assert_eq!(both(address, &[network]), expected, "{address} {network}");
        let negated = Ask { address: address.parse().unwrap(), ..Ask::default() }.both("!networks", &[network]);
        assert_eq!(negated, (!expected.0, !expected.1), "not {address} {network}");
    }
}

#[test]
fn ports_are_those_of_the_app() {
    assert_eq!(Ask::default().both("ports", &["80", "8080"]), YES);
    assert_eq!(Ask::default().both("ports", &["80"]), NO);
    assert_eq!(Ask::default().both("!ports", &["8080"]), NO);
}

#[test]
fn methods_have_case_but_a_servers_folding_helps_nobody() {
    let both = |method: &str, field| Ask { method: method.parse().unwrap(), ..Ask::default() }.both(field, &["GET"]);
    assert_eq!(both("GET", "methods"), YES);
    assert_eq!(both("get", "methods"), UNCLEAR);
    assert_eq!(both("get", "!methods"), UNCLEAR);
    assert_eq!(both("POST", "methods"), NO);
    assert_eq!(both("POST", "!methods"), YES);
}

#[test]
fn paths_match_exactly_below_and_by_template() {
    for (path, pattern, expected) in [
        ("/admin", "/admin", YES),
        ("/Admin", "/admin", NO),
        ("/admin/x", "/admin", NO),
        ("/admin", "/admin/*", YES),
        ("/admin/", "/admin/*", YES),
        ("/admin/x/y", "/admin/*", YES),
        ("/administrator", "/admin/*", NO),
        ("/orders/7/items", "/orders/{id}/items", YES),
        ("/orders/7/8/items", "/orders/{id}/items", NO),
        ("/orders//items", "/orders/{id}/items", NO),
        ("/orders/7/items/1", "/orders/{id}/items/*", YES),
        ("/orders/{id}/items", "/orders/{id}/items", YES),
        ("/", "/", YES),
        ("/x", "/", NO),
        ("/x", "/*", YES),
        ("*", "/*", NO),
        ("*", "*", YES),
        ("/", "*", YES),
    ] {
        assert_eq!(Ask::path(path).both("paths", &[pattern]), expected, "{path} {pattern}");
        let negated = Ask::path(path).both("!paths", &[pattern]);
        assert_eq!(negated, (!expected.0, !expected.1), "not {path} {pattern}");
    }
}

#[test]
fn what_a_lenient_app_takes_for_the_same_path_is_denied_and_not_allowed() {
    for (path, pattern) in [
        ("/admin/", "/admin"),
        ("/admin", "/admin/"),
        ("/admin;v=1", "/admin"),
        ("/x;/admin", "/x/admin"),
        ("/;x/admin", "/admin"),
        ("/a%40b", "/a@b"),
        ("/a@b", "/a%40b"),
        ("/orders/7;x/items", "/orders/{id}/items/"),
    ] {
        let exact = Ask::path(path).both("paths", &[pattern]);
        assert_eq!(exact, UNCLEAR, "{path} {pattern}");
        assert_eq!(Ask::path(path).both("!paths", &[pattern]), UNCLEAR, "not {path} {pattern}");
    }
}

#[test]
fn hosts_match_whatever_their_case_dot_and_port() {
    let both = |host: &[u8], field, value: &str| {
        let host = Authority::parse(host).unwrap().host;
        Ask { host: (*host).into(), ..Ask::default() }.both(field, &[value])
    };
    for host in [&b"Secret.com"[..], b"secret.com.", b"secret.com:80", b"SECRET.COM.:443"] {
        assert_eq!(both(host, "hosts", "secret.com"), YES);
        assert_eq!(both(host, "hosts", "SECRET.com."), YES);
        assert_eq!(both(host, "!hosts", "secret.com"), NO);
        assert_eq!(both(host, "hosts", "*.com"), YES);
        assert_eq!(both(host, "hosts", "*.secret.com"), NO);
    }
    assert_eq!(both(b"xsecret.com", "hosts", "secret.com"), NO);
    assert_eq!(both(b"a.xsecret.com", "hosts", "*.secret.com"), NO);
    assert_eq!(both(b"[::1]:80", "hosts", "::1"), YES);
}

#[test]
fn without_a_host_nobody_knows_which_site_is_meant() {
    let nameless = Ask { host: String::new(), ..Ask::default() };
    assert_eq!(nameless.both("hosts", &["*"]), UNCLEAR);
    assert_eq!(nameless.both("!hosts", &["secret.com"]), UNCLEAR);
}

#[test]
fn each_value_of_a_header_counts() {
    let both = |lines: &[(&'static str, &str)], field, values| Ask::lines(lines).both(field, values);
    let role = "header:x-role";
    assert_eq!(both(&[("X-Role", "user")], role, &["user"]), YES);
    assert_eq!(both(&[("x-role", "admin")], role, &["user"]), NO);
    assert_eq!(both(&[], role, &["*"]), NO, "it is missing");
    assert_eq!(both(&[("x-role", "")], role, &["*"]), YES, "it is there");
    for lines in [
        &[("x-role", "user"), ("x-role", "admin")][..],
        &[("x-role", "admin"), ("x-role", "user")],
        &[("x-role", "user, admin")],
        &[("x-role", "admin ,user")],
        &[("x-role", "user,")],
    ] {
        assert_eq!(both(lines, role, &["user"]), UNCLEAR, "{lines:?}");
        assert_eq!(both(lines, "!header:x-role", &["user"]), UNCLEAR, "{lines:?}");
        assert_eq!(both(lines, role, &["user", "admin", ""]), YES, "{lines:?}");
    }
    assert_eq!(both(&[("x-role", "User")], role, &["user"]), UNCLEAR, "case");
    assert_eq!(both(&[("x-role", "a, b")], role, &["a, b"]), YES, "the whole line");
    assert_eq!(both(&[("x-role", "user-7")], role, &["user-*"]), YES);
    assert_eq!(both(&[("x-role", "user-7, admin")], role, &["user-*"]), UNCLEAR, "the rest of the list is not hidden");
    assert_eq!(both(&[], "!header:x-role", &["user"]), YES);
    assert_eq!(both(&[("cookie", "a=1; session=x")], "header:cookie", &["session=x"]), UNCLEAR);
}

#[test]
fn a_header_that_some_app_takes_for_the_same_is_denied_too_and_allows_nothing() {
    let both = |lines: &[(&'static str, &str)]| Ask::lines(lines).both("header:x-role", &["user"]);
    for name in ["x_role", "X_ROLE", "x.role", "x~role"] {
        assert_eq!(both(&[(name, "user")]), UNCLEAR, "{name}");
        assert_eq!(both(&[("x-role", "user"), (name, "admin")]), UNCLEAR, "{name}");
        assert_eq!(both(&[("x-role", "user"), (name, "user")]), YES, "{name}");
    }
    for name in ["xarole", "x-roles", "x--role", "role"] {
        assert_eq!(both(&[(name, "user")]), NO, "{name}");
    }
}

#[test]
fn claims_match_by_one_of_their_values_and_only_of_a_verified_token() {
    let claims = Claims::new([("groups", "dev"), ("groups", "ops"), ("realm.role", "admin")]).unwrap();
    let ask = Ask { claims: Some(claims), ..Ask::default() };
    assert_eq!(ask.both("claim:groups", &["ops"]), YES);
    assert_eq!(ask.both("claim:groups", &["Ops"]), NO);
    assert_eq!(ask.both("claim:realm.role", &["adm*"]), YES);
    assert_eq!(ask.both("claim:realm", &["*"]), NO);
    assert_eq!(ask.both("!claim:groups", &["ops"]), NO);
    assert_eq!(ask.both("!claim:groups", &["guest"]), YES);
    assert_eq!(Ask::default().both("claim:groups", &["*"]), NO, "there is no token");
    assert_eq!(Ask::default().both("!claim:groups", &["guest"]), UNCLEAR, "there is no token");
}

const L7: [(&str, &[&str]); 10] = [
    ("methods", &["GET"]),
    ("!methods", &["PUT"]),
    ("paths", &["/"]),
    ("!paths", &["/b"]),
    ("hosts", &["a"]),
    ("!hosts", &["b"]),
    ("header:x", &["1"]),
    ("!header:x", &["1"]),
    ("claim:x", &["1"]),
    ("!claim:x", &["1"]),
];

#[test]
fn of_opaque_bytes_rules_on_requests_allow_nothing_and_deny_everything() {
    for condition in L7 {
        let rules = |id| vec![rule(&[("identities", &[id]), condition])];
        let allow = |id| [policy("a", Action::Allow, rules(id))];
        let deny = |id| [policy("d", Action::Deny, rules(id))];
        assert_eq!(Ask::by(WEB).opaque(&allow(WEB)), "no match", "{condition:?}");
        assert_eq!(Ask::by(WEB).opaque(&deny(WEB)), "shop/d", "{condition:?}");
        assert_eq!(Ask::by(WEB).opaque(&deny(EVIL)), "allowed", "{condition:?}");
        let both =
            [policy("a", Action::Allow, rules(WEB)), policy("b", Action::Allow, vec![rule(&[("ports", &["8080"])])])];
        assert_eq!(Ask::by(WEB).opaque(&both), "allowed", "another rule needs no request");
    }
}

#[test]
fn before_requests_only_what_every_request_would_meet_is_refused() {
    for condition in L7 {
        let rules = |id| vec![rule(&[("identities", &[id]), condition])];
        assert_eq!(Ask::by(WEB).before(&[policy("a", Action::Allow, rules(WEB))]), "allowed", "{condition:?}");
        assert_eq!(Ask::by(WEB).before(&[policy("a", Action::Allow, rules(EVIL))]), "no match", "{condition:?}");
        assert_eq!(Ask::by(WEB).before(&[policy("d", Action::Deny, rules(WEB))]), "allowed", "{condition:?}");
    }
    let deny = [policy("d", Action::Deny, vec![rule(&[("identities", &[WEB])])])];
    assert_eq!(Ask::by(WEB).before(&deny), "shop/d");
    assert_eq!(Ask::by(WEB).before(&[trial("d", Action::Deny, vec![rule(&[])])]), "allowed", "told of requests");
}

#[test]
fn policies_that_look_at_requests_are_known_as_such() {
    let of = |policies: Vec<AuthorizationPolicy>| Authorization::new(policies).has_request_rules();
    assert!(!of(vec![]));
    assert!(!of(vec![policy("a", Action::Allow, vec![rule(&[("identities", &[WEB]), ("ports", &["1"])])])]));
    for condition in L7 {
        assert!(of(vec![trial("a", Action::Deny, vec![rule(&[("ports", &["1"]), condition])])]), "{condition:?}");
    }
}
