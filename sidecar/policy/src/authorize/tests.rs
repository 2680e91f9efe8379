//! How policies, rules and dry runs go together; `conditions` has the conditions one by one, `reference` compares with
//! an independent reading of them.

mod conditions;
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
