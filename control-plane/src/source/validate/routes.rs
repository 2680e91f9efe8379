//! Routes: what Gateway API forbids, and what the sidecars would refuse.

use std::collections::BTreeSet;

use gateway_api::apis::experimental::{
    grpcroutes::{GrpcRoute, GrpcRouteRulesMatches, GrpcRouteRulesMatchesHeadersType, GrpcRouteRulesMatchesMethodType},
    httproutes::{
        HttpRoute, HttpRouteRulesMatches, HttpRouteRulesMatchesHeadersType, HttpRouteRulesMatchesPathType,
        HttpRouteRulesMatchesQueryParamsType,
    },
};
use weft_policy::pattern::Pattern;

use super::filters;
use crate::source::{
    check::{Check, duration},
    routes::{self, Backend, Parent, Rule, matches},
};

/// Tries after the first, as the sidecars allow them.
const MAX_ATTEMPTS: i64 = 10;

pub fn route(route: &HttpRoute, check: &mut Check<'_>) {
    parents(&routes::http_parents(route), check);
    names(route.spec.rules.iter().flatten().map(|rule| rule.name.as_deref()), check);
    for (index, rule) in route.spec.rules.iter().flatten().enumerate() {
        let path = format!("spec.rules[{index}]");
        for (place, found) in rule.matches.iter().flatten().enumerate() {
            http_match(found, &format!("{path}.matches[{place}]"), check);
        }
        self::rule(rule, &path, check);
        timeouts(rule, &path, check);
        retry(rule, &path, check);
    }
}

pub fn grpc_route(route: &GrpcRoute, check: &mut Check<'_>) {
    parents(&routes::grpc_parents(route), check);
    names(route.spec.rules.iter().flatten().map(|rule| rule.name.as_deref()), check);
    for (index, rule) in route.spec.rules.iter().flatten().enumerate() {
        let path = format!("spec.rules[{index}]");
        for (place, found) in rule.matches.iter().flatten().enumerate() {
            grpc_match(found, &format!("{path}.matches[{place}]"), check);
        }
        self::rule(&routes::grpc_rule(rule), &path, check);
    }
}

fn parents(parents: &[Parent], check: &mut Check<'_>) {
    for (index, parent) in parents.iter().enumerate() {
        if let Some(port) = parent.port {
            check.port(&format!("spec.parentRefs[{index}].port"), port.into());
        }
        if parents[..index].contains(parent) {
            let hint = "several references to one parent need different ports or sectionNames";
            check.wrong(&format!("spec.parentRefs[{index}]"), "is given twice", hint);
        }
    }
}

fn names<'a>(names: impl Iterator<Item = Option<&'a str>>, check: &mut Check<'_>) {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        let Some(name) = name else { continue };
        let path = format!("spec.rules[{index}].name");
        check.name(&path, name);
        if !seen.insert(name) {
            check.wrong(&path, format!("\"{name}\" is given twice"), "the name of a rule is unique in its route");
        }
    }
}

/// Filters, backends and sessions.
fn rule(rule: &Rule, path: &str, check: &mut Check<'_>) {
    filters::of_rule(rule, path, check);
    routes::session::check(rule, path, check);
    let backends: &[Backend] = rule.backend_refs.as_deref().unwrap_or_default();
    for (index, backend) in backends.iter().enumerate() {
        check.backend(&format!("{path}.backendRefs[{index}]"), backend.port, backend.weight);
    }
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == Some(0)) {
        check.wrong(&format!("{path}.backendRefs"), "the weights sum to 0", "at least one backend needs a weight");
    }
}

fn pattern(path: &str, text: &str, check: &mut Check<'_>) -> bool {
    let wrong = Pattern::new(text).err();
    if let Some(error) = &wrong {
        check.wrong(path, format!("\"{}\" {error}", shortened(text)), "the syntax is that of RE2");
    }
    wrong.is_none()
}

/// A text of which the beginning is enough to find it.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 64;
    if text.chars().count() <= SHOWN {
        text.to_owned()
    } else {
        text.chars().take(SHOWN).chain("...".chars()).collect()
    }
}

fn http_match(found: &HttpRouteRulesMatches, path: &str, check: &mut Check<'_>) {
    if let Some(value) = found.path.as_ref().and_then(|path| path.value.as_deref()) {
        let at = format!("{path}.path.value");
        match found.path.as_ref().and_then(|path| path.r#type.as_ref()) {
            Some(HttpRouteRulesMatchesPathType::RegularExpression) => _ = pattern(&at, value, check),
            _ => path_value(&at, value, check),
        }
    }
    for (index, header) in found.headers.iter().flatten().enumerate() {
        let path = format!("{path}.headers[{index}]");
        check.header(&format!("{path}.name"), &header.name);
        if header.r#type == Some(HttpRouteRulesMatchesHeadersType::RegularExpression) {
            pattern(&format!("{path}.value"), &header.value, check);
        }
    }
    for (index, query) in found.query_params.iter().flatten().enumerate() {
        let path = format!("{path}.queryParams[{index}]");
        if query.name.is_empty() {
            check.wrong(&format!("{path}.name"), "is empty", "");
        }
        if query.r#type == Some(HttpRouteRulesMatchesQueryParamsType::RegularExpression) {
            pattern(&format!("{path}.value"), &query.value, check);
        }
    }
}

/// A path or prefix that a request can have: others never arrive, or not in this form.
fn path_value(path: &str, value: &str, check: &mut Check<'_>) {
    if !value.starts_with('/') {
        return check.wrong(path, format!("\"{value}\" does not start with \"/\""), "");
    }
    if let Err(violation) = weft_policy::canonical::path(value) {
        let hint = "no sidecar forwards such a path";
        check.wrong(path, format!("\"{value}\" matches nothing: {}", violation.detail), hint);
    }
}

fn grpc_match(found: &GrpcRouteRulesMatches, path: &str, check: &mut Check<'_>) {
    for (index, header) in found.headers.iter().flatten().enumerate() {
        let path = format!("{path}.headers[{index}]");
        check.header(&format!("{path}.name"), &header.name);
        if header.r#type == Some(GrpcRouteRulesMatchesHeadersType::RegularExpression) {
            pattern(&format!("{path}.value"), &header.value, check);
        }
    }
    let Some(condition) = &found.method else { return };
    let path = format!("{path}.method");
    let service = condition.service.as_deref().filter(|text| !text.is_empty());
    let method = condition.method.as_deref().filter(|text| !text.is_empty());
    if service.is_none() && method.is_none() {
        return check.wrong(&path, "needs service or method", "");
    }
    if condition.r#type == Some(GrpcRouteRulesMatchesMethodType::RegularExpression) {
        let parts = [("service", service), ("method", method)];
        // Each by itself: together they might be well-formed by accident.
        let parts = parts.map(|(field, text)| text.is_none_or(|text| pattern(&format!("{path}.{field}"), text, check)));
        if parts == [true, true] {
            pattern(&path, &matches::grpc_pattern(service, method), check);
        }
        return;
    }
    if let Some(service) = service.filter(|name| !name.split('.').all(is_identifier)) {
        let hint = "a service is named as in its .proto file, such as shop.v1.Catalog";
        check.wrong(&format!("{path}.service"), format!("\"{service}\" is not the name of a gRPC service"), hint);
    }
    if let Some(method) = method.filter(|name| !is_identifier(name)) {
        check.wrong(&format!("{path}.method"), format!("\"{method}\" is not the name of a gRPC method"), "");
    }
}

fn is_identifier(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

fn timeouts(rule: &Rule, path: &str, check: &mut Check<'_>) {
    let Some(timeouts) = &rule.timeouts else { return };
    let mut read = |name: &str, text: &Option<String>| {
        let value = time(&format!("{path}.timeouts.{name}"), text.as_deref()?, check);
        value.filter(|value| !value.is_zero())
    };
    if let (Some(request), Some(backend)) =
        (read("request", &timeouts.request), read("backendRequest", &timeouts.backend_request))
        && backend > request
    {
        check.wrong(&format!("{path}.timeouts.backendRequest"), "is longer than timeouts.request", "");
    }
}

fn time(path: &str, text: &str, check: &mut Check<'_>) -> Option<std::time::Duration> {
    let value = duration(text);
    if value.is_none() {
        check.wrong(path, format!("\"{text}\" is not a duration"), "such as 10s, 500ms or 1m30s");
    }
    value
}

fn retry(rule: &Rule, path: &str, check: &mut Check<'_>) {
    let Some(retry) = &rule.retry else { return };
    let path = format!("{path}.retry");
    if let Some(attempts) = retry.attempts.filter(|attempts| !(0..=MAX_ATTEMPTS).contains(attempts)) {
        check.wrong(&format!("{path}.attempts"), format!("{attempts} is too many or too few"), "0 to 10");
    }
    for (index, code) in retry.codes.iter().flatten().enumerate() {
        if !(400..=599).contains(code) {
            check.wrong(&format!("{path}.codes[{index}]"), format!("{code} is not an error status"), "400 to 599");
        }
    }
    if let Some(text) = &retry.backoff
        && time(&format!("{path}.backoff"), text, check).is_some_and(|value| value.is_zero())
    {
        check.wrong(&format!("{path}.backoff"), "is 0: retries would come at once", "such as 25ms");
    }
}
