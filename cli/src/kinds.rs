//! The kinds that a server has, by every name that people use for them, and the paths of their objects.

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::Value;
use weft_control_plane::source::did_you_mean;

use crate::server::{Call, Server};

/// Everything at once, where the server can; then the old form, which is refused below.
const ACCEPT: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// One kind.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Kind {
    /// API group; empty for core kinds.
    pub group: String,
    /// Version, such as `v1`.
    pub version: String,
    /// Such as `HTTPRoute`.
    pub kind: String,
    /// Its name in URLs.
    pub plural: String,
    /// Name of one for people.
    pub singular: String,
    /// Other names for people.
    pub short: Vec<String>,
    /// Names of the sets that it belongs to.
    pub categories: Vec<String>,
    /// Whether its objects have a namespace.
    pub namespaced: bool,
}

impl Kind {
    /// `singular.group/name`, as results are told.
    pub fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.qualified(&self.singular))
    }

    fn qualified(&self, name: &str) -> String {
        if self.group.is_empty() { name.to_owned() } else { format!("{name}.{}", self.group) }
    }

    /// The path of the collection, in one namespace or over all; or of one object.
    pub fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let root = match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        let namespace = namespace.filter(|_| self.namespaced).map(|name| format!("/namespaces/{name}"));
        let name = name.map(|name| format!("/{name}"));
        format!("{root}{}/{}{}", namespace.unwrap_or_default(), self.plural, name.unwrap_or_default())
    }

    /// Whether `word`, in lower case, names it: short, singular, plural or kind, with or without group.
    fn is(&self, word: &str) -> bool {
        let plain = |word: &str| {
            let names = [&self.plural, &self.singular];
            names.into_iter().chain(&self.short).any(|name| name.as_str() == word) || self.kind.to_lowercase() == word
        };
        let Some((name, group)) = word.split_once('.') else { return plain(word) };
        let versioned = format!("{}.{}", self.version, self.group);
        plain(name) && (group == self.group || group == versioned)
    }
}

/// The kinds of a server, core kinds first.
#[derive(Clone, Debug, Default)]
pub struct Kinds(Vec<Kind>);

impl Kinds {
    /// Asks the server.
    pub async fn discover(server: &Server) -> anyhow::Result<Self> {
        let mut found = Vec::new();
        for path in ["/api", "/apis"] {
            let list = server.call(Call::new(Method::GET, path).accept(ACCEPT)).await?;
            let groups = list["items"].as_array();
            let groups =
                groups.with_context(|| format!("{}{path}: no list of kinds; is this an API?", server.url()))?;
            groups.iter().for_each(|group| kinds_of(group, &mut found));
        }
        Ok(Self(found))
    }

    /// The kind that a word means.
    pub fn named(&self, word: &str) -> anyhow::Result<&Kind> {
        let lower = word.to_lowercase();
        if let Some(kind) = self.0.iter().find(|kind| kind.is(&lower)) {
            return Ok(kind);
        }
        let names =
            || self.0.iter().flat_map(|kind| [kind.plural.as_str(), kind.singular.as_str(), kind.kind.as_str()]);
        // A short name with an s, as in `svcs`, is nearer to the short name than to any other.
        let short = || self.0.iter().flat_map(|kind| &kind.short).find(|short| lower == format!("{short}s"));
        let hint = short().map_or_else(|| did_you_mean(word, names()), |short| format!("did you mean {short:?}?"));
        if !hint.is_empty() {
            bail!("kind {word:?}: the server has no such kind; {hint}");
        }
        let known: Vec<&str> = self.0.iter().map(|kind| kind.plural.as_str()).collect();
        bail!("kind {word:?}: the server has no such kind; it has {}", known.join(", "))
    }

    /// The kinds that a list of words and categories (`svc,httproutes`, `weft`, `all`) means.
    pub fn several(&self, words: &str) -> anyhow::Result<Vec<&Kind>> {
        let mut found: Vec<&Kind> = Vec::new();
        for word in words.split(',') {
            let category = |kind: &&Kind| kind.categories.iter().any(|name| name == word);
            let mut these: Vec<&Kind> = self.0.iter().filter(category).collect();
            if these.is_empty() {
                these.push(self.named(word)?);
            }
            these.retain(|kind| !found.contains(kind));
            found.extend(these);
        }
        Ok(found)
    }

    /// The kind of an object.
    pub fn of(&self, api_version: &str, kind: &str) -> Option<&Kind> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.0.iter().find(|known| known.group == group && known.version == version && known.kind == kind)
    }
}

/// Adds the kinds of a group, in the version that its server prefers.
fn kinds_of(group: &Value, found: &mut Vec<Kind>) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let texts = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    for version in group["versions"].as_array().into_iter().flatten() {
        for resource in version["resources"].as_array().into_iter().flatten() {
            let kind = text(&resource["responseKind"]["kind"]);
            found.push(Kind {
                group: text(&group["metadata"]["name"]),
                version: text(&version["version"]),
                plural: text(&resource["resource"]),
                singular: Some(text(&resource["singularResource"]))
                    .filter(|name| !name.is_empty())
                    .unwrap_or_else(|| kind.to_lowercase()),
                short: texts(&resource["shortNames"]),
                categories: texts(&resource["categories"]),
                namespaced: resource["scope"] == "Namespaced",
                kind,
            });
        }
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    /// Two kinds, one of them in a group.
    pub fn example() -> Kinds {
        let resource = |plural: &str, kind: &str, short: Value, scope: &str| {
            json!({"resource": plural, "scope": scope,
            "responseKind": {"kind": kind}, "shortNames": short, "categories": ["all"]})
        };
        let mut kinds = Vec::new();
        let core = json!({"metadata": {}, "versions": [{"version": "v1", "resources": [
            resource("services", "Service", json!(["svc"]), "Namespaced"),
            resource("namespaces", "Namespace", json!(["ns"]), "Cluster")]}]});
        let routes = json!({"metadata": {"name": "gateway.networking.k8s.io"}, "versions": [{"version": "v1",
            "resources": [resource("httproutes", "HTTPRoute", json!([]), "Namespaced")]}]});
        kinds_of(&core, &mut kinds);
        kinds_of(&routes, &mut kinds);
        Kinds(kinds)
    }

    #[test]
    fn a_kind_has_many_names() {
        let kinds = example();
        for word in ["svc", "service", "Services", "SERVICE", "services"] {
            assert_eq!(kinds.named(word).unwrap().kind, "Service", "{word}");
        }
        for word in ["HTTPRoute", "httproutes.gateway.networking.k8s.io", "httproute.v1.gateway.networking.k8s.io"] {
            assert_eq!(kinds.named(word).unwrap().kind, "HTTPRoute", "{word}");
        }
        assert!(kinds.named("httproute.example.org").is_err());
    }

    #[test]
    fn a_mistyped_kind_is_answered_with_the_right_one() {
        let error = example().named("servcie").unwrap_err().to_string();
        assert_eq!(error, "kind \"servcie\": the server has no such kind; did you mean \"Service\"?");
        let error = example().named("svcs").unwrap_err().to_string();
        assert_eq!(error, "kind \"svcs\": the server has no such kind; did you mean \"svc\"?");
        let error = example().named("banana").unwrap_err().to_string();
        assert!(error.ends_with("it has services, namespaces, httproutes"), "{error}");
    }

    #[test]
    fn lists_and_categories_name_each_kind_once() {
        let kinds = example();
        let names = |words| kinds.several(words).unwrap().iter().map(|kind| kind.kind.clone()).collect::<Vec<_>>();
        assert_eq!(names("ns,svc,service"), ["Namespace", "Service"]);
        assert_eq!(names("ns,all"), ["Namespace", "Service", "HTTPRoute"]);
        assert!(kinds.several("svc,").is_err());
    }

    #[test]
    fn paths_have_namespaces_where_the_kind_has() {
        let kinds = example();
        let service = kinds.named("svc").unwrap();
        assert_eq!(service.path(Some("shop"), Some("a")), "/api/v1/namespaces/shop/services/a");
        assert_eq!(service.path(None, None), "/api/v1/services");
        assert_eq!(kinds.named("ns").unwrap().path(Some("shop"), Some("a")), "/api/v1/namespaces/a");
        let route = kinds.of("gateway.networking.k8s.io/v1", "HTTPRoute").unwrap();
        assert_eq!(route.path(Some("x"), None), "/apis/gateway.networking.k8s.io/v1/namespaces/x/httproutes");
        assert_eq!(route.shown("r"), "httproute.gateway.networking.k8s.io/r");
    }
}
