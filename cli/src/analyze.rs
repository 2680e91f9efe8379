//! `weft analyze`: resource files checked without a server, by the loader and the compiler of the control plane, and
//! beside each other.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use weft_control_plane::{
    beside,
    compile::compile,
    source::{Origin, Problem, Reason, Resources},
};

use crate::{
    conflicts::{self, Item},
    listing::{self, Output, number},
    objects::{self, Source},
    problems::{Severity, render},
    style::{self, GOOD},
    table::Table,
};

/// Flags of `weft analyze`.
#[derive(Args, Clone, Debug)]
pub struct AnalyzeArgs {
    /// File, directory of .yaml, .yml and .json files, or - for standard input; all are looked at together
    #[arg(required = true, value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    /// Trust domain of the identities
    #[arg(long, value_name = "NAME", default_value = "weft.local")]
    pub trust_domain: String,
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Finding {
    severity: &'static str,
    #[serde(flatten)]
    problem: Problem,
    #[serde(skip)]
    level: Severity,
}

/// Prints the problems: exit code 1 when one is an error, 3 when there are warnings.
pub fn run(args: &AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let sources = objects::read(&args.files)?;
    let (findings, count) = analyze(&sources, &args.trust_domain);
    let errors = findings.iter().filter(|finding| finding.level == Severity::Error).count();
    let warnings = findings.len() - errors;
    if matches!(args.output, Output::Table | Output::Wide) {
        for finding in &findings {
            let text = sources.iter().find(|source| source.file == finding.problem.file);
            anstream::println!("{}", render(&finding.problem, finding.level, text.map(|source| source.text.as_str())));
        }
        let good = if findings.is_empty() { style::paint(GOOD, "no problems") } else { String::new() };
        let told = if findings.is_empty() {
            good
        } else {
            format!("{}, {}", number(errors, "error"), number(warnings, "warning"))
        };
        anstream::println!("{told} in {} of {}", number(count, "object"), number(sources.len(), "file"));
    } else {
        let names: Vec<String> = findings.iter().map(|finding| finding.problem.to_string()).collect();
        let value = serde_json::json!({ "items": findings });
        listing::print(args.output, &value, &names, &Table::default(), "");
    }
    Ok(ExitCode::from(match (errors, warnings) {
        (0, 0) => 0,
        (0, _) => 3,
        _ => 1,
    }))
}

/// All problems by place, and how many objects were read. What makes an object unusable is an error; what becomes of
/// objects beside others is a warning, because the others may be elsewhere.
fn analyze(sources: &[Source], trust_domain: &str) -> (Vec<Finding>, usize) {
    let (mut all, mut errors) =
        (Resources { trust_domain: trust_domain.to_owned(), ..Resources::default() }, Vec::new());
    let mut values = Vec::new();
    for source in sources {
        let (resources, problems) = Resources::from_text(&source.file, &source.text);
        errors.extend(problems);
        merge(&mut all, resources, &mut errors);
        // What cannot be parsed was reported above.
        values.extend(objects::parse(source).unwrap_or_default());
    }
    let items: Vec<Item> = values.into_iter().filter_map(|value| item(&all, value)).collect();
    let (_, mut warnings) = compile(&all, &[]);
    // Nothing is fetched here.
    warnings.retain(|problem| problem.reason != Reason::KeysMissing);
    warnings.extend(conflicts::find(&items));
    warnings.extend(beside::shared(&all));
    // Both look at the references of routes: one report of a place is enough.
    let mut seen = BTreeMap::new();
    warnings.retain(|problem| seen.insert((problem.file.clone(), problem.line, problem.column), ()).is_none());
    let finding = |level: Severity, problem: Problem| {
        let severity = if level == Severity::Error { "error" } else { "warning" };
        Finding { severity, problem, level }
    };
    let errors = errors.into_iter().map(|problem| finding(Severity::Error, problem));
    let mut findings: Vec<Finding> =
        errors.chain(warnings.into_iter().map(|problem| finding(Severity::Warning, problem))).collect();
    findings.sort_by(|a, b| (a.level, &a.problem).cmp(&(b.level, &b.problem)));
    (findings, items.len())
}

/// The object with the places of its fields, when it was loaded.
fn item(resources: &Resources, value: Value) -> Option<Item> {
    let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, name, namespace) = (text("/kind"), text("/metadata/name"), text("/metadata/namespace"));
    let namespace = if namespace.is_empty() { "default".to_owned() } else { namespace };
    let found = origin(resources, &kind, &format!("{namespace}/{name}")).or_else(|| origin(resources, &kind, &name));
    Some(Item { origin: found?, kind, namespace, name, value })
}

macro_rules! kinds {
    ($($kind:literal $map:ident;)*) => {
        /// Adds the objects of one file; of two with the same name the first stays.
        fn merge(into: &mut Resources, from: Resources, problems: &mut Vec<Problem>) {
            $(for (id, object) in from.$map {
                match into.$map.entry(id) {
                    Entry::Vacant(free) => {
                        free.insert(object);
                    }
                    Entry::Occupied(first) => {
                        problems.push(twice($kind, first.key(), &first.get().origin, &object.origin));
                    }
                }
            })*
        }

        /// Where the object of this kind and id was written.
        fn origin(resources: &Resources, kind: &str, id: &str) -> Option<Arc<Origin>> {
            match kind {
                $($kind => resources.$map.get(id).map(|object| Arc::clone(&object.origin)),)*
                _ => None,
            }
        }
    };
}

kinds! {
    "Namespace" namespaces;
    "Service" services;
    "EndpointSlice" endpoint_slices;
    "HTTPRoute" routes;
    "GRPCRoute" grpc_routes;
    "ReferenceGrant" reference_grants;
    "Workload" workloads;
    "TrafficPolicy" traffic_policies;
    "AuthorizationPolicy" authorization_policies;
    "PeerAuthentication" peer_authentications;
    "RateLimitPolicy" rate_limit_policies;
    "FaultInjection" fault_injections;
    "TelemetryPolicy" telemetry_policies;
    "RequestAuthentication" request_authentications;
    "MeshConfig" mesh_configs;
}

fn twice(kind: &str, id: &str, first: &Origin, second: &Origin) -> Problem {
    let there = first.problem("metadata.name", "", "");
    let message = format!("{kind} {id} is already defined at {}:{}:{}", there.file, there.line, there.column);
    second.problem("metadata.name", message, "remove one of them")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
    const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  \
        parentRefs: [{group: '', kind: Service, name: a}]\n  rules:\n  - backendRefs:\n    - {name: gone, port: 80}\n";

    fn found(texts: &[&str]) -> Vec<String> {
        let sources =
            (1..).zip(texts).map(|(index, text)| Source { file: format!("{index}.yaml"), text: (*text).into() });
        let (findings, _) = analyze(&sources.collect::<Vec<_>>(), "weft.local");
        findings.iter().map(|finding| format!("{} {}", finding.severity, finding.problem)).collect()
    }

    #[test]
    fn good_files_have_no_problems() {
        assert_eq!(found(&[SERVICE, &ROUTE.replace("gone", "a")]), Vec::<String>::new());
    }

    #[test]
    fn a_backend_that_does_not_exist_is_one_warning_at_its_place() {
        let found = found(&[SERVICE, ROUTE]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("warning 2.yaml:8:14: spec.rules[0].backendRefs[0].name"), "{found:?}");
    }

    #[test]
    fn an_object_that_two_files_define_is_an_error_in_the_second() {
        let found = found(&[SERVICE, SERVICE]);
        let expected = "error 2.yaml:3:18: metadata.name: Service default/a is already defined at 1.yaml:3:18";
        assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
    }

    #[test]
    fn errors_come_before_warnings() {
        let found = found(&[SERVICE, ROUTE, "kind: [\n"]);
        assert!(found[0].starts_with("error 3.yaml") && found[1].starts_with("warning"), "{found:?}");
    }
}
