//! The kinds that the API serves: names, scope, columns. The types behind them are in `source`.

use serde_json::Value;

use super::columns::{self, Column};

/// Core kinds have no group.
pub const CORE: &str = "";
/// Group of EndpointSlice.
pub const DISCOVERY: &str = "discovery.k8s.io";
/// Group of the routes.
pub const GATEWAY: &str = "gateway.networking.k8s.io";
/// Group of Weft's own kinds.
pub const WEFT: &str = "weft.dev";

/// Verbs of every kind.
pub const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Where status conditions are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StatusShape {
    /// `status.ancestors`, one for each target of a policy.
    Ancestors,
    /// `status.conditions`.
    Conditions,
    /// `status.parents`, one for each parent of a route.
    Parents,
    /// There is no status.
    None,
}

/// One kind.
#[derive(Debug)]
pub struct Kind {
    /// API group; empty for core kinds.
    pub group: &'static str,
    /// Version, such as `v1`.
    pub version: &'static str,
    /// Name of the kind; unique over all groups.
    pub kind: &'static str,
    /// Name in URLs.
    pub plural: &'static str,
    /// Name of one for people.
    pub singular: &'static str,
    /// Other names for people.
    pub short: &'static [&'static str],
    /// Whether objects have a namespace.
    pub namespaced: bool,
    /// Where its conditions are.
    pub status: StatusShape,
    /// Columns between NAME and AGE.
    pub columns: &'static [Column],
}

impl Kind {
    /// `group/version`, or `v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `plural.group`, or the plural.
    #[must_use]
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether strategic merge patches are taken: of built-in kinds, as in Kubernetes.
    #[must_use]
    pub fn strategic(&self) -> bool {
        matches!(self.group, CORE | DISCOVERY)
    }

    /// Whether a deletion answers with the object instead of a `Status`, as in Kubernetes: the typed client libraries
    /// read it as the one or the other.
    #[must_use]
    pub fn returns_deleted(&self) -> bool {
        self.group == CORE && self.kind == "Service"
    }

    /// Whether there is a status subresource.
    #[must_use]
    pub fn has_status(&self) -> bool {
        self.status != StatusShape::None
    }
}

/// All kinds, by group and name.
pub static KINDS: &[Kind] = &[
    Kind { columns: columns::NAMESPACE, namespaced: false, ..core("Namespace", "namespaces", "namespace", &["ns"]) },
    Kind { columns: columns::SERVICE, ..core("Service", "services", "service", &["svc"]) },
    Kind {
        group: DISCOVERY,
        status: StatusShape::None,
        columns: columns::ENDPOINT_SLICE,
        ..core("EndpointSlice", "endpointslices", "endpointslice", &[])
    },
    Kind { columns: columns::HTTP_ROUTE, ..route("HTTPRoute", "httproutes", "httproute") },
    Kind { columns: columns::GRPC_ROUTE, ..route("GRPCRoute", "grpcroutes", "grpcroute") },
    Kind {
        status: StatusShape::None,
        columns: columns::REFERENCE_GRANT,
        short: &["refgrant"],
        ..route("ReferenceGrant", "referencegrants", "referencegrant")
    },
    Kind {
        status: StatusShape::Conditions,
        columns: columns::WORKLOAD,
        ..weft("Workload", "workloads", "workload", &["wl"])
    },
    Kind { columns: columns::TRAFFIC, ..weft("TrafficPolicy", "trafficpolicies", "trafficpolicy", &["tp"]) },
    Kind {
        columns: columns::AUTHORIZATION,
        ..weft("AuthorizationPolicy", "authorizationpolicies", "authorizationpolicy", &["authz"])
    },
    Kind { columns: columns::PEER, ..weft("PeerAuthentication", "peerauthentications", "peerauthentication", &["pa"]) },
    Kind { columns: columns::POLICY, ..weft("RateLimitPolicy", "ratelimitpolicies", "ratelimitpolicy", &["rl"]) },
    Kind { columns: columns::POLICY, ..weft("FaultInjection", "faultinjections", "faultinjection", &["fi"]) },
    Kind { columns: columns::POLICY, ..weft("TelemetryPolicy", "telemetrypolicies", "telemetrypolicy", &["tel"]) },
    Kind {
        columns: columns::POLICY,
        ..weft("RequestAuthentication", "requestauthentications", "requestauthentication", &["ra"])
    },
    Kind {
        namespaced: false,
        status: StatusShape::Conditions,
        columns: columns::MESH,
        ..weft("MeshConfig", "meshconfigs", "meshconfig", &["mc"])
    },
];

const fn core(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
) -> Kind {
    let (group, version, status) = (CORE, "v1", StatusShape::Conditions);
    Kind { group, version, kind, plural, singular, short, namespaced: true, status, columns: &[] }
}

const fn route(kind: &'static str, plural: &'static str, singular: &'static str) -> Kind {
    Kind { group: GATEWAY, status: StatusShape::Parents, ..core(kind, plural, singular, &[]) }
}

const fn weft(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
) -> Kind {
    let status = StatusShape::Ancestors;
    Kind { group: WEFT, version: "v1alpha1", status, ..core(kind, plural, singular, short) }
}

/// The kind with this name in URLs.
#[must_use]
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
}

/// The kind with this name.
#[must_use]
pub fn by_kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.kind == name)
}

/// Groups and versions, each once.
pub fn group_versions() -> impl Iterator<Item = (&'static str, &'static str)> {
    [(CORE, "v1"), (DISCOVERY, "v1"), (GATEWAY, "v1"), (WEFT, "v1alpha1")].into_iter()
}

/// The kinds of a group and version.
pub fn of(group: &str, version: &str) -> impl Iterator<Item = &'static Kind> {
    let wanted = (group.to_owned(), version.to_owned());
    KINDS.iter().filter(move |kind| kind.group == wanted.0 && kind.version == wanted.1)
}

/// A field by its path of names, or null.
#[must_use]
pub fn field<'a>(object: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(object, |value, name| value.get(*name).unwrap_or(&Value::Null))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_their_names_are_unique_and_loadable() {
        let mut names = std::collections::BTreeSet::new();
        for kind in KINDS {
            for name in [kind.kind, kind.plural, kind.singular].iter().chain(kind.short) {
                assert!(names.insert(*name), "{name}");
            }
            assert!(group_versions().any(|found| found == (kind.group, kind.version)));
            let mut generator = schemars::generate::SchemaSettings::openapi3().into_generator();
            assert!(crate::source::schema(&kind.api_version(), kind.kind, &mut generator).is_some(), "{}", kind.kind);
        }
    }
}
