//! Requests to the operator API, counted by verb, kind and code: words of ours, whatever a client sends.

use std::time::Instant;

use axum::{
    extract::{Request, State},
    http::{Method, Uri},
    middleware::Next,
    response::Response,
};

use super::Metrics;
use crate::api::access::rules::Asked;

const OTHER: &str = "other";
const VERBS: [&str; 9] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "post"];
/// First words of Weft's own paths, below `/weft/v1/`.
const PATHS: [&str; 14] = [
    "ca",
    "edges",
    "endpoints",
    "explain",
    "graph",
    "history",
    "prometheus",
    "proxies",
    "resources",
    "rollback",
    "stat",
    "tap",
    "tokens",
    "traces",
];

/// The middleware of all paths, around the check of who asks.
pub async fn measure(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let (verb, kind) = words(request.method(), request.uri());
    let started = Instant::now();
    let response = next.run(request).await;
    let code = response.status();
    let labels = [("verb", verb), ("kind", &*kind), ("code", code.as_str())];
    let registry = metrics.registry();
    registry.counter("weft_api_requests_total", "Requests to the operator API", &labels).increment(1);
    // A watch lasts for as long as its client likes: this is the time to the head of its answer.
    let help = "Time to the head of an answer of the operator API";
    registry.timer("weft_api_request_duration_seconds", help, &[("verb", verb)]).record(started.elapsed());
    response
}

/// Verb and kind of a request.
fn words(method: &Method, uri: &Uri) -> (&'static str, String) {
    let (verb, kind) = match Asked::of(method, uri) {
        // Only kinds that are served come out of the parser.
        Asked::Resource { verb, resource, .. } => (verb, resource),
        Asked::Path { verb, path, .. } => (verb, group(&path).to_owned()),
    };
    let verb = VERBS.into_iter().find(|known| *known == verb).unwrap_or(OTHER);
    (verb, kind)
}

fn group(path: &str) -> &'static str {
    let mut words = path.split('/').skip(1);
    match (words.next(), words.next(), words.next()) {
        (Some("weft"), Some("v1"), Some(word)) => PATHS.into_iter().find(|known| *known == word).unwrap_or(OTHER),
        (Some("healthz" | "livez" | "readyz"), None, _) => "probe",
        (Some("metrics"), None, _) => "metrics",
        (Some("api" | "apis" | "openapi" | "version"), ..) => "discovery",
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &str, path: &str) -> (&'static str, String) {
        words(&method.parse().expect("a method"), &path.parse().expect("a path"))
    }

    #[test]
    fn verbs_and_kinds_are_words_of_ours() {
        for (method, path, verb, kind) in [
            ("GET", "/api/v1/namespaces/a/services", "list", "services"),
            ("GET", "/api/v1/services?watch=true", "watch", "services"),
            ("PATCH", "/apis/weft.dev/v1alpha1/namespaces/a/trafficpolicies/b", "patch", "trafficpolicies.weft.dev"),
            ("GET", "/weft/v1/proxies", "get", "proxies"),
            ("GET", "/weft/v1/stat", "get", "stat"),
            ("GET", "/weft/v1/edges", "get", "edges"),
            ("POST", "/weft/v1/rollback", "post", "rollback"),
            ("GET", "/metrics", "get", "metrics"),
            ("GET", "/readyz", "get", "probe"),
            ("GET", "/apis", "get", "discovery"),
            ("GET", "/weft/v1/whatever/it/is", "get", "other"),
            ("BREW", "/api/v1/namespaces/a/services/b", "other", "services"),
            ("BREW", "/coffee", "other", "other"),
        ] {
            assert_eq!(of(method, path), (verb, kind.to_owned()), "{method} {path}");
        }
    }

    #[test]
    fn hostile_paths_and_methods_make_no_series() {
        let mut kinds = std::collections::BTreeSet::new();
        for number in 0..10_000 {
            kinds.insert(of(&format!("M{number}"), &format!("/weft/v1/x{number}")));
            kinds.insert(of("GET", &format!("/api/v1/namespaces/n{number}/services/s{number}")));
            kinds.insert(of("GET", &format!("/apis/g{number}/v1/k{number}")));
        }
        assert!(kinds.len() <= 4, "{kinds:?}");
    }
}
