//! One file to its objects: all of them, or what is wrong with it.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use gateway_api::apis::{
    experimental::{grpcroutes::GrpcRoute, httproutes::HttpRoute},
    standard::referencegrants::ReferenceGrant,
};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use schemars::{Schema, SchemaGenerator};
use serde::de::DeserializeOwned;

use super::{
    Object, Resources,
    check::Check,
    de, files,
    policies::{
        self, Custom,
        jwt::RequestAuthenticationSpec,
        limits::{FaultInjectionSpec, RateLimitPolicySpec},
        mesh::MeshConfigSpec,
        security::{AuthorizationPolicySpec, PeerAuthenticationSpec},
        telemetry::TelemetryPolicySpec,
        traffic::TrafficPolicySpec,
        workload::WorkloadSpec,
    },
    problem::{Origin, Problem, Reason, did_you_mean},
    validate,
    yaml::{self, Node},
};
use crate::store::{Key, Stored};

/// What one kind needs to be loaded: a line of the table below makes its variant, its map in [`Resources`] and its
/// checks.
macro_rules! kinds {
    ($($variant:ident: $version:literal $kind:literal $scope:ident, $map:ident: $type:ty, $check:expr;)*) => {
        /// Kinds that are understood, by apiVersion.
        pub const KINDS: &[(&str, &str)] = &[$(($version, $kind)),*];

        /// An object of any kind; clones share it.
        #[derive(Clone, Debug)]
        pub enum AnyObject {
            $($variant(Arc<Object<$type>>),)*
        }

        impl AnyObject {
            /// Adds the object; of two with the same name the first stays.
            pub fn insert(self, resources: &mut Resources, problems: &mut Vec<Problem>) {
                match self {
                    $(Self::$variant(object) => put(&mut resources.$map, object, problems),)*
                }
            }

            /// Makes it one that was written at this place.
            pub fn move_to(&mut self, origin: &Arc<Origin>) {
                match self {
                    $(Self::$variant(object) => Arc::make_mut(object).origin = Arc::clone(origin),)*
                }
            }

            /// Its name in the store, and where it was written.
            fn key_and_origin(&self) -> (Key, &Origin) {
                match self {
                    $(Self::$variant(object) => (Key::new($kind, &object.namespace, &object.name), &object.origin),)*
                }
            }
        }

        $(impl HasMetadata for $type {
            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
        })*

        /// The object of a tree, and what is wrong with it.
        pub fn object(file: &Arc<str>, node: &Node) -> Loaded {
            let origin = Arc::new(Origin { file: Arc::clone(file), positions: node.positions() });
            let (version, kind) = match version_and_kind(node, &origin) {
                Ok(found) => found,
                Err(problem) => return Loaded::wrong(problem),
            };
            match (version, kind) {
                $(($version, $kind) => {
                    typed::<$type>(file, node, origin, kind, Scope::$scope, $check).map(Arc::new, AnyObject::$variant)
                })*
                _ => Loaded::wrong(unknown_kind(&origin, version, kind)),
            }
        }

        /// The JSON schema of a kind.
        pub fn schema(version: &str, kind: &str, generator: &mut SchemaGenerator) -> Option<Schema> {
            Some(match (version, kind) {
                $(($version, $kind) => generator.root_schema_for::<$type>(),)*
                _ => return None,
            })
        }
    };
}

kinds! {
    Namespace: "v1" "Namespace" Cluster, namespaces: Namespace, validate::nothing;
    Service: "v1" "Service" Namespaced, services: Service, validate::service;
    EndpointSlice: "discovery.k8s.io/v1" "EndpointSlice" Namespaced, endpoint_slices: EndpointSlice,
        validate::endpoint_slice;
    Route: "gateway.networking.k8s.io/v1" "HTTPRoute" Namespaced, routes: HttpRoute, validate::route;
    GrpcRoute: "gateway.networking.k8s.io/v1" "GRPCRoute" Namespaced, grpc_routes: GrpcRoute, validate::grpc_route;
    ReferenceGrant: "gateway.networking.k8s.io/v1" "ReferenceGrant" Namespaced, reference_grants: ReferenceGrant,
        validate::reference_grant;
    Workload: "weft.dev/v1alpha1" "Workload" Namespaced, workloads: Custom<WorkloadSpec>, policies::custom;
    TrafficPolicy: "weft.dev/v1alpha1" "TrafficPolicy" Namespaced, traffic_policies: Custom<TrafficPolicySpec>,
        policies::custom;
    AuthorizationPolicy: "weft.dev/v1alpha1" "AuthorizationPolicy" Namespaced,
        authorization_policies: Custom<AuthorizationPolicySpec>, policies::custom;
    PeerAuthentication: "weft.dev/v1alpha1" "PeerAuthentication" Namespaced,
        peer_authentications: Custom<PeerAuthenticationSpec>, policies::custom;
    RateLimitPolicy: "weft.dev/v1alpha1" "RateLimitPolicy" Namespaced,
        rate_limit_policies: Custom<RateLimitPolicySpec>, policies::custom;
    FaultInjection: "weft.dev/v1alpha1" "FaultInjection" Namespaced, fault_injections: Custom<FaultInjectionSpec>,
        policies::custom;
    TelemetryPolicy: "weft.dev/v1alpha1" "TelemetryPolicy" Namespaced,
        telemetry_policies: Custom<TelemetryPolicySpec>, policies::custom;
    RequestAuthentication: "weft.dev/v1alpha1" "RequestAuthentication" Namespaced,
        request_authentications: Custom<RequestAuthenticationSpec>, policies::custom;
    MeshConfig: "weft.dev/v1alpha1" "MeshConfig" Cluster, mesh_configs: Custom<MeshConfigSpec>, policies::custom;
}

impl AnyObject {
    /// Whether it takes part in saying who is let in.
    pub const fn says_who_is_let_in(&self) -> bool {
        matches!(
            self,
            Self::AuthorizationPolicy(_)
                | Self::PeerAuthentication(_)
                | Self::RequestAuthentication(_)
                | Self::MeshConfig(_)
        )
    }

    /// Gives a FaultInjection its creation time if it has none: the time at which its file was written. Of the other
    /// kinds none depends on it but for precedence, where an object without one is the younger.
    pub fn began(&mut self, written: SystemTime) {
        if let Self::FaultInjection(object) = self
            && let Ok(written) = Timestamp::try_from(written)
        {
            let created = &mut Arc::make_mut(object).value.metadata.creation_timestamp;
            created.get_or_insert(Time(written));
        }
    }
}

/// Whether objects of a kind have a namespace.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Scope {
    Cluster,
    Namespaced,
}

/// What became of one object.
pub struct Loaded<T = AnyObject> {
    /// The object, when nothing but unknown fields is wrong with it. They are not in it.
    pub object: Option<T>,
    /// Fields that its kind does not have.
    pub unknown: Vec<Problem>,
    /// Everything else that is wrong.
    pub wrong: Vec<Problem>,
}

impl<T> Loaded<T> {
    fn wrong(problem: Problem) -> Self {
        Self { object: None, unknown: Vec::new(), wrong: vec![problem] }
    }

    fn map<U, V>(self, inner: impl FnOnce(T) -> U, outer: impl FnOnce(U) -> V) -> Loaded<V> {
        Loaded { object: self.object.map(|object| outer(inner(object))), unknown: self.unknown, wrong: self.wrong }
    }
}

fn put<T>(map: &mut BTreeMap<String, Arc<Object<T>>>, object: Arc<Object<T>>, problems: &mut Vec<Problem>) {
    let key = object.id();
    match map.get(&key) {
        Some(first) => {
            let there = first.origin.problem("metadata.name", "", "");
            let message =
                format!("\"{key}\" is already defined at {}:{}:{}, which stays", there.file, there.line, there.column);
            let problem = object.origin.problem("metadata.name", message, "remove one of them");
            problems.push(problem.because(Reason::Conflicted));
        }
        None => {
            map.insert(key, object);
        }
    }
}

/// The objects of a file, each also as it was written.
pub fn objects(file: &Arc<str>, text: &str) -> Result<Vec<(AnyObject, Arc<Stored>)>, Vec<Problem>> {
    let documents = yaml::parse(file, text).map_err(|problem| vec![problem])?;
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for one in &documents {
        match document(file, one) {
            Ok(object) => found.push(object),
            Err(wrong) => problems.extend(wrong),
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

/// The object of one document, also as it was written.
pub fn document(file: &Arc<str>, document: &Node) -> Result<(AnyObject, Arc<Stored>), Vec<Problem>> {
    let Loaded { object, mut unknown, wrong } = object(file, document);
    unknown.extend(wrong);
    let Some(object) = object.filter(|_| unknown.is_empty()) else { return Err(unknown) };
    let (key, origin) = object.key_and_origin();
    let place = format!("{file}:{}", origin.problem("", "", "").line);
    let written = files::written(key, document.into(), &place);
    Ok((object, written))
}

fn version_and_kind<'a>(node: &'a Node, origin: &Origin) -> Result<(&'a str, &'a str), Problem> {
    let text = |field: &str| {
        node.get(field).and_then(Node::as_str).ok_or_else(|| {
            origin.problem(field, format!("{field} is missing"), "each document needs apiVersion and kind")
        })
    };
    Ok((text("apiVersion")?, text("kind")?))
}

fn unknown_kind(origin: &Origin, version: &str, kind: &str) -> Problem {
    if let Some((right, _)) = KINDS.iter().find(|(_, known)| *known == kind) {
        let message = format!("unknown apiVersion \"{version}\" of kind {kind}");
        return origin.problem("apiVersion", message, format!("use \"{right}\""));
    }
    let names = || KINDS.iter().map(|(_, kind)| *kind);
    let near = did_you_mean(kind, names());
    let hint = if near.is_empty() { format!("known: {}", names().collect::<Vec<_>>().join(", ")) } else { near };
    origin.problem("kind", format!("unknown kind \"{kind}\" of apiVersion \"{version}\""), hint)
}

/// What all kinds have.
pub trait HasMetadata: DeserializeOwned {
    /// Its metadata.
    fn metadata(&self) -> &ObjectMeta;
}

fn typed<T: HasMetadata>(
    file: &Arc<str>,
    node: &Node,
    origin: Arc<Origin>,
    kind: &str,
    scope: Scope,
    check: fn(&T, &mut Check<'_>),
) -> Loaded<Object<T>> {
    let de::Parsed { value, unknown, wrong } = de::parse::<T>(file, node);
    let Some(value) = value else { return Loaded { object: None, unknown, wrong } };
    let mut problems = Check::new(&origin);
    let metadata = value.metadata();
    let name = metadata.name.clone().unwrap_or_default();
    problems.name("metadata.name", &name);
    if matches!(kind, "Service" | "Workload" | "Namespace") {
        problems.label("metadata.name", &name);
    }
    let namespace = match &metadata.namespace {
        Some(namespace) if scope == Scope::Namespaced => {
            problems.name("metadata.namespace", namespace);
            problems.label("metadata.namespace", namespace);
            namespace.clone()
        }
        None if scope == Scope::Namespaced => "default".to_owned(),
        _ => String::new(),
    };
    validate::metadata(metadata, &mut problems);
    check(&value, &mut problems);
    let wrong = problems.into_problems();
    let object = wrong.is_empty().then_some(Object { namespace, name, value, origin });
    Loaded { object, unknown, wrong }
}
