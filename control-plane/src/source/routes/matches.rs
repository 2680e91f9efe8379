//! Matches of routes on the wire, and which of them comes first.

use gateway_api::apis::experimental::{
    grpcroutes::{GrpcRouteRulesMatches, GrpcRouteRulesMatchesHeadersType, GrpcRouteRulesMatchesMethodType},
    httproutes::{
        HttpRouteRulesMatches, HttpRouteRulesMatchesHeadersType, HttpRouteRulesMatchesPathType,
        HttpRouteRulesMatchesQueryParamsType,
    },
};
use weft_proto::v1::{self, path_match::Kind};

use super::word;

/// Precedence among the matches of one kind of route: the larger comes first.
pub type Rank = [usize; 5];

/// A match without its rule.
pub type Ranked = (Rank, v1::RouteMatch);

/// What a rule without matches matches.
pub fn everything() -> Ranked {
    http(&HttpRouteRulesMatches::default())
}

/// A match of an HTTPRoute: an exact path comes first, then a regular expression (Gateway API leaves it open where),
/// then a prefix, the longer one each time; then a method, more headers, more query parameters.
pub fn http(found: &HttpRouteRulesMatches) -> Ranked {
    let value = || found.path.as_ref().and_then(|path| path.value.as_deref()).unwrap_or("/");
    let (class, length, kind) = match found.path.as_ref().and_then(|path| path.r#type.as_ref()) {
        Some(HttpRouteRulesMatchesPathType::Exact) => (2, value().len(), Kind::Exact(value().to_owned())),
        Some(HttpRouteRulesMatchesPathType::RegularExpression) => (1, value().len(), Kind::Regex(value().to_owned())),
        Some(HttpRouteRulesMatchesPathType::PathPrefix) | None => {
            let path = prefix(value());
            (0, path.len(), Kind::Prefix(path))
        }
    };
    let method = found.method.as_ref().map(word).unwrap_or_default();
    let (mut headers, mut query) = (Vec::new(), Vec::new());
    for header in found.headers.iter().flatten() {
        let regex = header.r#type == Some(HttpRouteRulesMatchesHeadersType::RegularExpression);
        add(&mut headers, header.name.to_ascii_lowercase(), &header.value, regex);
    }
    for key in found.query_params.iter().flatten() {
        let regex = key.r#type == Some(HttpRouteRulesMatchesQueryParamsType::RegularExpression);
        add(&mut query, key.name.clone(), &key.value, regex);
    }
    let rank = [class, length, usize::from(!method.is_empty()), headers.len(), query.len()];
    (rank, v1::RouteMatch { rule: 0, path: Some(v1::PathMatch { kind: Some(kind) }), method, headers, query })
}

/// A match of a GRPCRoute: more characters of the service come first, then of the method, then more headers.
pub fn grpc(found: &GrpcRouteRulesMatches) -> Ranked {
    let method = found.method.as_ref();
    let service = method.and_then(|method| method.service.as_deref()).filter(|name| !name.is_empty());
    let name = method.and_then(|method| method.method.as_deref()).filter(|name| !name.is_empty());
    let regex = method.is_some_and(|m| m.r#type == Some(GrpcRouteRulesMatchesMethodType::RegularExpression));
    let kind = match (service, name) {
        (None, None) => Kind::Prefix("/".to_owned()),
        (service, name) if regex => Kind::Regex(grpc_pattern(service, name)),
        (Some(service), Some(name)) => Kind::Exact(format!("/{service}/{name}")),
        (Some(service), None) => Kind::Prefix(format!("/{service}")),
        // A name has only letters, digits and underscores: nothing to escape.
        (None, name) => Kind::Regex(grpc_pattern(None, name)),
    };
    let mut headers = Vec::new();
    for header in found.headers.iter().flatten() {
        let regex = header.r#type == Some(GrpcRouteRulesMatchesHeadersType::RegularExpression);
        add(&mut headers, header.name.to_ascii_lowercase(), &header.value, regex);
    }
    let rank = [service.map_or(0, str::len), name.map_or(0, str::len), headers.len(), 0, 0];
    (rank, v1::RouteMatch { path: Some(v1::PathMatch { kind: Some(kind) }), headers, ..v1::RouteMatch::default() })
}

/// The pattern of a path for patterns of service and method; what is absent matches any.
pub fn grpc_pattern(service: Option<&str>, method: Option<&str>) -> String {
    let part = |text: Option<&str>| text.map_or_else(|| "[^/]+".to_owned(), |text| format!("(?:{text})"));
    format!("/{}/{}", part(service), part(method))
}

fn prefix(path: &str) -> String {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() }
}

/// Of conditions with the same name the first counts, as Gateway API says.
fn add(list: &mut Vec<v1::KeyMatch>, name: String, value: &str, regex: bool) {
    if !list.iter().any(|known| known.name == name) {
        list.push(v1::KeyMatch { name, value: value.to_owned(), regex });
    }
}
