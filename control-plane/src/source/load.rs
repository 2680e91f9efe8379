//! One file to its objects: all of them, or what is wrong with it.

use std::{collections::BTreeMap, sync::Arc};

use gateway_api::apis::standard::httproutes::HttpRoute;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;

use super::{
    Object, Resources, Workload, de,
    problem::{Origin, Problem, did_you_mean},
    validate::{self, Check},
    yaml::{self, Node},
};

/// Kinds that are understood, by apiVersion.
const KINDS: [(&str, &str); 5] = [
    ("v1", "Namespace"),
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("weft.dev/v1alpha1", "Workload"),
];

/// An object of any kind.
#[derive(Clone, Debug)]
pub enum AnyObject {
    Namespace(Object<Namespace>),
    Service(Box<Object<Service>>),
    EndpointSlice(Object<EndpointSlice>),
    Route(Box<Object<HttpRoute>>),
    Workload(Box<Object<Workload>>),
}

impl AnyObject {
    /// Adds the object; of two with the same name the first stays.
    pub fn insert(self, resources: &mut Resources, problems: &mut Vec<Problem>) {
        match self {
            Self::Namespace(object) => put(&mut resources.namespaces, object.name.clone(), object, problems),
            Self::Service(object) => put(&mut resources.services, object.id(), *object, problems),
            Self::EndpointSlice(object) => put(&mut resources.endpoint_slices, object.id(), object, problems),
            Self::Route(object) => put(&mut resources.routes, object.id(), *object, problems),
            Self::Workload(object) => put(&mut resources.workloads, object.id(), *object, problems),
        }
    }
}

fn put<T>(map: &mut BTreeMap<String, Object<T>>, key: String, object: Object<T>, problems: &mut Vec<Problem>) {
    match map.get(&key) {
        Some(first) => {
            let there = first.origin.problem("metadata.name", "", "");
            let message =
                format!("\"{key}\" is already defined at {}:{}:{}, which stays", there.file, there.line, there.column);
            problems.push(object.origin.problem("metadata.name", message, "remove one of them"));
        }
        None => {
            map.insert(key, object);
        }
    }
}

/// The objects of a file.
pub fn objects(file: &Arc<str>, text: &str) -> Result<Vec<AnyObject>, Vec<Problem>> {
    let documents = yaml::parse(file, text).map_err(|problem| vec![problem])?;
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for document in &documents {
        match object(file, document) {
            Ok(object) => found.push(object),
            Err(wrong) => problems.extend(wrong),
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

fn object(file: &Arc<str>, node: &Node) -> Result<AnyObject, Vec<Problem>> {
    let origin = Arc::new(Origin { file: Arc::clone(file), positions: node.positions() });
    let text = |field: &str| {
        node.get(field).and_then(Node::as_str).ok_or_else(|| {
            vec![origin.problem(field, format!("{field} is missing"), "each document needs apiVersion and kind")]
        })
    };
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    match (version, kind) {
        ("v1", "Namespace") => typed(file, node, origin, false, validate::nothing).map(AnyObject::Namespace),
        ("v1", "Service") => typed(file, node, origin, true, validate::service).map(Box::new).map(AnyObject::Service),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            typed(file, node, origin, true, validate::endpoint_slice).map(AnyObject::EndpointSlice)
        }
        ("gateway.networking.k8s.io/v1", "HTTPRoute") => {
            typed(file, node, origin, true, validate::route).map(Box::new).map(AnyObject::Route)
        }
        ("weft.dev/v1alpha1", "Workload") => {
            typed(file, node, origin, true, validate::workload).map(Box::new).map(AnyObject::Workload)
        }
        _ => Err(vec![unknown_kind(&origin, version, kind)]),
    }
}

fn unknown_kind(origin: &Origin, version: &str, kind: &str) -> Problem {
    if let Some((right, _)) = KINDS.iter().find(|(_, known)| *known == kind) {
        let message = format!("unknown apiVersion \"{version}\" of kind {kind}");
        return origin.problem("apiVersion", message, format!("use \"{right}\""));
    }
    let near = did_you_mean(kind, KINDS.iter().map(|(_, kind)| *kind));
    let hint = if near.is_empty() { format!("known: {}", KINDS.map(|(_, kind)| kind).join(", ")) } else { near };
    origin.problem("kind", format!("unknown kind \"{kind}\" of apiVersion \"{version}\""), hint)
}

/// What all kinds have.
trait HasMetadata: DeserializeOwned {
    const KIND: &str;
    fn metadata(&self) -> &ObjectMeta;
}

macro_rules! has_metadata {
    ($($kind:ident),*) => {
        $(impl HasMetadata for $kind {
            const KIND: &str = stringify!($kind);

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
        })*
    };
}
has_metadata!(Namespace, Service, EndpointSlice, HttpRoute, Workload);

fn typed<T: HasMetadata>(
    file: &Arc<str>,
    node: &Node,
    origin: Arc<Origin>,
    namespaced: bool,
    check: fn(&T, &mut Check<'_>),
) -> Result<Object<T>, Vec<Problem>> {
    let value: T = de::from_node(file, node)?;
    let mut problems = Check::new(&origin);
    let name = value.metadata().name.clone().unwrap_or_default();
    problems.name("metadata.name", &name);
    if matches!(T::KIND, "Service" | "Workload" | "Namespace") {
        problems.label("metadata.name", &name);
    }
    let namespace = match &value.metadata().namespace {
        Some(namespace) if namespaced => {
            problems.name("metadata.namespace", namespace);
            problems.label("metadata.namespace", namespace);
            namespace.clone()
        }
        None if namespaced => "default".to_owned(),
        _ => String::new(),
    };
    check(&value, &mut problems);
    let problems = problems.into_problems();
    if problems.is_empty() { Ok(Object { namespace, name, value, origin }) } else { Err(problems) }
}
