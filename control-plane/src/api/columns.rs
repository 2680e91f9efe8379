//! Columns of tables: what `kubectl get` shows of each kind.

use serde_json::Value;

use super::kinds::field;

/// A column between NAME and AGE.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// Shown only with `-o wide`.
    pub wide: bool,
    /// What it says.
    pub description: &'static str,
    /// Its text of an object.
    pub value: fn(&Value) -> String,
}

const fn column(name: &'static str, description: &'static str, value: fn(&Value) -> String) -> Column {
    Column { name, wide: false, description, value }
}

const fn wide(name: &'static str, description: &'static str, value: fn(&Value) -> String) -> Column {
    Column { wide: true, ..column(name, description, value) }
}

const ACCEPTED: Column =
    column("Accepted", "Whether every target or parent has taken it.", |object| condition(object, "Accepted"));
const PROGRAMMED: Column =
    wide("Programmed", "Whether the sidecars act on it.", |object| condition(object, "Programmed"));
const TARGETS: Column = column("Targets", "What the policy is attached to.", targets);

pub const NAMESPACE: &[Column] = &[column("Status", "Phase of the namespace.", |object| {
    let going = field(object, &["metadata", "deletionTimestamp"]).is_string();
    if going { "Terminating".into() } else { "Active".into() }
})];
pub const SERVICE: &[Column] = &[
    column("Type", "How it is reached.", |object| text(object, &["spec", "type"], "ClusterIP")),
    column("Cluster-IP", "Its virtual address.", |object| text(object, &["spec", "clusterIP"], "<none>")),
    column("External-IP", "Addresses outside of the mesh.", |object| {
        list(field(object, &["spec", "externalIPs"]), |address| address.as_str().unwrap_or_default().to_owned())
    }),
    column("Port(s)", "Ports and protocols.", |object| list(field(object, &["spec", "ports"]), service_port)),
    wide("Selector", "Labels of its workloads.", |object| labels(field(object, &["spec", "selector"]))),
];
pub const ENDPOINT_SLICE: &[Column] = &[
    column("AddressType", "IPv4 or IPv6.", |object| text(object, &["addressType"], "<none>")),
    column("Ports", "Ports of the endpoints.", |object| list(field(object, &["ports"]), |port| number(&port["port"]))),
    column("Endpoints", "Their addresses.", |object| {
        list(field(object, &["endpoints"]), |endpoint| list(&endpoint["addresses"], plain))
    }),
];
pub const HTTP_ROUTE: &[Column] = &[
    column("Hostnames", "Hosts that it matches.", |object| list(field(object, &["spec", "hostnames"]), plain)),
    column("Parents", "What it is attached to.", |object| list(field(object, &["spec", "parentRefs"]), reference)),
    ACCEPTED,
    PROGRAMMED,
];
pub const GRPC_ROUTE: &[Column] = HTTP_ROUTE;
pub const REFERENCE_GRANT: &[Column] = &[
    column("From", "Who may refer.", |object| {
        list(field(object, &["spec", "from"]), |from| format!("{}/{}", plain(&from["namespace"]), plain(&from["kind"])))
    }),
    column("To", "To what.", |object| list(field(object, &["spec", "to"]), |to| plain(&to["kind"]))),
];
pub const WORKLOAD: &[Column] = &[
    column("Address", "Where the app is.", |object| text(object, &["spec", "address"], "<none>")),
    column("Mesh", "Where its sidecar is.", |object| text(object, &["spec", "meshAddress"], "<none>")),
    column("Ports", "Ports of the app.", |object| {
        list(field(object, &["spec", "ports"]), |port| number(&port["port"]))
    }),
    wide("Labels", "Its labels.", |object| labels(field(object, &["metadata", "labels"]))),
];
pub const TRAFFIC: &[Column] = &[
    TARGETS,
    column("Timeout", "Time for a request.", |object| text(object, &["spec", "timeouts", "request"], "<none>")),
    column("Retries", "Attempts after the first.", |object| number(field(object, &["spec", "retries", "attempts"]))),
    ACCEPTED,
    PROGRAMMED,
];
pub const AUTHORIZATION: &[Column] = &[
    TARGETS,
    column("Action", "Allow or Deny.", |object| text(object, &["spec", "action"], "Allow")),
    column("Rules", "Number of rules.", |object| count(field(object, &["spec", "rules"]))),
    wide("Dry-Run", "Whether it only logs.", |object| {
        (field(object, &["spec", "dryRun"]) == &Value::Bool(true)).to_string()
    }),
    ACCEPTED,
    PROGRAMMED,
];
pub const PEER: &[Column] = &[
    TARGETS,
    column("Mode", "Strict or Permissive.", |object| text(object, &["spec", "mode"], "")),
    ACCEPTED,
    PROGRAMMED,
];
pub const POLICY: &[Column] = &[TARGETS, ACCEPTED, PROGRAMMED];
pub const MESH: &[Column] = &[
    column("Peer-Mode", "Strict or Permissive.", |object| text(object, &["spec", "peerMode"], "Permissive")),
    ACCEPTED,
    PROGRAMMED,
];

fn text(object: &Value, path: &[&str], default: &str) -> String {
    field(object, path).as_str().unwrap_or(default).to_owned()
}

fn plain(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> String {
    if value.is_number() { value.to_string() } else { "<none>".into() }
}

fn count(value: &Value) -> String {
    value.as_array().map_or(0, Vec::len).to_string()
}

/// Texts of a list, at most three of them.
fn list(value: &Value, show: impl Fn(&Value) -> String) -> String {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut shown: Vec<String> = items.iter().take(3).map(show).collect();
    if items.len() > 3 {
        shown.push(format!("+{} more", items.len() - 3));
    }
    if shown.is_empty() { "<none>".into() } else { shown.join(",") }
}

fn labels(value: &Value) -> String {
    let pairs = value.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", plain(value)));
    let pairs: Vec<String> = pairs.collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",") }
}

fn service_port(port: &Value) -> String {
    format!("{}/{}", number(&port["port"]), port["protocol"].as_str().unwrap_or("TCP"))
}

fn reference(reference: &Value) -> String {
    let kind = reference["kind"].as_str().unwrap_or("Gateway");
    let port = reference["port"].as_u64().map_or_else(String::new, |port| format!(":{port}"));
    format!("{kind}/{}{port}", plain(&reference["name"]))
}

fn targets(object: &Value) -> String {
    let refs = field(object, &["spec", "targetRefs"]);
    let selector = field(object, &["spec", "selector", "matchLabels"]);
    if refs.as_array().is_some_and(|refs| !refs.is_empty()) {
        list(refs, reference)
    } else if selector.is_object() {
        labels(selector)
    } else {
        format!("Namespace/{}", text(object, &["metadata", "namespace"], ""))
    }
}

/// The state of a condition over all targets, parents or the object itself: False where one of them is.
fn condition(object: &Value, name: &str) -> String {
    let status = &object["status"];
    let nested = ["ancestors", "parents"].iter().filter_map(|list| status[list].as_array()).flatten();
    let groups = nested.map(|entry| &entry["conditions"]).chain([&status["conditions"]]);
    let found: Vec<&str> = groups
        .filter_map(Value::as_array)
        .flatten()
        .filter(|condition| condition["type"] == name)
        .filter_map(|condition| condition["status"].as_str())
        .collect();
    match found.iter().find(|state| **state != "True") {
        Some(state) => (*state).to_owned(),
        None => found.first().map_or_else(String::new, |state| (*state).to_owned()),
    }
}
