//! What stands in for an object that says who is let in and cannot be used: without it a policy that denies would be
//! gone, and what it closes open. A stand-in denies what the object could have denied, under its name; one that cannot
//! have denied anything (on trial, or permissive) has none.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use super::{
    Resources,
    load::{self, AnyObject, KINDS},
    policies::security::MESH_NAMESPACE,
    problem::{Origin, Problem, nearest},
    yaml::{self, Node},
};
use crate::store::Stored;

/// Name of a stand-in whose object's name cannot be used.
const NAMELESS: &str = "left-out";

/// A stand-in, and what to tell of it.
pub struct StandIn {
    /// In place of the object.
    object: AnyObject,
    /// What is in force now.
    problem: Problem,
}

impl StandIn {
    /// Adds it, and says so; where there is an object of its name nothing needs to stand in.
    pub fn insert(&self, resources: &mut Resources, problems: &mut Vec<Problem>) {
        let mut taken = Vec::new();
        self.object.clone().insert(resources, &mut taken);
        if taken.is_empty() {
            problems.push(self.problem.clone());
        }
    }
}

/// What a file that was never good leaves.
#[derive(Default)]
pub struct Rest {
    /// Its objects on who is let in that are good.
    pub good: Vec<(AnyObject, Arc<Stored>)>,
    /// For those that are not.
    pub stand_ins: Vec<StandIn>,
}

/// The kinds that say who is let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Guard {
    Authorization,
    Peer,
    Tokens,
    Mesh,
}

/// Whom a stand-in refuses.
#[derive(Clone, Copy)]
enum Refused {
    Everyone,
    Plaintext,
}

/// Whether fields that this version does not know make an object of the kind unusable: without a condition of a newer
/// version a rule would allow more.
pub fn is_guard(kind: &str) -> bool {
    matches!(kind, "AuthorizationPolicy" | "PeerAuthentication" | "RequestAuthentication")
}

/// For one document that cannot be used.
pub fn of(file: &Arc<str>, node: &Node) -> Option<StandIn> {
    let json = Value::from(node);
    let written = json["kind"].as_str()?;
    let known = || KINDS.iter().map(|(_, kind)| *kind);
    let kind = known().find(|kind| *kind == written).or_else(|| nearest(written, known()))?;
    let guard = match kind {
        "AuthorizationPolicy" => Guard::Authorization,
        "PeerAuthentication" => Guard::Peer,
        "RequestAuthentication" => Guard::Tokens,
        "MeshConfig" => Guard::Mesh,
        _ => return None,
    };
    let origin = Arc::new(Origin { file: Arc::clone(file), positions: node.positions() });
    let spec = &json["spec"];
    let (metadata, given) = (&json["metadata"], |value: &Value| value.as_str().map(str::to_owned));
    let name = given(&metadata["name"]).unwrap_or_default();
    // One of another type could be any.
    let namespace =
        if metadata["namespace"].is_null() { Some("default".to_owned()) } else { given(&metadata["namespace"]) };
    let permissive = |mode: &Value| mode == "Permissive";
    match guard {
        Guard::Authorization if spec["dryRun"] == true => None,
        Guard::Authorization => policy(&origin, (kind, &name, namespace.as_deref()), &name, spec, Refused::Everyone),
        Guard::Peer if permissive(&spec["mode"]) && spec["ports"].is_null() && !means(spec, "ports") => None,
        // Not another PeerAuthentication: which of several counts depends on what cannot be read here.
        Guard::Peer => {
            let under = format!("{name}.peer-authentication");
            policy(&origin, (kind, &name, namespace.as_deref()), &under, spec, Refused::Plaintext)
        }
        Guard::Tokens => {
            let under = format!("{name}.request-authentication");
            policy(&origin, (kind, &name, namespace.as_deref()), &under, spec, Refused::Everyone)
        }
        Guard::Mesh if name != "default" => None,
        Guard::Mesh => {
            let open = |field: &str, open: &str| spec[field] == open || spec[field].is_null() && !means(spec, field);
            strict_mesh(&origin, !open("peerMode", "Permissive"), !open("outboundTraffic", "AllowAny"))
        }
    }
}

/// Whether a field may stand for this one, misspelt; something that is no map may stand for anything.
fn means(spec: &Value, field: &str) -> bool {
    let misspelt = |written: &str| written != field && nearest(written, std::iter::once(field)).is_some();
    !spec.is_null() && spec.as_object().is_none_or(|fields| fields.keys().any(|written| misspelt(written)))
}

/// For a file of which nothing can be read: it may say anything. A text that names none of the kinds says nothing of who
/// is let in, and one without `outboundTraffic` nothing of what apps may call.
pub fn of_unreadable(file: &Arc<str>, text: Option<&str>) -> Vec<StandIn> {
    let text = text.map(str::to_lowercase);
    let names = |name: &str| text.as_ref().is_none_or(|text| text.contains(name));
    let origin = Arc::new(Origin { file: Arc::clone(file), positions: BTreeMap::new() });
    let guards = ["authorizationpolicy", "peerauthentication", "requestauthentication", "peermode"];
    let guard = if guards.into_iter().any(names) { closed(&origin) } else { None };
    // It comes before a MeshConfig of the store, which may be strict: so is this one.
    let mesh = if names("outboundtraffic") { strict_mesh(&origin, true, true) } else { None };
    guard.into_iter().chain(mesh).collect()
}

/// Nobody is let in anywhere.
fn closed(origin: &Arc<Origin>) -> Option<StandIn> {
    let file = &origin.file;
    let last = file.rsplit('/').next().unwrap_or_default();
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    let name: String = last.chars().map(plain).collect();
    policy(origin, ("file", last, None), &name, &Value::Null, Refused::Everyone)
}

/// For a file with problems that was never without.
pub fn of_file(file: &Arc<str>, text: &str) -> Rest {
    let mut rest = Rest::default();
    let Ok(documents) = yaml::parse(file, text) else {
        rest.stand_ins.extend(of_unreadable(file, Some(text)));
        return rest;
    };
    for document in &documents {
        match load::document(file, document) {
            Ok(found) => rest.good.extend(Some(found).filter(|(object, _)| object.says_who_is_let_in())),
            Err(_) => rest.stand_ins.extend(of(file, document)),
        }
    }
    rest
}

/// A policy that denies, at the targets of this spec if they can be read, else in the namespace, else everywhere.
fn policy(
    origin: &Arc<Origin>,
    (kind, name, namespace): (&str, &str, Option<&str>),
    under: &str,
    spec: &Value,
    refused: Refused,
) -> Option<StandIn> {
    let whole = || (Value::Null, Value::Null);
    let tries = [
        (under, namespace, (spec["targetRefs"].clone(), spec["selector"].clone())),
        (under, namespace, whole()),
        (NAMELESS, namespace, whole()),
        (under, None, whole()),
        (NAMELESS, None, whole()),
    ];
    let (object, place) = tries.into_iter().find_map(|(under, namespace, (targets, selector))| {
        let some = targets.as_array().is_some_and(|list| !list.is_empty()) || !selector.is_null();
        let place = match namespace {
            _ if some => "what it applies to".to_owned(),
            Some(namespace) if namespace != MESH_NAMESPACE => format!("every workload of namespace {namespace}"),
            _ => "every workload of the mesh".to_owned(),
        };
        let metadata = json!({ "name": under, "namespace": namespace.unwrap_or(MESH_NAMESPACE) });
        Some((loaded(origin, "AuthorizationPolicy", &metadata, &denying(refused, targets, selector))?, place))
    })?;
    let whom = match refused {
        Refused::Everyone => "nobody is let in",
        Refused::Plaintext => "nobody is let in without mutual TLS",
    };
    let message = format!("{kind} {name:?} cannot be used: until it can, {whom} at {place}");
    Some(StandIn { object, problem: origin.problem("", message, "correct what is wrong with it, or remove it") })
}

fn denying(refused: Refused, targets: Value, selector: Value) -> Value {
    let rule = match refused {
        Refused::Everyone => json!({}),
        Refused::Plaintext => json!({ "from": [{ "notIdentities": ["*"] }] }),
    };
    let mut spec = json!({ "action": "Deny", "rules": [rule] });
    for (field, value) in [("targetRefs", targets), ("selector", selector)] {
        if !value.is_null() {
            spec[field] = value;
        }
    }
    spec
}

/// The MeshConfig with what the one that cannot be used may have closed; none when it closes nothing.
fn strict_mesh(origin: &Arc<Origin>, inbound: bool, outbound: bool) -> Option<StandIn> {
    let closed = [("peerMode", "Strict", inbound), ("outboundTraffic", "RegistryOnly", outbound)];
    let closed = closed.into_iter().filter(|(.., closed)| *closed);
    let told: Vec<String> = closed.clone().map(|(field, value, _)| format!("its {field} is {value}")).collect();
    if told.is_empty() {
        return None;
    }
    let spec: Value = closed.map(|(field, value, _)| (field.to_owned(), Value::from(value))).collect();
    let object = loaded(origin, "MeshConfig", &json!({ "name": "default" }), &spec)?;
    let told = told.join(" and ");
    let message = format!("MeshConfig \"default\" cannot be used: until it can, {told}, the rest by default");
    Some(StandIn { object, problem: origin.problem("", message, "correct what is wrong with it") })
}

/// An object as if it had been written at this place; none when it would not be valid.
fn loaded(origin: &Arc<Origin>, kind: &str, metadata: &Value, spec: &Value) -> Option<AnyObject> {
    let whole = json!({ "apiVersion": "weft.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec });
    let found = load::object(&origin.file, &Node::from(&whole));
    let mut object = found.object.filter(|_| found.unknown.is_empty())?;
    object.move_to(origin);
    Some(object)
}

#[cfg(test)]
mod tests;
