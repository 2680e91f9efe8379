//! `weft describe`: one object for people: itself, its conditions, what is attached to it, its endpoints, its history.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::{
    endpoints, history,
    kinds::{Kind, Kinds},
    listing::{items, text},
    objects,
    server::{Server, ServerArgs, with_query},
    style::{self, BAD, GOOD, STRONG},
    table::Table,
    targets::{self, ScopeArgs},
    yaml,
};

/// Kinds whose objects point at others.
const ATTACHED: &str = "httproutes,grpcroutes,trafficpolicies,authorizationpolicies,peerauthentications,\
ratelimitpolicies,faultinjections,telemetrypolicies,requestauthentications";

/// Flags of `weft describe`.
#[derive(Args, Clone, Debug)]
pub struct DescribeArgs {
    /// KIND [NAME...] or KIND/NAME...
    #[arg(required = true, value_name = "KIND [NAME]")]
    pub what: Vec<String>,
    #[command(flatten)]
    pub scope: ScopeArgs,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Describes each object.
pub async fn run(args: DescribeArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let kinds = Kinds::discover(&server).await?;
    let mut first = true;
    for target in targets::parse(&kinds, &args.what)? {
        let found = match &target.name {
            Some(name) => {
                let namespace = args.scope.namespace().unwrap_or("default");
                vec![targets::object(&server, &target.kind, namespace, name).await?]
            }
            None => targets::list(&server, &target.kind, &args.scope).await?,
        };
        for object in found {
            if !first {
                anstream::println!();
            }
            first = false;
            anstream::print!("{}", itself(&object));
            around(&server, &kinds, &target.kind, &object).await;
        }
    }
    if first {
        anstream::eprintln!("nothing found");
    }
    Ok(server.exit_code())
}

/// The object, section by section.
fn itself(object: &Value) -> String {
    let metadata = &object["metadata"];
    let written = objects::as_written(object);
    let mut shown = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            shown.push_str(&format!("{STRONG}{:<13}{STRONG:#}{value}\n", format!("{name}:")));
        }
    };
    line("Name", text(metadata, "name"));
    line("Namespace", text(metadata, "namespace"));
    line("Kind", format!("{} ({})", text(object, "kind"), text(object, "apiVersion")));
    line("Labels", pairs(&metadata["labels"]));
    line("Annotations", pairs(&written["metadata"]["annotations"]));
    line("Created", text(metadata, "creationTimestamp"));
    line("Generation", text(metadata, "generation"));
    line("Revision", text(metadata, "resourceVersion"));
    for (name, value) in object.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status") {
            shown.push_str(&section(name, &yaml::text(value)));
        }
    }
    let conditions = conditions(&object["status"]);
    if !conditions.is_empty() {
        shown.push_str(&section("conditions", &conditions.render(style::width().map(|width| width.saturating_sub(2)))));
    }
    shown
}

fn section(name: &str, text: &str) -> String {
    let mut letters = name.chars();
    let name: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
    let lines: String = text.lines().map(|line| format!("  {line}\n")).collect();
    format!("{STRONG}{name}:{STRONG:#}\n{lines}")
}

fn pairs(value: &Value) -> String {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect::<Vec<_>>().join(", ")
}

/// Conditions of the object, or of each of its parents or ancestors.
fn conditions(status: &Value) -> Table {
    let mut table = Table::new(&["OF", "TYPE", "STATUS", "REASON", "MESSAGE"]);
    let nested = [("parents", "parentRef"), ("ancestors", "ancestorRef")];
    let nested = nested.into_iter().flat_map(|(list, reference)| {
        let entries = status[list].as_array().into_iter().flatten();
        entries.map(move |entry| (reference_name(&entry[reference]), &entry["conditions"]))
    });
    for (of, conditions) in nested.chain([(String::new(), &status["conditions"])]) {
        for condition in conditions.as_array().into_iter().flatten() {
            let state = text(condition, "status");
            let style = if state == "True" { GOOD } else { BAD };
            let of = if of.is_empty() { "-".to_owned() } else { of.clone() };
            table.row([
                of,
                text(condition, "type"),
                style::paint(style, &state),
                text(condition, "reason"),
                text(condition, "message"),
            ]);
        }
    }
    table
}

fn reference_name(reference: &Value) -> String {
    let section = text(reference, "sectionName");
    let section = if section.is_empty() { section } else { format!("#{section}") };
    format!("{}/{}{section}", text(reference, "kind"), text(reference, "name"))
}

/// What other lists say of it. A server that does not have one of them leaves that section out.
async fn around(server: &Server, kinds: &Kinds, kind: &Kind, object: &Value) {
    let (namespace, name) = (text(&object["metadata"], "namespace"), text(&object["metadata"], "name"));
    if kind.kind == "Service"
        && let Ok(value) = endpoints::ask(server, Some(&format!("{namespace}/{name}"))).await
    {
        let table = endpoints::table(items(&value), false);
        print_section("endpoints", &table, "none: no workload is ready, or no sidecar is connected");
    }
    let scope = ScopeArgs { namespace: None, all_namespaces: true, selector: None };
    let mut attached = Table::new(&["KIND", "NAME"]);
    for kind in ATTACHED.split(',').filter_map(|name| kinds.named(name).ok()) {
        for other in targets::list(server, kind, &scope).await.unwrap_or_default() {
            if points_at(&other, &text(object, "kind"), &namespace, &name) {
                let metadata = &other["metadata"];
                attached
                    .row([kind.kind.clone(), format!("{}/{}", text(metadata, "namespace"), text(metadata, "name"))]);
            }
        }
    }
    if !attached.is_empty() {
        print_section("attached", &attached, "");
    }
    let pairs = [("kind", Some(kind.kind.as_str())), ("name", Some(&name)), ("limit", Some("5"))];
    // What is written into statuses is told by the conditions.
    let rest = [("namespace", kind.namespaced.then_some(namespace.as_str())), ("statuses", Some("false"))];
    let pairs = pairs.into_iter().chain(rest);
    let path = with_query("/weft/v1/history", &pairs.collect::<Vec<_>>());
    if let Ok(value) = server.get(&path).await {
        print_section("history", &history::table(items(&value), false), "none");
    }
}

fn print_section(name: &str, table: &Table, empty: &str) {
    let width = style::width().map(|width| width.saturating_sub(2));
    let text = if table.is_empty() { empty.to_owned() } else { table.render(width) };
    anstream::print!("{}", section(name, &text));
}

/// Whether a route or policy is attached to this object.
fn points_at(other: &Value, kind: &str, namespace: &str, name: &str) -> bool {
    let own = text(&other["metadata"], "namespace");
    let lists = [(&other["spec"]["parentRefs"], "Gateway"), (&other["spec"]["targetRefs"], "Service")];
    lists.iter().any(|(list, default)| {
        list.as_array().into_iter().flatten().any(|reference| {
            let its_kind = reference["kind"].as_str().unwrap_or(default);
            let its_namespace = reference["namespace"].as_str().unwrap_or(&own);
            its_kind == kind && reference["name"] == name && its_namespace == namespace
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_told_with_its_conditions() {
        let object = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "r", "namespace": "shop", "labels": {"a": "b"}}, "spec": {"rules": []},
            "status": {"parents": [{"parentRef": {"kind": "Service", "name": "catalog"}, "conditions": [
                {"type": "Accepted", "status": "False", "reason": "NotYet", "message": "wait"}]}]}});
        let shown = anstream::adapter::strip_str(&itself(&object)).to_string();
        assert!(shown.contains("Name:        r\nNamespace:   shop\n"), "{shown}");
        assert!(shown.contains("Labels:      a=b\n") && shown.contains("Spec:\n  rules: []\n"), "{shown}");
        assert!(shown.contains("  Service/catalog  Accepted  False   NotYet  wait\n"), "{shown}");
    }

    #[test]
    fn what_points_at_a_service_is_attached_to_it() {
        let route =
            json!({"metadata": {"namespace": "shop"}, "spec": {"parentRefs": [{"kind": "Service", "name": "a"}]}});
        assert!(points_at(&route, "Service", "shop", "a"));
        assert!(!points_at(&route, "Service", "other", "a") && !points_at(&route, "Service", "shop", "b"));
        let policy =
            json!({"metadata": {"namespace": "x"}, "spec": {"targetRefs": [{"name": "a", "namespace": "shop"}]}});
        assert!(points_at(&policy, "Service", "shop", "a"));
    }
}
