//! Filters of routes on the wire.

use gateway_api::apis::experimental::httproutes::{
    HttpRouteRulesFiltersCors, HttpRouteRulesFiltersRequestHeaderModifier, HttpRouteRulesFiltersRequestMirror,
    HttpRouteRulesFiltersRequestRedirect, HttpRouteRulesFiltersRequestRedirectPath,
    HttpRouteRulesFiltersRequestRedirectPathType, HttpRouteRulesFiltersType as Type, HttpRouteRulesFiltersUrlRewrite,
};
use weft_proto::v1::{self, filter::Kind, path_modifier};

use super::{Filter, MirrorBackend, same, word};

/// The whole, in parts per million.
const MILLION: u64 = 1_000_000;

/// What a filter does.
#[derive(Debug)]
pub enum Action<'a> {
    /// This.
    Filter(Kind),
    /// A copy goes to a backend that is still to be found, of this share of the requests in parts per million.
    Mirror(&'a MirrorBackend, u32),
    /// Nothing that we can do.
    Unsupported,
}

/// What the filter does. One whose field is missing has not passed the checks: it does nothing that we can do.
pub fn action(filter: &Filter) -> Action<'_> {
    if let (Type::RequestMirror, Some(mirror)) = (&filter.r#type, &filter.request_mirror) {
        return Action::Mirror(&mirror.backend_ref, share(mirror));
    }
    let kind = match filter.r#type {
        Type::RequestHeaderModifier => filter.request_header_modifier.as_ref().map(headers).map(Kind::RequestHeaders),
        Type::ResponseHeaderModifier => {
            // The two modifiers are of different types with the same fields.
            let same = filter.response_header_modifier.as_ref().and_then(same);
            same.as_ref().map(headers).map(Kind::ResponseHeaders)
        }
        Type::RequestRedirect => filter.request_redirect.as_ref().map(redirect).map(Kind::Redirect),
        Type::UrlRewrite => filter.url_rewrite.as_ref().map(rewrite).map(Kind::Rewrite),
        Type::Cors => filter.cors.as_ref().map(cors).map(Kind::Cors),
        Type::RequestMirror | Type::ExtensionRef | Type::ExternalAuth => None,
    };
    kind.map_or(Action::Unsupported, Action::Filter)
}

/// Whether the path's prefix is replaced, by a redirect or a rewrite.
pub fn replaces_prefix(filter: &Filter) -> bool {
    match action(filter) {
        Action::Filter(Kind::Redirect(v1::Redirect { path, .. }) | Kind::Rewrite(v1::Rewrite { path, .. })) => {
            matches!(path.and_then(|path| path.kind), Some(path_modifier::Kind::Prefix(_)))
        }
        _ => false,
    }
}

fn headers(modifier: &HttpRouteRulesFiltersRequestHeaderModifier) -> v1::HeaderModifier {
    let header =
        |name: &str, value: &str| v1::Header { name: name.to_ascii_lowercase(), value: value.trim().to_owned() };
    v1::HeaderModifier {
        set: modifier.set.iter().flatten().map(|field| header(&field.name, &field.value)).collect(),
        add: modifier.add.iter().flatten().map(|field| header(&field.name, &field.value)).collect(),
        remove: modifier.remove.iter().flatten().map(|name| name.to_ascii_lowercase()).collect(),
    }
}

fn path(path: &HttpRouteRulesFiltersRequestRedirectPath) -> Option<v1::PathModifier> {
    let kind = match path.r#type {
        HttpRouteRulesFiltersRequestRedirectPathType::ReplaceFullPath => {
            path_modifier::Kind::Full(path.replace_full_path.clone()?)
        }
        HttpRouteRulesFiltersRequestRedirectPathType::ReplacePrefixMatch => {
            path_modifier::Kind::Prefix(path.replace_prefix_match.clone()?)
        }
    };
    Some(v1::PathModifier { kind: Some(kind) })
}

fn redirect(redirect: &HttpRouteRulesFiltersRequestRedirect) -> v1::Redirect {
    v1::Redirect {
        scheme: redirect.scheme.as_ref().map(word).unwrap_or_default(),
        hostname: redirect.hostname.clone().unwrap_or_default(),
        path: redirect.path.as_ref().and_then(path),
        port: redirect.port.and_then(|port| u32::try_from(port).ok()).unwrap_or_default(),
        // What is out of range is no status.
        status: redirect.status_code.map_or(302, |code| u32::try_from(code).unwrap_or_default()),
    }
}

fn rewrite(rewrite: &HttpRouteRulesFiltersUrlRewrite) -> v1::Rewrite {
    let same = rewrite.path.as_ref().and_then(same);
    v1::Rewrite { hostname: rewrite.hostname.clone().unwrap_or_default(), path: same.as_ref().and_then(path) }
}

fn cors(cors: &HttpRouteRulesFiltersCors) -> v1::Cors {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let names = |names: &Option<Vec<String>>| names.iter().flatten().map(|name| name.to_ascii_lowercase()).collect();
    v1::Cors {
        allow_origins: list(&cors.allow_origins),
        allow_credentials: cors.allow_credentials.unwrap_or_default(),
        allow_methods: list(&cors.allow_methods),
        allow_headers: names(&cors.allow_headers),
        expose_headers: names(&cors.expose_headers),
        max_age: cors.max_age.and_then(|age| u32::try_from(age).ok()).unwrap_or_default(),
    }
}

/// The share of a mirror; a fraction that is not 0 is at least one in a million.
fn share(mirror: &HttpRouteRulesFiltersRequestMirror) -> u32 {
    let number = |number: i32| u64::try_from(number).unwrap_or_default();
    let ppm = match (&mirror.fraction, mirror.percent) {
        (Some(fraction), _) => {
            let (part, whole) = (number(fraction.numerator), number(fraction.denominator.unwrap_or(100)).max(1));
            (part * MILLION / whole).max(part.min(1))
        }
        (None, Some(percent)) => number(percent) * MILLION / 100,
        (None, None) => MILLION,
    };
    u32::try_from(ppm.min(MILLION)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_mirror_is_a_percentage_or_a_fraction_or_all() {
        for (written, ppm) in [
            (serde_json::json!({}), 1_000_000),
            (serde_json::json!({ "percent": 0 }), 0),
            (serde_json::json!({ "percent": 42 }), 420_000),
            (serde_json::json!({ "fraction": { "numerator": 1 } }), 10_000),
            (serde_json::json!({ "fraction": { "numerator": 1, "denominator": 3 } }), 333_333),
            (serde_json::json!({ "fraction": { "numerator": 1, "denominator": 2_000_000_000 } }), 1),
            (serde_json::json!({ "fraction": { "numerator": 0, "denominator": 7 } }), 0),
        ] {
            let mut mirror = written.clone();
            mirror["backendRef"] = serde_json::json!({ "name": "m", "port": 80 });
            assert_eq!(share(&serde_json::from_value(mirror).expect("a mirror")), ppm, "{written}");
        }
    }
}
