//! What a request is about: the kind, namespace, name and subresource of its path, and the options of its query.

use std::str::FromStr;

use axum::http::Uri;

use super::{
    kinds::{self, Kind},
    selectors::Selector,
    status::ApiError,
    table::Include,
};

/// The path of a resource.
#[derive(Clone, Debug)]
pub struct Target {
    /// The kind.
    pub kind: &'static Kind,
    /// Namespace; none for all, and for kinds without.
    pub namespace: Option<String>,
    /// Name; none for the collection.
    pub name: Option<String>,
    /// Whether it is the status subresource.
    pub status: bool,
}

impl Target {
    /// Reads `/api/v1/...` and `/apis/GROUP/VERSION/...`.
    ///
    /// # Errors
    /// 404 when nothing is served there.
    pub fn parse(path: &str) -> Result<Self, ApiError> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let found = match parts.as_slice() {
            ["api", version, rest @ ..] => Self::of(kinds::CORE, version, rest),
            ["apis", group, version, rest @ ..] => Self::of(group, version, rest),
            _ => None,
        };
        found.ok_or_else(|| ApiError::no_path(path))
    }

    fn of(group: &str, version: &str, rest: &[&str]) -> Option<Self> {
        let (namespace, rest) = match rest {
            // The namespace itself: the other readings have a plural in third place.
            ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status"] => (None, rest),
            ["namespaces", namespace, inner @ ..] => (Some((*namespace).to_owned()), inner),
            _ => (None, rest),
        };
        let (plural, name, status) = match rest {
            [plural] => (plural, None, false),
            [plural, name] => (plural, Some((*name).to_owned()), false),
            [plural, name, "status"] => (plural, Some((*name).to_owned()), true),
            _ => return None,
        };
        let kind = kinds::by_plural(group, version, plural)?;
        let placed = if kind.namespaced { namespace.is_some() || name.is_none() } else { namespace.is_none() };
        (placed && (!status || kind.has_status())).then_some(Self { kind, namespace, name, status })
    }

    /// The name, of a path that has one.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Key in the store of the object of this name.
    #[must_use]
    pub fn key(&self, name: &str) -> crate::store::Key {
        crate::store::Key::new(self.kind.kind, self.namespace.as_deref().unwrap_or_default(), name)
    }
}

/// What becomes of fields that a kind does not have.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum FieldValidation {
    /// They are dropped in silence.
    Ignore,
    /// The request is refused. Weft's default: an unknown field is nearly always a mistake.
    #[default]
    Strict,
    /// They are dropped with a warning.
    Warn,
}

/// The query of a request. Parameters that are not known are passed over, as in Kubernetes.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What lists and watches are limited to.
    pub selector: Selector,
    /// Most objects of a list; 0 for all.
    pub limit: usize,
    /// Where a list goes on.
    pub continue_at: Option<String>,
    /// As given: empty, 0 or a revision.
    pub resource_version: Option<u64>,
    /// `Exact` or `NotOlderThan`.
    pub exact: bool,
    /// Whether a list is to be followed.
    pub watch: bool,
    /// Whether a watch wants to be told of revisions without events.
    pub bookmarks: bool,
    /// Whether a watch begins with what there is, when it says so.
    pub send_initial_events: Option<bool>,
    /// Seconds after which a watch ends.
    pub timeout: Option<u64>,
    /// Nothing is written.
    pub dry_run: bool,
    /// What becomes of unknown fields.
    pub field_validation: FieldValidation,
    /// How much of an object comes with its row.
    pub include: Include,
    /// Why, for the history.
    pub reason: Option<String>,
}

impl Options {
    /// Reads the query.
    ///
    /// # Errors
    /// 400 with the parameter and its value.
    pub fn parse(uri: &Uri) -> Result<Self, ApiError> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| ApiError::bad_request(format!("the query cannot be read: {error}")))?
            .0;
        let get = |name: &str| {
            pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
        };
        let selector = Selector::parse(get("labelSelector").unwrap_or(""), get("fieldSelector").unwrap_or(""))
            .map_err(ApiError::bad_request)?;
        let dry_run = match get("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => return Err(wrong("dryRun", other, "All")),
        };
        let field_validation = match get("fieldValidation") {
            None | Some("Strict") => FieldValidation::Strict,
            Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => return Err(wrong("fieldValidation", other, "one of Strict, Warn, Ignore")),
        };
        let exact = match get("resourceVersionMatch") {
            None | Some("NotOlderThan") => false,
            Some("Exact") => true,
            Some(other) => return Err(wrong("resourceVersionMatch", other, "Exact or NotOlderThan")),
        };
        let flag = |name| get(name).map(|value| boolean(name, value)).transpose();
        Ok(Self {
            selector,
            limit: number("limit", get("limit"))?.unwrap_or(0),
            continue_at: get("continue").map(str::to_owned),
            resource_version: number("resourceVersion", get("resourceVersion"))?,
            exact,
            watch: flag("watch")?.unwrap_or(false),
            bookmarks: flag("allowWatchBookmarks")?.unwrap_or(false),
            send_initial_events: flag("sendInitialEvents")?,
            timeout: number("timeoutSeconds", get("timeoutSeconds"))?,
            dry_run,
            field_validation,
            include: Include::parse(get("includeObject")).map_err(ApiError::bad_request)?,
            reason: get("reason").map(str::to_owned),
        })
    }
}

fn wrong(name: &str, value: &str, expected: &str) -> ApiError {
    ApiError::bad_request(format!("{name}: {value:?} is not {expected}"))
}

fn number<T: FromStr>(name: &str, value: Option<&str>) -> Result<Option<T>, ApiError> {
    value.map(|text| text.parse().map_err(|_| wrong(name, text, "a number of this range"))).transpose()
}

fn boolean(name: &str, value: &str) -> Result<bool, ApiError> {
    match value {
        "true" | "1" | "True" => Ok(true),
        "false" | "0" | "False" => Ok(false),
        other => Err(wrong(name, other, "true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_kind_namespace_name_and_subresource() {
        for (path, kind, namespace, name, status) in [
            ("/api/v1/namespaces", "Namespace", None, None, false),
            ("/api/v1/namespaces/shop", "Namespace", None, Some("shop"), false),
            ("/api/v1/namespaces/shop/status", "Namespace", None, Some("shop"), true),
            ("/api/v1/services", "Service", None, None, false),
            ("/api/v1/namespaces/shop/services", "Service", Some("shop"), None, false),
            ("/api/v1/namespaces/shop/services/cart/status", "Service", Some("shop"), Some("cart"), true),
            ("/apis/weft.dev/v1alpha1/meshconfigs/default", "MeshConfig", None, Some("default"), false),
            ("/apis/weft.dev/v1alpha1/namespaces/a/trafficpolicies/p", "TrafficPolicy", Some("a"), Some("p"), false),
        ] {
            let target = Target::parse(path).expect(path);
            assert_eq!(target.kind.kind, kind);
            assert_eq!((target.namespace.as_deref(), target.name.as_deref(), target.status), (namespace, name, status));
        }
    }

    #[test]
    fn what_is_not_served_is_not_found() {
        for path in [
            "/api/v2/services",
            "/api/v1/pods",
            "/api/v1/services/cart",
            "/api/v1/namespaces/shop/services/cart/scale",
            "/apis/weft.dev/v1alpha1/namespaces/a/meshconfigs",
            "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices/x/status",
            "/apis/weft.dev/v1/trafficpolicies",
        ] {
            assert_eq!(Target::parse(path).expect_err(path).code(), 404);
        }
    }

    #[test]
    fn a_bad_option_is_named_with_its_value() {
        for (query, says) in [
            ("limit=x", "limit: \"x\" is not a number"),
            ("watch=maybe", "watch: \"maybe\" is not true or false"),
            ("dryRun=Some", "dryRun: \"Some\" is not All"),
            ("fieldValidation=No", "fieldValidation: \"No\" is not one of"),
            ("labelSelector=a%20b", "labelSelector: "),
            ("resourceVersion=-1", "resourceVersion: \"-1\""),
        ] {
            let uri: Uri = format!("/api/v1/services?{query}").parse().expect("a URI");
            let error = Options::parse(&uri).expect_err(query).to_json();
            assert!(error["message"].as_str().unwrap().starts_with(says), "{error}");
        }
    }
}
