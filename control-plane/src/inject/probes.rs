//! The app's probes and HTTP hooks, which the kubelet makes without a mesh identity: they go to the sidecar's health
//! port, which makes them to the app.

use serde_json::{Map, Value, json};

use super::{HEALTH_PORT, annotations::Settings, array, port_number, problem, undo::Record};
use crate::source::Problem;

/// Where the probes of the app are, at the health port.
pub const PATH: &str = "/probe";

const PROBES: [(&str, &str); 3] =
    [("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz")];
/// Kubernetes' `terminationGracePeriodSeconds` of a pod that names none.
const GRACE: u64 = 30;
const HOOKS: [(&str, &str); 2] = [("postStart", "poststart"), ("preStop", "prestop")];

/// Rewrites what goes to ports that are redirected, which are all that are not left out, declared or not; the result are values of the sidecar's flag `--app-probe`.
pub fn rewrite(pod: &mut Value, settings: &Settings, record: &mut Record) -> Result<Vec<String>, Problem> {
    let mut flags = Vec::new();
    if !settings.rewrite_probes || !settings.redirect {
        return Ok(flags);
    }
    let grace = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(GRACE);
    for field in ["containers", "initContainers"] {
        let all = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
        for (index, container) in all.into_iter().flatten().enumerate() {
            let path = format!("spec.{field}[{index}]");
            let ports = array(container, "ports").to_vec();
            let Some(name) = container.get("name").and_then(Value::as_str).map(str::to_owned) else { continue };
            let Some(container) = container.as_object_mut() else { continue };
            let mut one =
                One { name: &name, ports: &ports, direct: &settings.exclude_inbound_ports, grace, flags: &mut flags };
            for (field, kind) in PROBES {
                let before = container.get(field).cloned();
                if let Some(probe) = container.get_mut(field).and_then(Value::as_object_mut)
                    && one.handler(probe, kind, &format!("{path}.{field}"))?
                {
                    record.was(&name, field, before.unwrap_or_default());
                }
            }
            let before = container.get("lifecycle").cloned();
            let mut changed = false;
            for (field, kind) in HOOKS {
                let hook = container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut(field));
                if let Some(hook) = hook.and_then(Value::as_object_mut).filter(|hook| is_given(hook, "httpGet")) {
                    changed |= one.handler(hook, kind, &format!("{path}.lifecycle.{field}"))?;
                }
            }
            if changed {
                record.was(&name, "lifecycle", before.unwrap_or_default());
            }
        }
    }
    Ok(flags)
}

/// Whether a field says anything.
fn is_given(object: &Map<String, Value>, field: &str) -> bool {
    object.get(field).is_some_and(|value| !value.is_null())
}

/// The container that is looked at.
struct One<'a> {
    name: &'a str,
    ports: &'a [Value],
    /// Ports that are not redirected.
    direct: &'a [u16],
    /// Seconds that a hook may take.
    grace: u64,
    flags: &'a mut Vec<String>,
}

impl One<'_> {
    /// Rewrites one handler; whether it had to be.
    fn handler(&mut self, probe: &mut Map<String, Value>, kind: &str, path: &str) -> Result<bool, Problem> {
        let Some(handler) = ["httpGet", "tcpSocket", "grpc"].into_iter().find(|handler| is_given(probe, handler))
        else {
            return Ok(false);
        };
        let path = format!("{path}.{handler}");
        let Some(mut what) = probe.get(handler).and_then(Value::as_object).cloned() else {
            return Err(problem(&path, "must be a mapping", ""));
        };
        // One of another host does not come here.
        if what.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty()) {
            return Ok(false);
        }
        let port = self.port(what.get("port"), &format!("{path}.port"))?;
        if self.direct.contains(&port) {
            return Ok(false);
        }
        // Kubernetes takes null and an empty host for nothing said.
        what.retain(|field, value| !value.is_null() && (field != "host" || *value != ""));
        what.insert("port".into(), port.into());
        let is_probe = PROBES.iter().any(|(_, known)| *known == kind);
        let timeout = probe.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(1);
        // A hook has no time of its own: the kubelet ends it with the pod.
        let timeout = if is_probe { timeout } else { self.grace };
        let spec = json!({ handler: what, "timeoutSeconds": timeout });
        self.flags.push(format!("{}/{kind}={spec}", self.name));
        probe.remove(handler);
        probe.insert("httpGet".into(), json!({ "path": format!("{PATH}/{}/{kind}", self.name), "port": HEALTH_PORT }));
        Ok(true)
    }

    /// A number, or the name of one of the container's ports.
    fn port(&self, value: Option<&Value>, path: &str) -> Result<u16, Problem> {
        let Some(name) = value.and_then(Value::as_str) else { return port_number(value, path) };
        let found = self.ports.iter().find(|port| port["name"] == name).and_then(|port| port.get("containerPort"));
        // Kubernetes takes a number in quotation marks for the number.
        let number = found.cloned().or_else(|| name.parse::<u16>().ok().map(Value::from));
        if number.is_none() {
            let text = format!("{name:?} is neither a number nor the name of a port of container {:?}", self.name);
            return Err(problem(path, text, "name it under ports, or write the number"));
        }
        port_number(number.as_ref(), path)
    }
}
