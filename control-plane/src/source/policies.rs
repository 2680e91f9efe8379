//! The kinds of `weft.dev/v1alpha1`: what they share, and where each spec is.

pub mod jwt;
pub mod limits;
pub mod mesh;
pub mod security;
pub mod telemetry;
pub mod traffic;
pub mod workload;

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::check::{Check, duration};

/// An object of `weft.dev/v1alpha1` with this spec.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Custom<S> {
    /// Group and version: weft.dev/v1alpha1.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// Name, namespace, labels and so on.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: S,
    /// What the mesh has made of it. Written by Weft.
    pub status: Option<Status>,
}

/// What the mesh has made of an object.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// One entry for each target of a policy.
    pub ancestors: Option<Vec<AncestorStatus>>,
    /// Accepted, ResolvedRefs and Programmed of an object without targets.
    pub conditions: Option<Vec<Condition>>,
}

/// State of a policy at one of its targets (Gateway API, PolicyAncestorStatus).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AncestorStatus {
    /// The target.
    pub ancestor_ref: AncestorRef,
    /// Who wrote the entry.
    pub controller_name: String,
    /// Accepted, ResolvedRefs and Programmed.
    pub conditions: Option<Vec<Condition>>,
}

/// A target as status names it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AncestorRef {
    /// Group of the target; empty is core.
    pub group: Option<String>,
    /// Kind of the target.
    pub kind: Option<String>,
    /// Namespace of the target.
    pub namespace: Option<String>,
    /// Name of the target.
    pub name: String,
    /// Name of a route rule.
    pub section_name: Option<String>,
    /// Port of the target.
    pub port: Option<i32>,
}

/// What a policy is attached to, in its own namespace (Gateway API, LocalPolicyTargetReferenceWithSectionName).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// Group of the target: empty for a Service or Namespace, `gateway.networking.k8s.io` for a route. Default empty.
    #[serde(default)]
    pub group: String,
    /// `Service`, `Namespace`, `HTTPRoute` or `GRPCRoute`.
    #[schemars(extend("enum" = ["Service", "Namespace", "HTTPRoute", "GRPCRoute"]))]
    pub kind: String,
    /// Name of the target.
    pub name: String,
    /// Name of a rule of the route (its number from 0 when it has no name), or name or number of a port of the
    /// Service. Default: all of the target.
    pub section_name: Option<String>,
}

/// Workloads by their labels.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// Labels that a workload must have, all of them.
    pub match_labels: BTreeMap<String, String>,
}

/// A length of time as Gateway API writes it (GEP-2257): `10s`, `1m30s`, `250ms`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let problem = || de::Error::custom(format!("\"{text}\" is not a duration, such as 10s, 500ms or 1m30s"));
        duration(&text).map(Self).ok_or_else(problem)
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$" })
    }
}

/// Says in a schema which words gRPC codes are.
pub(crate) fn grpc_codes(schema: &mut Schema) {
    words(schema, &weft_policy::grpc::CODES);
}

/// Says in a schema which words it takes, itself or as items.
fn words(schema: &mut Schema, known: &[&str]) {
    let words = serde_json::json!(known);
    match schema.get_mut("items").and_then(serde_json::Value::as_object_mut) {
        Some(items) => _ = items.insert("enum".into(), words),
        None => _ = schema.insert("enum".into(), words),
    }
}

/// A share of requests, 0 to 100, with fractions.
pub type Percent = f64;

/// Rules that one spec of Weft's own follows beyond its type.
pub trait Spec {
    /// The objects that it is attached to.
    fn targets(&self) -> &[TargetRef] {
        &[]
    }

    /// The workloads that it is attached to.
    fn selector(&self) -> Option<&WorkloadSelector> {
        None
    }

    /// Kinds that `targets` may name.
    const TARGETS: &'static [&'static str] = &["Service", "Namespace", "HTTPRoute", "GRPCRoute"];

    /// Whether several of one target all count, or are merged. Of others the oldest does.
    const ADD_UP: bool = false;

    /// Ranges and contradictions.
    fn check(&self, check: &mut Check<'_>);
}

const ROUTES: &str = "gateway.networking.k8s.io";

/// Checks the targets and then the rest of a spec.
pub fn custom<S: Spec>(object: &Custom<S>, check: &mut Check<'_>) {
    for (index, target) in object.spec.targets().iter().enumerate() {
        let path = format!("spec.targetRefs[{index}]");
        check.name(&format!("{path}.name"), &target.name);
        check.one_of(&format!("{path}.kind"), "target kind", &target.kind, S::TARGETS);
        let group = if target.kind.ends_with("Route") { ROUTES } else { "" };
        if S::TARGETS.contains(&target.kind.as_str()) && target.group != group {
            let message = format!("\"{}\" is not the group of kind {}", target.group, target.kind);
            check.wrong(&format!("{path}.group"), message, format!("use \"{group}\""));
        }
        match &target.section_name {
            Some(_) if target.kind == "Namespace" => {
                check.wrong(&format!("{path}.sectionName"), "a Namespace has no sections", "leave it out");
            }
            Some(name) => check.name(&format!("{path}.sectionName"), name),
            None => {}
        }
        if object.spec.targets()[..index].iter().any(|other| same(other, target)) {
            check.wrong(&path, format!("{} \"{}\" is given twice", target.kind, target.name), "remove one of them");
        }
    }
    if let Some(selector) = object.spec.selector() {
        if !object.spec.targets().is_empty() {
            check.wrong("spec.selector", "is given beside spec.targetRefs", "use one of them");
        }
        if selector.match_labels.is_empty() {
            let hint = "leave selector out to select the whole namespace";
            check.wrong("spec.selector.matchLabels", "selects nothing in particular: it is empty", hint);
        }
    }
    object.spec.check(check);
}

fn same(a: &TargetRef, b: &TargetRef) -> bool {
    (&a.group, &a.kind, &a.name, &a.section_name) == (&b.group, &b.kind, &b.name, &b.section_name)
}

#[cfg(test)]
mod tests;
