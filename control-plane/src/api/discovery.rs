//! What the API says of itself: versions, groups, resources; in one document for clients that ask for it.

use axum::{
    Json,
    extract::Path,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    kinds::{self, Kind, VERBS},
    status::ApiError,
};

/// The Kubernetes version whose conventions are followed; clients look at major and minor.
pub async fn version() -> Json<Value> {
    let weft = env!("CARGO_PKG_VERSION");
    Json(json!({
        "major": "1", "minor": "33", "gitVersion": format!("v1.33.0+weft-{weft}"), "gitCommit": "",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, arch()),
    }))
}

/// As Go names it, because tools compare it.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// GET `/api`.
pub async fn core(headers: HeaderMap) -> Response {
    if let Some(version) = aggregated(&headers) {
        return discovery_list(version, vec![group_discovery(kinds::CORE)]);
    }
    let addresses = json!([{ "clientCIDR": "0.0.0.0/0", "serverAddress": "" }]);
    Json(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses })).into_response()
}

/// GET `/apis`.
pub async fn groups(headers: HeaderMap) -> Response {
    let named = || kinds::group_versions().map(|(group, _)| group).filter(|group| !group.is_empty());
    if let Some(version) = aggregated(&headers) {
        return discovery_list(version, named().map(group_discovery).collect());
    }
    let groups: Vec<Value> = named().filter_map(group_json).collect();
    Json(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })).into_response()
}

/// GET `/apis/GROUP`.
pub async fn group(Path(name): Path<String>) -> Response {
    match group_json(&name).filter(|_| !name.is_empty()) {
        Some(mut group) => {
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            Json(group).into_response()
        }
        None => ApiError::no_path(&format!("/apis/{name}")).into_response(),
    }
}

/// GET `/api/v1`.
pub async fn core_resources() -> Response {
    resources(kinds::CORE, "v1")
}

/// GET `/apis/GROUP/VERSION`.
pub async fn group_resources(Path((group, version)): Path<(String, String)>) -> Response {
    resources(&group, &version)
}

fn resources(group: &str, version: &str) -> Response {
    if !kinds::group_versions().any(|found| found == (group, version)) {
        return ApiError::no_path(&format!("/apis/{group}/{version}")).into_response();
    }
    let entry = |kind: &Kind, name: String, verbs: &[&str]| json!({ "name": name, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind, "verbs": verbs });
    let mut found = Vec::new();
    for kind in kinds::of(group, version) {
        let mut resource = entry(kind, kind.plural.to_owned(), &VERBS);
        if !kind.short.is_empty() {
            resource["shortNames"] = json!(kind.short);
        }
        resource["categories"] = json!(categories(kind));
        found.push(resource);
        if kind.has_status() {
            found.push(entry(kind, format!("{}/status", kind.plural), &STATUS_VERBS));
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Json(json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": found }))
        .into_response()
}

const STATUS_VERBS: [&str; 3] = ["get", "patch", "update"];

fn categories(kind: &Kind) -> &'static [&'static str] {
    match (kind.kind, kind.group) {
        ("Namespace", _) => &[],
        (_, kinds::WEFT) => &["all", "weft"],
        (_, kinds::GATEWAY) => &["all", "gateway-api"],
        _ => &["all"],
    }
}

fn group_json(name: &str) -> Option<Value> {
    let version = kinds::group_versions().find(|(group, _)| *group == name)?.1;
    let version = json!({ "groupVersion": format!("{name}/{version}"), "version": version });
    Some(json!({ "name": name, "versions": [version], "preferredVersion": version }))
}

/// The version in which the client wants everything at once, if it does.
fn aggregated(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accept.flat_map(|text| text.split(',')).find_map(|wanted| {
        let wanted: Vec<&str> = wanted.split(';').map(str::trim).collect();
        let list = wanted.contains(&"as=APIGroupDiscoveryList") && wanted.contains(&"g=apidiscovery.k8s.io");
        match list {
            true if wanted.contains(&"v=v2") => Some("v2"),
            true if wanted.contains(&"v=v2beta1") => Some("v2beta1"),
            _ => None,
        }
    })
}

fn discovery_list(version: &str, items: Vec<Value>) -> Response {
    let body = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items,
    });
    let mut response = Json(body).into_response();
    let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(value) = HeaderValue::from_str(&content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

fn group_discovery(group: &str) -> Value {
    let versions: Vec<Value> = kinds::group_versions()
        .filter(|(found, _)| *found == group)
        .map(|(group, version)| {
            let resources: Vec<Value> = kinds::of(group, version).map(resource_discovery).collect();
            json!({ "version": version, "resources": resources, "freshness": "Current" })
        })
        .collect();
    let metadata = if group.is_empty() { json!({}) } else { json!({ "name": group }) };
    json!({ "metadata": metadata, "versions": versions })
}

fn resource_discovery(kind: &Kind) -> Value {
    let response_kind = json!({ "group": kind.group, "version": kind.version, "kind": kind.kind });
    let mut resource = json!({
        "resource": kind.plural, "responseKind": response_kind, "singularResource": kind.singular,
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" }, "verbs": VERBS,
        "shortNames": kind.short, "categories": categories(kind),
    });
    if kind.has_status() {
        resource["subresources"] =
            json!([{ "subresource": "status", "responseKind": response_kind, "verbs": STATUS_VERBS }]);
    }
    resource
}
