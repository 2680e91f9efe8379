//! Filters of routes. What their values must be is the sidecars' conversion to say: it is asked, and its paths are
//! turned into those of YAML.

use gateway_api::apis::experimental::httproutes::{
    HttpRouteRulesFiltersRequestRedirectPath, HttpRouteRulesFiltersType as Type, HttpRouteRulesMatches,
    HttpRouteRulesMatchesPathType,
};
use weft_policy::convert::{self, Invalid, Place};
use weft_proto::v1;

use crate::source::{
    check::Check,
    routes::{
        self, Filter, Rule,
        filters::{self, Action},
        word,
    },
};

/// Filters of one rule or backend, as Gateway API has it.
const MOST: usize = 16;

/// The filters of a rule and of its backends.
pub fn of_rule(rule: &Rule, path: &str, check: &mut Check<'_>) {
    let own = rule.filters.as_deref().unwrap_or_default();
    list(rule, own, &format!("{path}.filters"), check);
    for (index, backend) in rule.backend_refs.iter().flatten().enumerate() {
        list(rule, &routes::backend_filters(backend), &format!("{path}.backendRefs[{index}].filters"), check);
    }
    let redirect = own.iter().position(|filter| filter.r#type == Type::RequestRedirect);
    if let Some(index) = redirect.filter(|_| rule.backend_refs.as_ref().is_some_and(|backends| !backends.is_empty())) {
        let hint = "a redirect is an answer: remove backendRefs or the filter";
        check.wrong(&format!("{path}.filters[{index}]"), "RequestRedirect excludes backendRefs", hint);
    }
}

fn list(rule: &Rule, filters: &[Filter], path: &str, check: &mut Check<'_>) {
    if filters.len() > MOST {
        check.wrong(path, format!("{} are too many", filters.len()), format!("at most {MOST}"));
    }
    for (index, filter) in filters.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let before = &filters[..index];
        let has = |kind: Type| before.iter().any(|other| other.r#type == kind);
        if !matches!(filter.r#type, Type::RequestMirror | Type::ExtensionRef) && has(filter.r#type.clone()) {
            check.wrong(&path, format!("{} is given twice", word(&filter.r#type)), "once in a rule or backend");
        }
        if filter.r#type == Type::RequestRedirect && has(Type::UrlRewrite)
            || filter.r#type == Type::UrlRewrite && has(Type::RequestRedirect)
        {
            check.wrong(&path, "RequestRedirect and URLRewrite exclude each other", "");
        }
        one(filter, &path, check);
        if filters::replaces_prefix(filter) && !matches_one_prefix(rule) {
            let field = field_of(&filter.r#type);
            let hint = "the rule needs exactly one match, and that with a PathPrefix";
            check.wrong(&format!("{path}.{field}.path"), "ReplacePrefixMatch has no prefix to replace", hint);
        }
    }
}

/// Whether there is exactly one match, by a prefix; that is also what a rule without matches has.
fn matches_one_prefix(rule: &Rule) -> bool {
    let matches = rule.matches.as_deref().unwrap_or_default();
    let prefix = |kind: &HttpRouteRulesMatchesPathType| *kind == HttpRouteRulesMatchesPathType::PathPrefix;
    let by_prefix =
        |found: &HttpRouteRulesMatches| found.path.as_ref().and_then(|path| path.r#type.as_ref()).is_none_or(prefix);
    matches.len() <= 1 && matches.iter().all(by_prefix)
}

/// The field that a filter of this type has.
fn field_of(kind: &Type) -> &'static str {
    match kind {
        Type::RequestHeaderModifier => "requestHeaderModifier",
        Type::ResponseHeaderModifier => "responseHeaderModifier",
        Type::RequestMirror => "requestMirror",
        Type::RequestRedirect => "requestRedirect",
        Type::UrlRewrite => "urlRewrite",
        Type::ExtensionRef => "extensionRef",
        Type::Cors => "cors",
        Type::ExternalAuth => "externalAuth",
    }
}

fn one(filter: &Filter, path: &str, check: &mut Check<'_>) {
    let fields = [
        ("requestHeaderModifier", filter.request_header_modifier.is_some()),
        ("responseHeaderModifier", filter.response_header_modifier.is_some()),
        ("requestMirror", filter.request_mirror.is_some()),
        ("requestRedirect", filter.request_redirect.is_some()),
        ("urlRewrite", filter.url_rewrite.is_some()),
        ("extensionRef", filter.extension_ref.is_some()),
        ("cors", filter.cors.is_some()),
        ("externalAuth", filter.external_auth.is_some()),
    ];
    let (own, word) = (field_of(&filter.r#type), word(&filter.r#type));
    for (field, given) in fields {
        if field == own && !given {
            return check.wrong(&format!("{path}.{field}"), "is missing", format!("a filter of type {word} has it"));
        }
        if field != own && given {
            check.wrong(&format!("{path}.{field}"), format!("does not belong to a filter of type {word}"), "");
        }
    }
    twice(filter, path, check);
    mirror(filter, path, check);
    redirect(filter, path, check);
    cors(filter, path, check);
    if let Action::Filter(kind) = filters::action(filter)
        && let Err(invalid) = convert::filters(vec![v1::Filter { kind: Some(kind) }], Place::Rule)
    {
        let Invalid { field, value, reason } = invalid;
        check.wrong(&format!("{path}.{}", in_yaml(&field, own)), format!("\"{value}\" {reason}"), "");
    }
}

/// A field of the wire message of a filter, as it is written in YAML.
fn in_yaml(field: &str, own: &str) -> String {
    let inner = field.strip_prefix("filters[0].").unwrap_or(field);
    let rest = inner.split_once('.').map_or("", |(_, rest)| rest);
    let rest = match rest {
        "status" => "statusCode",
        "path.full" => "path.replaceFullPath",
        "path.prefix" => "path.replacePrefixMatch",
        rest => rest,
    };
    let mut path = if rest.is_empty() { own.to_owned() } else { format!("{own}.") };
    let mut upper = false;
    for character in rest.chars() {
        match character {
            '_' => upper = true,
            character if std::mem::take(&mut upper) => path.push(character.to_ascii_uppercase()),
            character => path.push(character),
        }
    }
    path
}

/// A header is set, or added to, once by one filter.
fn twice(filter: &Filter, path: &str, check: &mut Check<'_>) {
    let Action::Filter(v1::filter::Kind::RequestHeaders(change) | v1::filter::Kind::ResponseHeaders(change)) =
        filters::action(filter)
    else {
        return;
    };
    for (field, headers) in [("set", change.set), ("add", change.add)] {
        for (index, header) in headers.iter().enumerate() {
            if headers[..index].iter().any(|before| before.name == header.name) {
                let path = format!("{path}.{}.{field}[{index}].name", field_of(&filter.r#type));
                check.wrong(&path, format!("\"{}\" is given twice", header.name), "join the values with a comma");
            }
        }
    }
}

fn mirror(filter: &Filter, path: &str, check: &mut Check<'_>) {
    let Some(mirror) = &filter.request_mirror else { return };
    let path = format!("{path}.requestMirror");
    check.backend(&format!("{path}.backendRef"), mirror.backend_ref.port, None);
    if let Some(percent) = mirror.percent.filter(|percent| !(0..=100).contains(percent)) {
        check.wrong(&format!("{path}.percent"), format!("{percent} is not a percentage"), "0 to 100");
    }
    let Some(fraction) = &mirror.fraction else { return };
    if mirror.percent.is_some() {
        check.wrong(&format!("{path}.fraction"), "percent and fraction exclude each other", "");
    }
    let denominator = fraction.denominator.unwrap_or(100);
    if denominator < 1 {
        check.wrong(&format!("{path}.fraction.denominator"), format!("{denominator} is too small"), "at least 1");
    } else if !(0..=denominator).contains(&fraction.numerator) {
        let numerator = fraction.numerator;
        let hint = format!("0 to the denominator, {denominator}");
        check.wrong(&format!("{path}.fraction.numerator"), format!("{numerator} is out of range"), hint);
    }
}

fn redirect(filter: &Filter, path: &str, check: &mut Check<'_>) {
    if let Some(redirect) = &filter.request_redirect {
        if let Some(port) = redirect.port {
            check.port(&format!("{path}.requestRedirect.port"), port.into());
        }
        modifier(redirect.path.as_ref(), &format!("{path}.requestRedirect.path"), check);
    }
    if let Some(rewrite) = &filter.url_rewrite {
        let change = rewrite.path.as_ref().and_then(routes::same);
        modifier(change.as_ref(), &format!("{path}.urlRewrite.path"), check);
    }
}

/// A path modifier has the field of its type and no other.
fn modifier(change: Option<&HttpRouteRulesFiltersRequestRedirectPath>, path: &str, check: &mut Check<'_>) {
    let Some(change) = change else { return };
    let kind = word(&change.r#type);
    let fields = [
        ("ReplaceFullPath", "replaceFullPath", change.replace_full_path.is_some()),
        ("ReplacePrefixMatch", "replacePrefixMatch", change.replace_prefix_match.is_some()),
    ];
    for (of, field, given) in fields {
        if of == kind && !given {
            check.wrong(&format!("{path}.{field}"), "is missing", format!("type {kind} needs it"));
        } else if of != kind && given {
            check.wrong(&format!("{path}.{field}"), format!("does not belong to type {kind}"), "");
        }
    }
}

fn cors(filter: &Filter, path: &str, check: &mut Check<'_>) {
    let Some(cors) = &filter.cors else { return };
    if let Some(age) = cors.max_age.filter(|age| *age < 1) {
        check.wrong(&format!("{path}.cors.maxAge"), format!("{age} is too short"), "at least 1 second");
    }
    let lists = [
        ("allowOrigins", &cors.allow_origins),
        ("allowMethods", &cors.allow_methods),
        ("allowHeaders", &cors.allow_headers),
    ];
    for (field, list) in lists {
        let list = list.as_deref().unwrap_or_default();
        if list.len() > 1 && list.iter().any(|item| item == "*") {
            check.wrong(&format!("{path}.cors.{field}"), "\"*\" excludes all others", "");
        }
    }
}
