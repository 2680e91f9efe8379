//! Sidecars put beside existing pods: [`pod`] and [`undo`] change one pod or pod template as a JSON tree, [`text`] does
//! it for files. Pure: the command `weft inject` and the admission webhook use the same code.

mod annotations;
mod compose;
mod emit;
pub mod patch;
mod probes;
mod sidecar;
pub mod text;
mod tree;
mod undo;
mod workload;

use serde_json::{Map, Value};

use self::{annotations::Settings, undo::Record};
pub use self::{
    annotations::{ANNOTATIONS, PREFIX},
    undo::undo,
};
use crate::source::{Problem, Reason};

/// Annotation of an injected pod: what has to be put back by [`undo`], as JSON.
pub const INJECTED: &str = "weft.dev/injected";
/// Name of the sidecar's container.
pub const SIDECAR: &str = "weft-sidecar";
/// Name of the init container that redirects the pod's traffic.
pub const REDIRECT: &str = "weft-redirect";
/// Name of the volume with token, roots and labels.
pub const VOLUME: &str = "weft";
/// ConfigMap with the mesh's roots, in every namespace.
pub const ROOTS: &str = "weft-roots";
/// Where other sidecars call.
pub const MESH_PORT: u16 = 15008;
/// Where redirected connections of the app arrive.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where the app may call services by Host.
pub const PROXY_PORT: u16 = 15002;
/// Where redirected DNS of the app arrives.
pub const DNS_PORT: u16 = 15053;
/// Where redirected connections to ports that the app does not declare arrive.
pub const REST_PORT: u16 = 15099;
/// Where redirected connections to the first port of the app arrive; those to the second arrive at the next port.
pub const INBOUND_PORT: u16 = 15100;
/// Ports of one app.
const MAX_PORTS: u16 = 128;
/// Admin server, on loopback.
pub const ADMIN_PORT: u16 = 15020;
/// Health of the sidecar, and the app's probes.
pub const HEALTH_PORT: u16 = 15021;
/// User and group of the sidecar; traffic of this user is not redirected.
pub const USER: u32 = 15000;
/// Sidecars of other meshes: two of them in a pod redirect each other's traffic.
const OTHERS: [&str; 5] = ["istio-proxy", "linkerd-proxy", "kuma-sidecar", "consul-dataplane", "osm-proxy"];

/// What is the same for all pods; annotations of a pod win.
#[derive(Clone, Debug)]
pub struct Options {
    /// Image of the sidecar, with the command `weft` as its entry point.
    pub image: String,
    /// Image of the init container, which has `nft` too.
    pub redirect_image: String,
    /// `host:port` of the control plane's discovery.
    pub xds: String,
    /// The same for services of a compose file.
    pub compose_xds: String,
    /// Log filter of the sidecars.
    pub log: String,
    /// Redirect the pod's traffic through the sidecar.
    pub redirect: bool,
}

impl Options {
    /// For a control plane that `weft install` put into this namespace.
    #[must_use]
    pub fn of(namespace: &str) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Self {
            image: format!("weft:{version}"),
            redirect_image: format!("weft-redirect:{version}"),
            xds: format!("weft-control-plane.{namespace}.svc:15012"),
            compose_xds: "weft-control-plane:15012".into(),
            log: "info".into(),
            redirect: true,
        }
    }
}

/// What became of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Done {
    /// It has the sidecar, as it is now or as it was before.
    Injected,
    /// It wants none.
    OptedOut,
}

/// Puts the sidecar into a pod or pod template, in place of one that is there. `labels` and annotations are the pod's.
///
/// # Errors
/// Why it cannot have one, with the path of the field. The pod may be half changed then.
pub fn pod(pod: &mut Value, options: &Options) -> Result<Done, Problem> {
    undo(pod)?;
    let settings = Settings::of(pod, options)?;
    if !settings.inject {
        return Ok(Done::OptedOut);
    }
    check(pod, &settings)?;
    let ports = app_ports(pod, &settings)?;
    let redirected = redirected(&ports, &settings)?;
    let mut record = Record::default();
    let probes = probes::rewrite(pod, &settings, &mut record)?;
    let grace = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64);
    let flags: Vec<&str> = ports.iter().map(|port| port.flag.as_str()).collect();
    let sidecar = sidecar::container(&settings, &flags, &redirected, &probes, grace);
    let first = list(pod, "/spec", "initContainers", &mut record)?;
    first.insert(0, sidecar);
    if settings.redirect {
        first.insert(0, sidecar::redirect(&settings, &redirected));
    }
    list(pod, "/spec", "volumes", &mut record)?.push(sidecar::volume());
    record.write(pod)?;
    Ok(Done::Injected)
}

/// What the pod has to be for a sidecar.
fn check(pod: &Value, settings: &Settings) -> Result<(), Problem> {
    if pod.pointer("/spec/containers").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        return Err(problem("spec.containers", "a pod needs containers", "is this a pod template?"));
    }
    let opt_out = "give it the annotation weft.dev/inject: disabled, or its own network";
    if pod.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true) {
        let text = "the pod uses the network of its node: a sidecar would take the traffic of the whole node";
        return Err(unsupported("spec.hostNetwork", text, opt_out));
    }
    if pod.pointer("/spec/os/name").and_then(Value::as_str) == Some("windows") {
        let hint = "give it the annotation weft.dev/inject: disabled";
        return Err(unsupported("spec.os.name", "the sidecar runs on Linux only", hint));
    }
    for (path, container) in containers(pod) {
        let at = |field: &str| format!("{path}.{field}");
        let Some(name) = container.get("name").and_then(Value::as_str) else {
            return Err(problem(&at("name"), "a container needs a name", ""));
        };
        if OTHERS.contains(&name) {
            let text = format!("{name:?} is the sidecar of another mesh");
            return Err(unsupported(&at("name"), text, "a pod can be in one mesh: take it out of the other one first"));
        }
        if [SIDECAR, REDIRECT].contains(&name) {
            let text = format!("the name {name:?} is taken for the mesh's own container");
            return Err(problem(&at("name"), text, "rename it, or take the one out that was put there by hand"));
        }
        for (index, port) in array(container, "ports").iter().enumerate() {
            let at = format!("{path}.ports[{index}].containerPort");
            let number = port_number(port.get("containerPort"), &at)?;
            if is_taken(number) {
                let text = format!("port {number} is the sidecar's");
                return Err(problem(&at, text, "let the app listen on another one"));
            }
        }
    }
    user(pod.pointer("/spec/securityContext"), "spec", settings)?;
    for (path, container) in containers(pod) {
        user(container.get("securityContext"), &path, settings)?;
    }
    if array(pod.get("spec").unwrap_or(&Value::Null), "volumes").iter().any(|volume| volume["name"] == VOLUME) {
        return Err(problem("spec.volumes", format!("the name {VOLUME:?} is taken for the mesh's own"), "rename it"));
    }
    Ok(())
}

/// The rules of redirection know the sidecar's traffic by its user: an app of this user would pass the mesh.
fn user(context: Option<&Value>, path: &str, settings: &Settings) -> Result<(), Problem> {
    let same = context.and_then(|context| context.get("runAsUser")).and_then(Value::as_u64) == Some(USER.into());
    if !same || !settings.redirect {
        return Ok(());
    }
    let text =
        format!("{USER} is the user of the sidecar, whose traffic is not redirected: the app would pass the mesh");
    let hint = "let it run as another user, or give the pod the annotation weft.dev/redirect: disabled";
    Err(unsupported(&format!("{path}.securityContext.runAsUser"), text, hint))
}

/// A port of the app.
#[derive(Debug)]
struct AppPort {
    number: u16,
    /// As the sidecar's flag has it: `[NAME:]PORT[/PROTOCOL]`.
    flag: String,
}

/// The ports of the annotation, or of the containers.
fn app_ports(pod: &Value, settings: &Settings) -> Result<Vec<AppPort>, Problem> {
    if let Some(ports) = &settings.ports {
        return Ok(ports.iter().map(|(number, flag)| AppPort { number: *number, flag: flag.clone() }).collect());
    }
    let mut ports: Vec<AppPort> = Vec::new();
    for (path, container) in containers(pod) {
        // What ends before the app starts takes no calls.
        if path.starts_with("spec.initContainers") && container["restartPolicy"] != "Always" {
            continue;
        }
        for (index, port) in array(container, "ports").iter().enumerate() {
            if port.get("protocol").and_then(Value::as_str).is_some_and(|protocol| protocol != "TCP") {
                continue;
            }
            let number = port_number(port.get("containerPort"), &format!("{path}.ports[{index}].containerPort"))?;
            if ports.iter().all(|known| known.number != number) {
                let name = port.get("name").and_then(Value::as_str);
                ports.push(AppPort {
                    number,
                    flag: name.map_or_else(|| number.to_string(), |name| format!("{name}:{number}")),
                });
            }
        }
    }
    Ok(ports)
}

/// The ports of the app that others reach through the sidecar, and where that takes them.
fn redirected(ports: &[AppPort], settings: &Settings) -> Result<Vec<(u16, u16)>, Problem> {
    if !settings.redirect {
        return Ok(Vec::new());
    }
    let numbers = ports.iter().map(|port| port.number).filter(|port| !settings.exclude_inbound_ports.contains(port));
    let pairs: Vec<(u16, u16)> = numbers.zip(INBOUND_PORT..INBOUND_PORT + MAX_PORTS).collect();
    if ports.len() > usize::from(MAX_PORTS) {
        let text = format!("{} ports are too many: a sidecar takes {MAX_PORTS}", ports.len());
        return Err(problem("spec.containers", text, "name those that count in the annotation weft.dev/ports"));
    }
    Ok(pairs)
}

/// All containers with their paths, those of the app first.
fn containers(pod: &Value) -> impl Iterator<Item = (String, &Value)> {
    ["containers", "initContainers"].into_iter().flat_map(move |field| {
        let all = pod.get("spec").map(|spec| array(spec, field)).unwrap_or_default();
        all.iter().enumerate().map(move |(index, container)| (format!("spec.{field}[{index}]"), container))
    })
}

/// Whether the port is one of the sidecar's.
fn is_taken(port: u16) -> bool {
    [MESH_PORT, HEALTH_PORT, ADMIN_PORT, OUTBOUND_PORT, PROXY_PORT, DNS_PORT, REST_PORT].contains(&port)
        || (INBOUND_PORT..INBOUND_PORT + MAX_PORTS).contains(&port)
}

/// The list in this field; empty when there is none.
fn array<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The list at `parent` and `field`, made when it is not there.
fn list<'a>(pod: &'a mut Value, parent: &str, field: &str, record: &mut Record) -> Result<&'a mut Vec<Value>, Problem> {
    let path = format!("{parent}/{field}");
    let place = object(pod, parent)?.entry(field).or_insert(Value::Null);
    if place.is_null() {
        *place = Value::Array(Vec::new());
        record.made(&path);
    }
    let dotted = path.trim_start_matches('/').replace('/', ".");
    place.as_array_mut().ok_or_else(|| problem(&dotted, "must be a list", ""))
}

/// The object at this pointer.
fn object<'a>(pod: &'a mut Value, pointer: &str) -> Result<&'a mut Map<String, Value>, Problem> {
    let dotted = pointer.trim_start_matches('/').replace('/', ".");
    pod.pointer_mut(pointer).and_then(Value::as_object_mut).ok_or_else(|| problem(&dotted, "must be a mapping", ""))
}

/// A port from 1 to 65535.
fn port_number(value: Option<&Value>, path: &str) -> Result<u16, Problem> {
    let number = value.and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok()).filter(|&port| port > 0);
    number.ok_or_else(|| {
        let shown = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
        problem(path, format!("{shown} is no port"), "a number from 1 to 65535, without quotation marks")
    })
}

/// A problem of a pod that is right in itself and cannot have a sidecar.
fn unsupported(path: &str, message: impl Into<String>, hint: &str) -> Problem {
    problem(path, message, hint).because(Reason::UnsupportedValue)
}

/// A problem of a pod; whoever knows file and line adds them.
fn problem(path: &str, message: impl Into<String>, hint: &str) -> Problem {
    Problem { path: path.into(), message: message.into(), hint: hint.into(), ..Problem::default() }
}

#[cfg(test)]
mod tests;
