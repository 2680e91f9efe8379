//! Services of a compose file: each gets two more beside it, one that holds the network which all three share, with the
//! rules that redirect, and the sidecar. What the app says of its network moves to the first; in the app it stays to be
//! read under `x-weft-...`, so that it can be taken back as it was written. Ports are [`ports`]', the two services are
//! [`services`]'.

mod ports;
mod services;

use serde_json::{Map, Value, json};

use super::{INJECTED, Options, PREFIX, USER, annotations::Settings, array, problem, unsupported};
use crate::source::{Problem, is_dns_label};

/// What a service is called that has the network of the one before it.
pub const NETWORK: &str = "-weft-net";
/// What its sidecar is called.
pub const SIDECAR: &str = "-weft";
/// The control plane, if it is in the same file: a mesh without it has nothing to wait for.
const CONTROL_PLANE: &str = "weft-control-plane";
/// The volume with the development token, when no service has a token of its own.
const RUN: &str = "weft-run";
/// Fields of a service that are its network's.
const MOVED: [&str; 13] = [
    "networks",
    "network_mode",
    "ports",
    "expose",
    "hostname",
    "domainname",
    "mac_address",
    "dns",
    "dns_search",
    "dns_opt",
    "extra_hosts",
    "links",
    "external_links",
];
/// The name of a field that is no more, where files are written as they were.
const GONE: &str = "x-weft-gone";
/// Before the name of a field that is kept for later: compose takes what begins with `x-` for a remark.
const KEPT: &str = "x-weft-";
const OPT_OUT: &str = "give it the label weft.dev/inject: disabled";

/// Fields that got another name: the path of the mapping, the old name, the new one.
pub type Renamed = Vec<(Vec<String>, String, String)>;

/// Whether a document is a compose file.
pub fn is_one(document: &Value) -> bool {
    let has = |field: &str| document.get(field).is_some();
    document.get("services").is_some_and(Value::is_object) && !has("apiVersion") && !has("kind")
}

/// Puts sidecars in, in place of those that are there; what became of each service goes to `told`.
///
/// # Errors
/// Why a service cannot have one, with the path of the field.
pub fn inject(
    file: &mut Value,
    options: &Options,
    told: &mut dyn FnMut(String, &'static str),
) -> Result<Renamed, Problem> {
    let before = file["services"].clone();
    let mut renamed = Renamed::new();
    let own = undo(file, &mut renamed);
    let names: Vec<String> = services(file).keys().cloned().collect();
    let (mut opted_out, mut dev_token, mut states) = (Vec::new(), false, Vec::new());
    for name in &names {
        let at = format!("services.{name}");
        let service = &file["services"][name];
        if !service.is_object() {
            return Err(problem(&at, "must be a mapping", ""));
        }
        let (settings, token) = settings(service, &at, options)?;
        // The control plane is no app; what lives in the network of another one has that one's sidecar.
        let elsewhere = text(service, "network_mode").starts_with("service:");
        if name == CONTROL_PLANE || elsewhere || !settings.inject {
            opted_out.push(name.clone());
            continue;
        }
        check(file, name, &at, &settings)?;
        let declared = ports::of(service, &settings, &at)?;
        let redirected =
            super::redirected(&declared, &settings).map_err(|problem| Problem { path: at.clone(), ..problem })?;
        let flags: Vec<&str> = declared.iter().map(|port| port.flag.as_str()).collect();
        let app = services::App { name, service, settings: &settings, token: token.as_deref() };
        let (network, sidecar) = (
            app.network(&redirected),
            app.sidecar(&flags, &redirected, names.iter().any(|name| name == CONTROL_PLANE)),
        );
        match &token {
            None => dev_token = true,
            Some(_) => states.push(services::state_volume(name)),
        }
        let all = services_mut(file)?;
        all.insert(format!("{name}{NETWORK}"), network);
        all.insert(format!("{name}{SIDECAR}"), sidecar);
        if let Some(app) = all.get_mut(name).and_then(Value::as_object_mut) {
            keep(app, name, &mut renamed);
        }
    }
    volumes(file, dev_token, &states)?;
    for name in &names {
        let same = |name: &str| before.get(name) == file["services"].get(name);
        told(
            format!("service/{name}"),
            if opted_out.contains(name) && !own.contains(name) {
                "opted out"
            } else if ["", NETWORK, SIDECAR].iter().all(|end| same(&format!("{name}{end}"))) {
                "unchanged"
            } else if opted_out.contains(name) {
                "uninjected"
            } else {
                "injected"
            },
        );
    }
    Ok(renamed)
}

/// Takes sidecars out; what became of each service goes to `told`.
pub fn uninject(file: &mut Value, told: &mut dyn FnMut(String, &'static str)) -> Renamed {
    let mut renamed = Renamed::new();
    let own = undo(file, &mut renamed);
    for name in services(file).keys() {
        told(format!("service/{name}"), if own.contains(name) { "uninjected" } else { "unchanged" });
    }
    renamed
}

/// The names of the services that had a sidecar.
fn undo(file: &mut Value, renamed: &mut Renamed) -> Vec<String> {
    let Ok(all) = services_mut(file) else { return Vec::new() };
    let of = |(name, service): (&String, &Value)| {
        name.strip_suffix(NETWORK).filter(|_| label(service, INJECTED).is_some()).map(str::to_owned)
    };
    let injected: Vec<String> = all.iter().filter_map(of).collect();
    for name in &injected {
        for end in [NETWORK, SIDECAR] {
            all.remove(&format!("{name}{end}"));
        }
        let Some(app) = all.get_mut(name).and_then(Value::as_object_mut) else { continue };
        for made in ["depends_on", "network_mode"] {
            app.remove(made);
            renamed.push((vec!["services".into(), name.clone()], made.into(), GONE.into()));
        }
        for field in MOVED.iter().chain(&["depends_on"]) {
            rename(app, name, (&format!("{KEPT}{field}"), field), renamed);
        }
    }
    if let Some(volumes) = file.get_mut("volumes").and_then(Value::as_object_mut) {
        volumes.retain(|_, volume| label(volume, INJECTED).is_none());
        let empty = volumes.is_empty();
        if let Some(whole) = file.as_object_mut().filter(|_| empty && !injected.is_empty()) {
            whole.remove("volumes");
        }
    }
    injected
}

/// The app lives in the network of the other service, starts when the sidecar is ready, and again when the network is.
fn keep(app: &mut Map<String, Value>, name: &str, renamed: &mut Renamed) {
    let mut depends = match app.get("depends_on") {
        Some(Value::Object(all)) => all.clone(),
        Some(Value::Array(all)) => {
            let started = |one: &Value| Some((one.as_str()?.to_owned(), json!({ "condition": "service_started" })));
            all.iter().filter_map(started).collect()
        }
        _ => Map::new(),
    };
    for field in MOVED.iter().chain(&["depends_on"]) {
        rename(app, name, (field, &format!("{KEPT}{field}")), renamed);
    }
    let ready = json!({ "condition": "service_healthy", "restart": true });
    for end in [NETWORK, SIDECAR] {
        depends.insert(format!("{name}{end}"), ready.clone());
    }
    app.insert("depends_on".into(), Value::Object(depends));
    app.insert("network_mode".into(), format!("service:{name}{NETWORK}").into());
}

fn rename(app: &mut Map<String, Value>, service: &str, (from, to): (&str, &str), renamed: &mut Renamed) {
    if let Some(value) = app.remove(from) {
        app.insert(to.to_owned(), value);
        renamed.push((vec!["services".into(), service.to_owned()], from.to_owned(), to.to_owned()));
    }
}

/// What holds for one service, by its labels, and its file of an enrolment token.
fn settings(service: &Value, at: &str, options: &Options) -> Result<(Settings, Option<String>), Problem> {
    let mut labels = labels(service);
    labels.retain(|name, _| name.starts_with(PREFIX));
    let token = labels.remove("weft.dev/token").map(|file| shown(&file));
    if token.as_ref().is_some_and(|file| file.is_empty() || file.contains(':')) {
        let hint = "as ./web.token, made by: weft token create --service-account NAME --out FILE";
        return Err(problem(&format!("{at}.labels.weft.dev/token"), "expected the path of a file", hint));
    }
    let labels: Map<_, _> = labels.into_iter().map(|(name, value)| (name, shown(&value).into())).collect();
    let pod = json!({ "metadata": { "annotations": labels } });
    let options = Options { xds: options.compose_xds.clone(), ..options.clone() };
    let settings = Settings::of(&pod, &options).map_err(|problem| {
        let label = problem.path.trim_start_matches("metadata.annotations.");
        let message = problem.message.replace("annotation", "label");
        Problem { path: format!("{at}.labels.{label}"), message, ..problem }
    })?;
    Ok((settings, token))
}

/// What the service has to be for a sidecar.
fn check(file: &Value, name: &str, at: &str, settings: &Settings) -> Result<(), Problem> {
    let service = &file["services"][name];
    let field = |field: &str| format!("{at}.{field}");
    if !is_dns_label(name) {
        let text = "the name is none of a mesh service: lower-case letters, digits and '-'";
        return Err(unsupported(at, text, &format!("rename it, or {OPT_OUT}")));
    }
    for end in [NETWORK, SIDECAR] {
        let other = format!("{name}{end}");
        if file["services"].get(&other).is_some() {
            return Err(problem(
                &format!("services.{other}"),
                "the name is taken for the mesh's own service",
                "rename it",
            ));
        }
    }
    match text(service, "network_mode") {
        "" | "bridge" | "default" => {}
        mode => {
            let text = format!("{mode:?} is a network in which a sidecar would take the traffic of others, or none");
            return Err(unsupported(&field("network_mode"), text, OPT_OUT));
        }
    }
    if service.get("extends").is_some() {
        let text = "what it extends may have ports and networks, which are not known here";
        return Err(unsupported(
            &field("extends"),
            text,
            "inject into the whole: docker compose config | weft inject -f -",
        ));
    }
    let counts = [("scale", service.get("scale")), ("deploy.replicas", service.pointer("/deploy/replicas"))];
    for (path, count) in counts {
        if count.is_some_and(|count| *count != json!(1)) {
            let text = "several instances would share one network: a sidecar belongs to one";
            return Err(unsupported(&field(path), text, &format!("make a service of each, or {OPT_OUT}")));
        }
    }
    let user = service.get("user").map(shown).unwrap_or_default();
    if settings.redirect && user.split(':').next() == Some(USER.to_string().as_str()) {
        let text =
            format!("{USER} is the user of the sidecar, whose traffic is not redirected: the app would pass the mesh");
        return Err(unsupported(&field("user"), text, "let it run as another user"));
    }
    if settings.memory_limit.as_deref().is_some_and(|limit| services::bytes(limit).is_none()) {
        let text = "compose takes a whole number of bytes, with the unit k, M, G, Ki, Mi or Gi";
        return Err(problem(&field("labels.weft.dev/memory-limit"), text, "such as 256Mi"));
    }
    let sysctls = service.get("sysctls").cloned().unwrap_or_default();
    let names: Vec<String> = match &sysctls {
        Value::Object(all) => all.keys().cloned().collect(),
        _ => array(service, "sysctls").iter().map(shown).collect(),
    };
    if names.iter().any(|name| name.starts_with("net.")) {
        let text = "its network is another service's once it is injected, which does not get settings of the kernel";
        return Err(unsupported(&field("sysctls"), text, OPT_OUT));
    }
    Ok(())
}

/// Declares the volumes that the new services use.
fn volumes(file: &mut Value, dev_token: bool, states: &[String]) -> Result<(), Problem> {
    let names: Vec<&str> = dev_token.then_some(RUN).into_iter().chain(states.iter().map(String::as_str)).collect();
    let Some(whole) = file.as_object_mut().filter(|_| !names.is_empty()) else { return Ok(()) };
    let place = whole.entry("volumes").or_insert(Value::Null);
    if place.is_null() {
        *place = Value::Object(Map::new());
    }
    let all = place.as_object_mut().ok_or_else(|| problem("volumes", "must be a mapping", ""))?;
    let version = env!("CARGO_PKG_VERSION");
    for name in names {
        // The file may have it already, for the control plane.
        all.entry(name).or_insert_with(|| json!({ "labels": { INJECTED: version } }));
    }
    Ok(())
}

fn services(file: &Value) -> &Map<String, Value> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    file.get("services").and_then(Value::as_object).unwrap_or(&NONE)
}

fn services_mut(file: &mut Value) -> Result<&mut Map<String, Value>, Problem> {
    let services = file.get_mut("services").and_then(Value::as_object_mut);
    services.ok_or_else(|| problem("services", "must be a mapping", ""))
}

/// Labels, which are a mapping or a list of `KEY=VALUE`.
fn labels(of: &Value) -> Map<String, Value> {
    match of.get("labels") {
        Some(Value::Object(all)) => all.clone(),
        Some(Value::Array(all)) => {
            let pair = |item: &Value| {
                let text = shown(item);
                let (name, value) = text.split_once('=').unwrap_or((&text, ""));
                (name.to_owned(), value.into())
            };
            all.iter().map(pair).collect()
        }
        _ => Map::new(),
    }
}

fn label(of: &Value, name: &str) -> Option<Value> {
    labels(of).get(name).cloned()
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// A scalar as text, as compose takes it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests;
