//! What a role may do: decisions on verbs, resources and namespaces. Knows no tokens, and reads nothing but the method
//! and address of a request. What is not told apart here is for administrators.

use std::fmt;

use axum::http::{Method, Uri};
use serde::{Deserialize, Serialize};

use super::super::{Caller, kinds, target::Target};

/// What the holder of a token may do.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything, tokens too.
    Admin,
    /// Reads, and writes of objects.
    Editor,
    /// Reads, and requests as they end: their paths may tell more than any object.
    Observer,
    /// Reads.
    Viewer,
}

impl Role {
    const fn writes(self) -> bool {
        matches!(self, Self::Admin | Self::Editor)
    }

    const fn taps(self) -> bool {
        matches!(self, Self::Admin | Self::Observer)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "admin",
            Self::Editor => "editor",
            Self::Observer => "observer",
            Self::Viewer => "viewer",
        })
    }
}

/// Requests as they end.
pub const TAP: &str = "/weft/v1/tap";

/// Why something is not allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Forbidden {
    /// It is outside the token's namespace.
    Namespace,
    /// The role does not go that far.
    Role,
}

/// What a request wants, for the decision and for the text of its refusal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Asked {
    /// A verb on objects of a kind.
    Resource {
        /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
        verb: String,
        /// `plural.group`, or the plural.
        resource: String,
        /// Namespace; none for all, and for kinds without.
        namespace: Option<String>,
        /// Name; none for the collection.
        name: Option<String>,
    },
    /// A read or write of Weft's own.
    Path {
        /// Method in lower case.
        verb: String,
        /// Path.
        path: String,
        /// Namespaces that the query names, when it limits the answer to them.
        namespaces: Vec<String>,
    },
}

/// Served to everybody without a token: they say nothing but that the process lives.
#[must_use]
pub fn is_public(path: &str) -> bool {
    matches!(path, "/healthz" | "/livez" | "/readyz")
}

impl Asked {
    /// Reads method and address, with the same parser as the handlers: there is no second opinion of what a path means.
    #[must_use]
    pub fn of(method: &Method, uri: &Uri) -> Self {
        let path = uri.path();
        let read = matches!(*method, Method::GET | Method::HEAD);
        if let Ok(target) = Target::parse(path) {
            let query = uri.query().unwrap_or_default();
            let verb = match (method.as_str(), &target.name) {
                ("GET" | "HEAD", _) if watches(query) => "watch",
                ("GET" | "HEAD", Some(_)) => "get",
                ("GET" | "HEAD", None) => "list",
                ("POST", _) => "create",
                ("PUT", _) => "update",
                ("PATCH", _) => "patch",
                ("DELETE", Some(_)) => "delete",
                ("DELETE", None) => "deletecollection",
                _ => "use an unknown method on",
            };
            let resource = target.kind.resource();
            return Self::Resource { verb: verb.into(), resource, namespace: target.namespace, name: target.name };
        }
        let verb = if read { "get".to_owned() } else { method.as_str().to_lowercase() };
        let namespaces = match path {
            "/weft/v1/history" | TAP => values(uri, "namespace"),
            "/weft/v1/explain" => {
                let workloads = values(uri, "from");
                workloads.iter().map(|from| from.split('/').next().unwrap_or_default().to_owned()).collect()
            }
            _ => Vec::new(),
        };
        Self::Path { verb, path: path.to_owned(), namespaces }
    }

    /// Whether the answer may last long.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        match self {
            Self::Resource { verb, .. } => verb == "watch",
            Self::Path { path, .. } => matches!(path.as_str(), "/weft/v1/stat" | "/weft/v1/edges" | TAP),
        }
    }

    /// Whether this caller may.
    ///
    /// # Errors
    /// Why not.
    pub fn allowed(&self, caller: &Caller) -> Result<(), Forbidden> {
        match self {
            Self::Resource { verb, resource, namespace, name } => {
                let read = matches!(verb.as_str(), "get" | "list" | "watch");
                if !read && !caller.role.writes() {
                    return Err(Forbidden::Role);
                }
                let Some(own) = &caller.namespace else { return Ok(()) };
                // Its own Namespace may be looked at: it is not in a namespace itself.
                let itself = read && resource == "namespaces" && namespace.is_none() && name.as_ref() == Some(own);
                if itself || namespace.as_ref() == Some(own) { Ok(()) } else { Err(Forbidden::Namespace) }
            }
            Self::Path { verb, path, namespaces } => own_path(caller, verb == "get", path, namespaces),
        }
    }
}

fn own_path(caller: &Caller, read: bool, path: &str, namespaces: &[String]) -> Result<(), Forbidden> {
    match path {
        // Spans are of all namespaces, and they may say more than any object does.
        _ if crate::traces::jaeger::serves(path) => {
            return match (read, &caller.namespace) {
                (false, _) if caller.role != Role::Admin => Err(Forbidden::Role),
                (_, Some(_)) => Err(Forbidden::Namespace),
                (_, None) => Ok(()),
            };
        }
        // What is served, and who asks.
        "/version" | "/version/" | "/api" | "/apis" if read => return Ok(()),
        // Of a service in a namespace that the caller may read.
        "/sampling" if read => return Ok(()),
        _ if read && ["/api/", "/apis/", "/openapi/"].iter().any(|prefix| path.starts_with(prefix)) => return Ok(()),
        super::review::WHO | super::review::CAN => return Ok(()),
        "/weft/v1/tokens" if caller.role != Role::Admin => return Err(Forbidden::Role),
        _ if path.starts_with("/weft/v1/tokens/") && caller.role != Role::Admin => return Err(Forbidden::Role),
        "/weft/v1/ca" if caller.role != Role::Admin => return Err(Forbidden::Role),
        _ if path.starts_with("/weft/v1/ca/") && caller.role != Role::Admin => return Err(Forbidden::Role),
        // The handler looks at the namespace: it is in the body.
        "/weft/v1/rollback" => return if caller.role.writes() { Ok(()) } else { Err(Forbidden::Role) },
        TAP if !caller.role.taps() => return Err(Forbidden::Role),
        _ => {}
    }
    if !read && caller.role != Role::Admin {
        return Err(Forbidden::Role);
    }
    let Some(own) = &caller.namespace else { return Ok(()) };
    match path {
        // These answers leave out what is not the caller's; the chain of hashes tells of no object.
        "/weft/v1/proxies" | "/weft/v1/endpoints" | "/weft/v1/graph" | "/weft/v1/history/verify" => Ok(()),
        "/weft/v1/stat" | "/weft/v1/edges" => Ok(()),
        // Without one it is the own one.
        TAP if namespaces.iter().all(|namespace| namespace == own) => Ok(()),
        "/weft/v1/prometheus/targets" => Ok(()),
        // No limit is not a limit, and each value that is given has to be the own one.
        "/weft/v1/history" | "/weft/v1/explain"
            if !namespaces.is_empty() && namespaces.iter().all(|namespace| namespace == own) =>
        {
            Ok(())
        }
        _ => Err(Forbidden::Namespace),
    }
}

fn watches(query: &str) -> bool {
    form_urlencoded::parse(query.as_bytes())
        .any(|(key, value)| key == "watch" && matches!(&*value, "1" | "true" | "True"))
}

fn values(uri: &Uri, name: &str) -> Vec<String> {
    let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    pairs.filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource { verb, resource, namespace, .. } => {
                write!(f, "{verb} resource {resource:?}")?;
                let scoped =
                    resource == "*" || kinds::KINDS.iter().any(|kind| kind.namespaced && kind.resource() == *resource);
                match namespace {
                    Some(namespace) => write!(f, " in namespace {namespace:?}"),
                    None if scoped => f.write_str(" in all namespaces"),
                    None => f.write_str(" at the cluster scope"),
                }
            }
            Self::Path { verb, path, .. } => write!(f, "{verb} path {path:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role, namespace: Option<&str>) -> Caller {
        Caller { name: "x".into(), role, namespace: namespace.map(str::to_owned) }
    }

    fn asked(request: &str) -> Asked {
        let (method, uri) = request.split_once(' ').expect("method and address");
        Asked::of(&method.parse().expect("a method"), &uri.parse().expect("an address"))
    }

    /// Whether viewer, editor and admin may, then viewer and editor of the namespace shop.
    fn table(request: &str) -> String {
        let callers = [
            caller(Role::Viewer, None),
            caller(Role::Editor, None),
            caller(Role::Admin, None),
            caller(Role::Viewer, Some("shop")),
            caller(Role::Editor, Some("shop")),
        ];
        let answer = |caller: &Caller| match asked(request).allowed(caller) {
            Ok(()) => 'y',
            Err(Forbidden::Role) => 'r',
            Err(Forbidden::Namespace) => 'n',
        };
        callers.iter().map(answer).collect()
    }

    #[test]
    fn a_role_reaches_as_far_as_the_table_says() {
        for (request, expected) in [
            ("GET /api/v1/namespaces/shop/services", "yyyyy"),
            ("HEAD /api/v1/namespaces/shop/services/cart", "yyyyy"),
            ("GET /api/v1/namespaces/shop/services?watch=1", "yyyyy"),
            ("GET /api/v1/namespaces/bank/services", "yyynn"),
            ("GET /api/v1/services", "yyynn"),
            ("GET /api/v1/namespaces", "yyynn"),
            ("GET /api/v1/namespaces/shop", "yyyyy"),
            ("GET /api/v1/namespaces/bank", "yyynn"),
            ("PUT /api/v1/namespaces/shop/services/cart", "ryyry"),
            ("PATCH /api/v1/namespaces/shop/services/cart/status", "ryyry"),
            ("POST /api/v1/namespaces/bank/services", "ryyrn"),
            ("DELETE /api/v1/namespaces/shop/services", "ryyry"),
            ("DELETE /api/v1/services", "ryyrn"),
            ("DELETE /api/v1/namespaces/shop", "ryyrn"),
            ("TRACE /api/v1/namespaces/shop/services", "ryyry"),
            ("GET /apis/weft.dev/v1alpha1/meshconfigs/default", "yyynn"),
            ("PUT /apis/weft.dev/v1alpha1/meshconfigs/default", "ryyrn"),
            ("GET /version/", "yyyyy"),
            ("GET /api", "yyyyy"),
            ("GET /apis/", "yyyyy"),
            ("GET /apis/weft.dev/v1alpha1", "yyyyy"),
            ("GET /openapi/v3/api/v1", "yyyyy"),
            ("GET /metrics", "yyynn"),
            ("GET /weft/v1/proxies", "yyyyy"),
            ("GET /weft/v1/prometheus/targets", "yyyyy"),
            ("GET /weft/v1/graph", "yyyyy"),
            ("GET /weft/v1/resources/errors", "yyynn"),
            ("GET /weft/v1/history", "yyynn"),
            ("GET /weft/v1/history?namespace=shop", "yyyyy"),
            ("GET /weft/v1/history?namespace=shop&namespace=bank", "yyynn"),
            ("GET /weft/v1/history?namespace=", "yyynn"),
            ("GET /weft/v1/history?n%61mespace=b%61nk&namespace=shop", "yyynn"),
            ("GET /weft/v1/explain?url=http://cart", "yyynn"),
            ("GET /weft/v1/explain?url=http://cart&from=shop/web", "yyyyy"),
            ("GET /weft/v1/explain?url=http://cart&from=bank/web", "yyynn"),
            ("GET /weft/v1/explain?url=http://cart&from=bank&from=shop", "yyynn"),
            ("GET /weft/v1/traces", "yyynn"),
            ("GET /weft/v1/traces/4bf92f3577b34da6a3ce929d0e0e4736", "yyynn"),
            ("GET /api/services", "yyynn"),
            ("GET /api/services/web/operations", "yyynn"),
            ("GET /api/traces?service=web", "yyynn"),
            ("GET /api/traces/4bf92f3577b34da6a3ce929d0e0e4736", "yyynn"),
            ("GET /api/dependencies", "yyynn"),
            ("GET /api/v3/services", "yyynn"),
            ("GET /api/v3/traces/4bf92f3577b34da6a3ce929d0e0e4736", "yyynn"),
            ("POST /api/traces", "rryrr"),
            ("POST /weft/v1/rollback", "ryyry"),
            ("GET /weft/v1/tokens", "rryrr"),
            ("POST /weft/v1/tokens", "rryrr"),
            ("DELETE /weft/v1/tokens/x", "rryrr"),
            ("GET /weft/v1/ca", "rryrr"),
            ("GET /weft/v1/ca/audit", "rryrr"),
            ("POST /weft/v1/ca/rotation", "rryrr"),
            ("POST /weft/v1/ca/revocations", "rryrr"),
            ("DELETE /weft/v1/ca/revocations/x", "rryrr"),
            ("GET /weft/v1/stat", "yyyyy"),
            ("GET /weft/v1/edges?watch=true&namespace=bank", "yyyyy"),
            ("GET /weft/v1/tap", "rryrr"),
            ("POST /weft/v1/tap", "rryrr"),
            ("POST /weft/v1/whatever", "rryrr"),
            ("GET /weft/v1/whatever", "yyynn"),
            ("POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "yyyyy"),
            ("POST /apis/weft.dev/v1alpha1", "rryrr"),
        ] {
            assert_eq!(table(request), expected, "{request}");
        }
    }

    #[test]
    fn an_observer_reads_and_taps_in_its_namespace_and_writes_nothing() {
        let (all, shop) = (caller(Role::Observer, None), caller(Role::Observer, Some("shop")));
        for (request, of_all, of_shop) in [
            ("GET /weft/v1/tap", Ok(()), Ok(())),
            ("GET /weft/v1/tap?namespace=shop", Ok(()), Ok(())),
            ("GET /weft/v1/tap?namespace=bank", Ok(()), Err(Forbidden::Namespace)),
            ("GET /weft/v1/tap?namespace=shop&namespace=bank", Ok(()), Err(Forbidden::Namespace)),
            ("GET /weft/v1/stat", Ok(()), Ok(())),
            ("GET /api/v1/namespaces/shop/services", Ok(()), Ok(())),
            ("PUT /api/v1/namespaces/shop/services/cart", Err(Forbidden::Role), Err(Forbidden::Role)),
            ("POST /weft/v1/rollback", Err(Forbidden::Role), Err(Forbidden::Role)),
            ("POST /weft/v1/tap", Err(Forbidden::Role), Err(Forbidden::Role)),
            ("GET /weft/v1/tokens", Err(Forbidden::Role), Err(Forbidden::Role)),
        ] {
            assert_eq!((asked(request).allowed(&all), asked(request).allowed(&shop)), (of_all, of_shop), "{request}");
        }
    }

    #[test]
    fn what_lasts_ends_with_the_token() {
        for (request, lasts) in [
            ("GET /weft/v1/tap?service=a/b", true),
            ("GET /weft/v1/stat?watch=true", true),
            ("GET /api/v1/namespaces/shop/services?watch=1", true),
            ("GET /weft/v1/graph", false),
        ] {
            assert_eq!(asked(request).is_watch(), lasts, "{request}");
        }
    }

    #[test]
    fn a_refusal_names_verb_resource_and_namespace() {
        for (request, expected) in [
            ("PUT /api/v1/namespaces/shop/services/cart", "update resource \"services\" in namespace \"shop\""),
            ("GET /api/v1/services?watch=true", "watch resource \"services\" in all namespaces"),
            (
                "DELETE /apis/weft.dev/v1alpha1/meshconfigs",
                "deletecollection resource \"meshconfigs.weft.dev\" at the cluster scope",
            ),
            ("POST /weft/v1/rollback", "post path \"/weft/v1/rollback\""),
        ] {
            assert_eq!(asked(request).to_string(), expected);
        }
    }

    #[test]
    fn only_probes_are_public() {
        assert!(["/healthz", "/livez", "/readyz"].into_iter().all(is_public));
        assert!(!["/", "/metrics", "/version", "/healthz/", "/healthz/../api"].into_iter().any(is_public));
    }
}
