//! The engine against an independent reading of the rules: texts compared as texts, with allocation, one clause after
//! the other. And: nothing panics, whatever a caller sends.

use http::HeaderName;
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::canonical;

/// One condition as a user writes it.
#[derive(Clone, Debug)]
struct Clause {
    field: &'static str,
    negated: bool,
    values: Vec<&'static str>,
}

/// Groups of alternatives of clauses.
type Rule = Vec<Vec<Vec<Clause>>>;

#[derive(Clone, Debug)]
struct Written {
    name: String,
    action: Action,
    dry_run: bool,
    rules: Vec<Rule>,
}

impl Written {
    fn compiled(&self) -> AuthorizationPolicy {
        let clause = |clause: &Clause| Condition { negated: clause.negated, kind: kind(clause.field, &clause.values) };
        let rules = self.rules.iter().map(|rule| AuthorizationRule {
            groups: rule.iter().map(|sets| sets.iter().map(|set| set.iter().map(clause).collect()).collect()).collect(),
        });
        AuthorizationPolicy {
            name: ObjectName::new("shop", &self.name),
            action: self.action,
            dry_run: self.dry_run,
            rules: rules.collect(),
        }
    }

    /// Whether it matches; `None` for the operation: opaque bytes.
    fn matches(&self, ask: &Ask, opaque: bool) -> bool {
        let deny = self.action == Action::Deny;
        self.rules.iter().any(|rule| {
            rule.iter().all(|sets| sets.iter().any(|set| set.iter().all(|clause| clause.holds(ask, deny, opaque))))
        })
    }
}

impl Clause {
    /// For a rule that denies the widest meaning counts, for one that allows the narrowest. The narrowest meaning of a
    /// negation is the negation of the widest.
    fn holds(&self, ask: &Ask, deny: bool, opaque: bool) -> bool {
        match self.field {
            "identities" | "networks" | "ports" => {}
            _ if opaque => return deny,
            _ => {}
        }
        let (narrow, wide) = self.meanings(ask);
        let (narrow, wide) = if self.negated { (!wide, !narrow) } else { (narrow, wide) };
        if deny { wide } else { narrow }
    }

    /// What surely matches, and what might.
    fn meanings(&self, ask: &Ask) -> (bool, bool) {
        let any = |test: &dyn Fn(&str) -> bool| self.values.iter().any(|value| test(value));
        let sure = |found: bool| (found, found);
        match self.field {
            "identities" => match &ask.id {
                // A negation might hold, the condition itself does not.
                None => (false, self.negated),
                Some(id) => sure(any(&|value| glob(value, id.as_str()))),
            },
            "ports" => sure(any(&|value| value == ask.port.to_string())),
            "networks" => sure(any(&|value| in_network(value, ask.address))),
            "methods" => {
                let asked = ask.method.as_str();
                (any(&|value| value == asked), any(&|value| value.to_lowercase() == asked.to_lowercase()))
            }
            "paths" => (
                any(&|value| path(value, &ask.path)),
                any(&|value| path(&plain(value), &plain(&ask.path)) || path(value, &ask.path)),
            ),
            "hosts" if ask.host.is_empty() => (false, true),
            "hosts" => sure(any(&|value| {
                let value = value.to_lowercase();
                value == "*"
                    || value == ask.host
                    || value
                        .strip_prefix('*')
                        .is_some_and(|end| !end.is_empty() && ask.host.ends_with(end) && ask.host != end)
            })),
            field => {
                let (what, name) = field.split_once(':').unwrap();
                if what == "claim" {
                    return match &ask.claims {
                        None => (false, self.negated),
                        Some(claims) => sure(claims.get(name).any(|found| any(&|value| glob(value, found)))),
                    };
                }
                let lines: Vec<&str> = ask.headers.get_all(name).iter().map(|line| line.to_str().unwrap()).collect();
                let elements = |line: &str| line.split(',').map(|part| part.trim().to_owned()).collect::<Vec<_>>();
                let narrow = !lines.is_empty()
                    && lines.iter().all(|line| {
                        any(&|value| value == *line)
                            || elements(line).iter().all(|part| any(&|value| glob(value, part)))
                    });
                let lower = |value: &str, text: &str| glob(&value.to_lowercase(), &text.to_lowercase());
                let wide = lines.iter().any(|line| {
                    any(&|value| lower(value, line))
                        || elements(line).iter().any(|part| any(&|value| lower(value, part)))
                });
                (narrow, wide)
            }
        }
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    }
}

fn in_network(network: &str, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().iter().map(|byte| format!("{byte:08b}")).collect::<String>(),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.octets().iter().map(|byte| format!("{byte:08b}")).collect(),
            None => v6.octets().iter().map(|byte| format!("{byte:08b}")).collect(),
        },
    };
    let (base, length) = network.split_once('/').unwrap();
    let (base, address) = (bits(base.parse().unwrap()), bits(address));
    let mapped = network.starts_with("::ffff:");
    let length: usize = length.parse::<usize>().unwrap() - if mapped { 96 } else { 0 };
    base.len() == address.len() && base[..length] == address[..length]
}

/// `*`, `/a/*`, `{x}`: by a regular expression.
fn path(pattern: &str, path: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    let (pattern, below) = pattern.strip_suffix("/*").map_or((pattern, false), |start| (start, true));
    let parts: Vec<String> = pattern
        .split('/')
        .map(|part| if part.starts_with('{') { "[^/]+".to_owned() } else { regex::escape(part) })
        .collect();
    let end = if below { "(/.*)?" } else { "" };
    regex::Regex::new(&format!("^{}{end}$", parts.join("/"))).unwrap().is_match(path) && path.starts_with('/')
}

/// The path as a lenient app reads it.
fn plain(path: &str) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let below = path.ends_with("/*");
    let parts = path.trim_end_matches("/*").split('/').map(|part| part.split(';').next().unwrap().replace("%40", "@"));
    let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
    let whole = format!("/{}", parts.join("/"));
    match (below, whole.as_str()) {
        (true, "/") => "/*".to_owned(),
        (true, _) => format!("{whole}/*"),
        _ => whole,
    }
}

/// The whole verdict, spelled out.
fn expected(policies: &[Written], ask: &Ask, opaque: bool) -> String {
    let matching = |action: Action, dry_run: bool| {
        let own = policies.iter().filter(move |policy| policy.action == action && policy.dry_run == dry_run);
        own.filter(|policy| policy.matches(ask, opaque))
            .map(|policy| format!("shop/{}", policy.name))
            .collect::<Vec<_>>()
    };
    let there = |action: Action, dry_run: bool| {
        policies.iter().filter(move |policy| policy.action == action && policy.dry_run == dry_run).collect::<Vec<_>>()
    };
    let verdict = if let Some(name) = matching(Action::Deny, false).first() {
        name.clone()
    } else if there(Action::Allow, false).is_empty() || !matching(Action::Allow, false).is_empty() {
        "allowed".to_owned()
    } else {
        "no match".to_owned()
    };
    let tried = there(Action::Allow, true);
    let shadow = if let Some(name) = matching(Action::Deny, true).first() {
        Some(name.clone())
    } else if matching(Action::Allow, false).is_empty() && matching(Action::Allow, true).is_empty() {
        tried.first().map(|policy| format!("shop/{}", policy.name))
    } else {
        None
    };
    shadow.map_or_else(|| verdict.clone(), |shadow| format!("{verdict}, shadow {shadow}"))
}

const FIELDS: [(&str, &[&str]); 8] = [
    ("identities", &["*", WEB, EVIL, "spiffe://td/ns/shop/*", "spiffe://td/ns/shop/sa/w*", "spiffe://other/*"]),
    ("networks", &["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "::/0", "fd00::/8", "10.1.2.3/32", "::ffff:10.0.0.0/104"]),
    ("ports", &["80", "8080", "1"]),
    ("methods", &["GET", "POST", "get"]),
    ("paths", &["*", "/", "/*", "/a", "/a/", "/a/*", "/a/{x}/b", "/{x}", "/a/{x}/*", "/a@b", "/a%40b"]),
    ("hosts", &["*", "a", "A.b", "*.b", "a.b.c"]),
    ("header:x-role", &["*", "user", "adm*", "user, admin", "User"]),
    ("claim:groups", &["*", "dev", "o*"]),
];

fn clause() -> impl Strategy<Value = Clause> {
    let of = |(field, values): (&'static str, &'static [&'static str])| {
        vec(select(values), 1..3).prop_map(move |values| (field, values))
    };
    (select(&FIELDS[..]).prop_flat_map(of), any::<bool>()).prop_map(|((field, values), negated)| Clause {
        field,
        negated,
        values,
    })
}

fn written() -> impl Strategy<Value = Vec<Written>> {
    let rule = vec(vec(vec(clause(), 1..3), 1..3), 0..3);
    let policy = (any::<bool>(), any::<bool>(), vec(rule, 1..3));
    vec(policy, 0..4).prop_map(|policies| {
        let policies = policies.into_iter().enumerate().map(|(index, (deny, dry_run, rules))| Written {
            name: format!("p{index}"),
            action: if deny { Action::Deny } else { Action::Allow },
            dry_run,
            rules,
        });
        policies.collect()
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    let id = select(vec![
        None,
        Some(WEB),
        Some(EVIL),
        Some("spiffe://other/ns/shop/sa/web"),
        Some("spiffe://td/ns/shop2/sa/w"),
    ]);
    let address = select(vec!["10.1.2.3", "::ffff:10.1.2.3", "11.0.0.1", "fd00::1", "::1", "127.0.0.1"]);
    let path = select(vec![
        "/", "/a", "/a/", "/a/x", "/a/x/b", "/a/x/b/", "/ab", "/a;v=1", "/a@b", "/a%40b", "/;x/a", "*", "/A",
    ]);
    let lines = vec(select(vec!["user", "admin", "user, admin", "User", "", "a,", "user,user"]), 0..3);
    let claims = proptest::option::of(vec(select(vec!["dev", "ops", "x"]), 0..3));
    let rest = (
        select(vec!["GET", "POST", "get"]),
        select(vec!["a", "a.b", "x.b", "b", "a.b.c", ""]),
        select(vec![80_u16, 8080, 443]),
    );
    (id, address, path, lines, claims, rest).prop_map(|(id, address, path, lines, claims, (method, host, port))| {
        let mut ask = Ask {
            id: id.map(|id| SpiffeId::parse(id).unwrap()),
            address: address.parse().unwrap(),
            port,
            method: method.parse().unwrap(),
            path: path.into(),
            host: host.into(),
            headers: HeaderMap::new(),
            claims: claims.map(|values| Claims::new(values.into_iter().map(|value| ("groups", value))).unwrap()),
        };
        for line in lines {
            ask.headers.append(HeaderName::from_static("x-role"), line.parse().unwrap());
        }
        ask
    })
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, address, port, method, path, host, headers, claims } = self;
        write!(f, "{id:?} {address} {port} {method} {path} {host:?} {headers:?} {claims:?}")
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn every_decision_is_that_of_the_reference(policies in written(), ask in ask()) {
        let compiled: Vec<_> = policies.iter().map(Written::compiled).collect();
        prop_assert_eq!(ask.verdict(&compiled), expected(&policies, &ask, false));
        prop_assert_eq!(ask.opaque(&compiled), expected(&policies, &ask, true));
    }

    #[test]
    fn a_connection_is_refused_early_only_if_each_of_its_requests_is(policies in written(), asks in vec(ask(), 1..20)) {
        let compiled: Vec<_> = policies.iter().map(Written::compiled).collect();
        let connection = &asks[0];
        if connection.before(&compiled) == "allowed" {
            return Ok(());
        }
        for ask in &asks {
            let ask = Ask { id: connection.id.clone(), address: connection.address, port: connection.port, ..ask.clone() };
            prop_assert!(!ask.verdict(&compiled).starts_with("allowed"), "{:?}", ask);
        }
    }

    #[test]
    fn without_rules_on_requests_the_connection_decides_for_them(policies in written(), ask in ask()) {
        let compiled: Vec<_> = policies.iter().map(Written::compiled).collect();
        if !Authorization::new(compiled.clone()).has_request_rules() {
            prop_assert_eq!(ask.opaque(&compiled), ask.verdict(&compiled));
        }
    }

    #[test]
    fn every_spelling_of_a_path_is_decided_like_its_canonical_form(
        policies in written(), ask in ask(), path in "/([a-bx@;]|%6[1-2]|%4[0-1]|%7[8-9]|/){0,8}",
    ) {
        let compiled: Vec<_> = policies.iter().map(Written::compiled).collect();
        let decide = |path: &str| -> Option<(String, String)> {
            let request = http::Request::builder().uri(path).header("host", "a").body(()).ok()?;
            let mut parts = request.into_parts().0;
            canonical::request(&mut parts).ok()?;
            let path = parts.uri.path().to_owned();
            Some((Ask { path: path.clone(), ..ask.clone() }.verdict(&compiled), path))
        };
        if let Some((verdict, canonical)) = decide(&path) {
            let unreserved = canonical.split('%').skip(1).all(|rest| &rest[..2] == "40");
            prop_assert!(unreserved, "{canonical}");
            prop_assert_eq!(decide(&canonical), Some((verdict, canonical)));
        }
    }

    #[test]
    fn nothing_that_a_caller_sends_makes_it_panic(
        policies in written(), path in ".{0,40}", host in ".{0,20}", method in "[!-~]{1,10}",
        line in vec(0x20_u8..=0xff, 0..40), claim in ".{0,10}",
    ) {
        let compiled: Vec<_> = policies.iter().map(Written::compiled).collect();
        let mut ask = Ask { path, host, claims: Claims::new([("groups", claim)]).ok(), ..Ask::default() };
        ask.method = method.parse().unwrap_or_default();
        if let Ok(value) = http::HeaderValue::from_bytes(&line) {
            ask.headers.append("x-role", value);
        }
        ask.verdict(&compiled);
    }

    #[test]
    fn no_text_of_a_condition_makes_parsing_panic(text in "[a-z*/{}%;:.0-9\\[\\]\u{e4}]{0,20}") {
        let _ = (IdentityMatch::parse(&text), IdentityMatch::parse(&format!("spiffe://{text}")));
        let _ = (Network::parse(&text), HostMatch::parse(&text), PathPattern::parse(&format!("/{text}")));
        let _ = (TextMatch::parse_header(&text), crate::model::rule_header(&text));
    }
}
