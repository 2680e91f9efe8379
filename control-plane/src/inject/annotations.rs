//! The annotations `weft.dev/...` of a pod: what they mean, and what is wrong with them.

use std::net::IpAddr;

use serde_json::Value;

use super::{INJECTED, Options, is_taken, problem};
use crate::source::{Problem, did_you_mean};

/// What all of our annotations begin with.
pub const PREFIX: &str = "weft.dev/";
/// The annotations of a pod, without the prefix, and what they say.
pub const ANNOTATIONS: [(&str, &str); 16] = [
    ("inject", "enabled or disabled: whether the pod gets a sidecar"),
    ("redirect", "enabled or disabled: whether all TCP connections go through the sidecar"),
    ("rewrite-probes", "enabled or disabled: whether the sidecar carries the kubelet's probes"),
    ("ports", "ports of the app, [NAME:]PORT[/PROTOCOL], comma-separated; in place of the containerPorts"),
    ("upstreams", "services at local ports, SVC[.NS][:PORT]=LOCALPORT, comma-separated"),
    ("exclude-inbound-ports", "ports at which the app is reached directly, comma-separated"),
    ("exclude-outbound-ports", "ports that the app reaches directly, comma-separated"),
    ("exclude-outbound-cidrs", "networks that the app reaches directly, comma-separated"),
    ("cpu-request", "of the sidecar, such as 10m"),
    ("cpu-limit", "of the sidecar; none by default"),
    ("memory-request", "of the sidecar, such as 32Mi"),
    ("memory-limit", "of the sidecar, such as 128Mi"),
    ("log-level", "log filter of the sidecar, such as debug"),
    ("workers", "worker threads of the sidecar"),
    ("image", "image of the sidecar"),
    ("redirect-image", "image of the init container"),
];
/// Annotations that others of us read.
const OURS: [&str; 4] = [INJECTED, "weft.dev/reason", "weft.dev/source", "weft.dev/role"];
/// What a port of the app may be declared to speak.
pub const PROTOCOLS: [&str; 7] = ["http", "http1", "http2", "h2c", "grpc", "tcp", "tls"];

/// What holds for one pod.
#[derive(Clone, Debug)]
pub struct Settings {
    pub inject: bool,
    pub redirect: bool,
    pub rewrite_probes: bool,
    /// `None`: the containers' own.
    pub ports: Option<Vec<(u16, String)>>,
    pub upstreams: Vec<String>,
    pub exclude_inbound_ports: Vec<u16>,
    pub exclude_outbound_ports: Vec<u16>,
    pub exclude_outbound_cidrs: Vec<String>,
    pub cpu_request: String,
    pub cpu_limit: Option<String>,
    pub memory_request: String,
    pub memory_limit: Option<String>,
    pub log: String,
    pub workers: u16,
    pub image: String,
    pub redirect_image: String,
    pub xds: String,
}

impl Settings {
    /// Those of this pod.
    ///
    /// # Errors
    /// When an annotation is unknown or wrong.
    pub fn of(pod: &Value, options: &Options) -> Result<Self, Problem> {
        let mut settings = Self {
            inject: true,
            redirect: options.redirect,
            rewrite_probes: true,
            ports: None,
            upstreams: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            cpu_request: "10m".into(),
            cpu_limit: None,
            memory_request: "32Mi".into(),
            memory_limit: Some("256Mi".into()),
            log: options.log.clone(),
            workers: 1,
            image: options.image.clone(),
            redirect_image: options.redirect_image.clone(),
            xds: options.xds.clone(),
        };
        let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
        for (key, value) in annotations.into_iter().flatten() {
            let Some(name) = key.strip_prefix(PREFIX).filter(|_| !OURS.contains(&key.as_str())) else { continue };
            let path = format!("metadata.annotations.{key}");
            let Some(value) = value.as_str() else {
                let hint = format!("write {:?}", value.to_string());
                return Err(problem(&path, "an annotation must be text, in quotation marks", &hint));
            };
            settings.set(name, value.trim()).map_err(|message| match message {
                Wrong::Name => {
                    let hint = did_you_mean(name, ANNOTATIONS.iter().map(|(known, _)| *known));
                    problem(&path, "unknown annotation", &hint)
                }
                Wrong::Value(message) => problem(&path, message, ""),
            })?;
        }
        // A label is what a webhook's selector can see: it opts out as the annotation does.
        if pod.pointer("/metadata/labels").and_then(|labels| labels.get("weft.dev/inject")) == Some(&"disabled".into())
        {
            settings.inject = false;
        }
        Ok(settings)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Wrong> {
        let some = |text: &str| Some(text.to_owned());
        match name {
            "inject" => self.inject = switch(value)?,
            "redirect" => self.redirect = switch(value)?,
            "rewrite-probes" => self.rewrite_probes = switch(value)?,
            "ports" => self.ports = Some(app_ports(value)?),
            "upstreams" => self.upstreams = items(value).map(upstream).collect::<Result<_, _>>()?,
            "exclude-inbound-ports" => self.exclude_inbound_ports = numbers(value)?,
            "exclude-outbound-ports" => self.exclude_outbound_ports = numbers(value)?,
            "exclude-outbound-cidrs" => {
                self.exclude_outbound_cidrs = items(value).map(cidr).collect::<Result<_, _>>()?
            }
            "cpu-request" => self.cpu_request = quantity(value)?,
            "cpu-limit" => self.cpu_limit = Some(quantity(value)?),
            "memory-request" => self.memory_request = quantity(value)?,
            "memory-limit" => self.memory_limit = Some(quantity(value)?),
            "log-level" => self.log = plain(value)?,
            "workers" => {
                self.workers =
                    number(value).filter(|&count| count <= 1024).ok_or_else(|| expected(value, "1 to 1024"))?
            }
            "image" => {
                self.image = some(value).filter(|image| !image.is_empty()).ok_or_else(|| expected(value, "an image"))?
            }
            "redirect-image" => self.redirect_image = plain(value)?,
            _ => return Err(Wrong::Name),
        }
        Ok(())
    }
}

/// What can be wrong with an annotation.
enum Wrong {
    Name,
    Value(String),
}

fn expected(value: &str, what: &str) -> Wrong {
    Wrong::Value(format!("{value:?}: expected {what}"))
}

fn switch(value: &str) -> Result<bool, Wrong> {
    match value {
        "enabled" | "true" => Ok(true),
        "disabled" | "false" => Ok(false),
        _ => Err(expected(value, "enabled or disabled")),
    }
}

fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|&number| number > 0)
}

/// Text that is an argument of its own.
fn plain(value: &str) -> Result<String, Wrong> {
    let plain = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c.is_control());
    plain.then(|| value.to_owned()).ok_or_else(|| expected(value, "one word"))
}

/// Several of [`app_port`], each another port.
fn app_ports(value: &str) -> Result<Vec<(u16, String)>, Wrong> {
    let mut ports: Vec<(u16, String)> = Vec::new();
    for item in items(value) {
        let (port, flag) = app_port(item)?;
        if is_taken(port) {
            return Err(Wrong::Value(format!(
                "{item:?}: port {port} is the sidecar's; let the app listen on another one"
            )));
        }
        if let Some((_, other)) = ports.iter().find(|(known, _)| *known == port) {
            return Err(Wrong::Value(format!("{item:?}: port {port} is there already, as {other:?}")));
        }
        ports.push((port, flag));
    }
    Ok(ports)
}

/// `[NAME:]PORT[/PROTOCOL]`.
fn app_port(item: &str) -> Result<(u16, String), Wrong> {
    let (rest, protocol) = item.split_once('/').map_or((item, None), |(rest, protocol)| (rest, Some(protocol)));
    let (name, port) = rest.split_once(':').map_or((None, rest), |(name, port)| (Some(name), port));
    let named = name.is_none_or(crate::source::is_dns_label);
    let good = named && protocol.is_none_or(|protocol| PROTOCOLS.contains(&protocol));
    let what = || format!("[NAME:]PORT[/PROTOCOL], where PROTOCOL is one of {}", PROTOCOLS.join(" "));
    let port = number(port).filter(|_| good).ok_or_else(|| expected(item, &what()))?;
    Ok((port, item.to_owned()))
}

/// `SVC[.NS][:PORT]=LOCALPORT`.
fn upstream(item: &str) -> Result<String, Wrong> {
    let wrong = || expected(item, "SVC[.NS][:PORT]=LOCALPORT");
    let (target, local) = item.split_once('=').ok_or_else(wrong)?;
    let (host, port) = target.split_once(':').map_or((target, None), |(host, port)| (host, Some(port)));
    let labels = host.split('.').count() <= 2 && host.split('.').all(crate::source::is_dns_label);
    if !labels || number(local).is_none() || port.is_some_and(|port| number(port).is_none()) {
        return Err(wrong());
    }
    Ok(item.to_owned())
}

/// `80,443`.
fn numbers(value: &str) -> Result<Vec<u16>, Wrong> {
    items(value)
        .map(|item| number(item).ok_or_else(|| expected(item, "ports from 1 to 65535, comma-separated")))
        .collect()
}

/// `10.0.0.0/8`; an address alone is its own network.
fn cidr(item: &str) -> Result<String, Wrong> {
    let (address, bits) = item.split_once('/').map_or((item, None), |(address, bits)| (address, Some(bits)));
    let address: Option<IpAddr> = address.parse().ok();
    let longest = if address.is_some_and(|address| address.is_ipv6()) { 128 } else { 32 };
    let bits = bits.map_or(Some(longest), |bits| bits.parse::<u8>().ok().filter(|&bits| bits <= longest));
    match (address, bits) {
        (Some(address), Some(bits)) => Ok(format!("{address}/{bits}")),
        _ => Err(expected(item, "a network such as 10.0.0.0/8 or fd00::/8")),
    }
}

/// A quantity of Kubernetes: `100m`, `0.5`, `64Mi`.
fn quantity(value: &str) -> Result<String, Wrong> {
    let split = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let (digits, unit) = value.split_at(split);
    let units = ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"];
    let good = digits.parse::<f64>().is_ok_and(|number| number > 0.0) && units.contains(&unit);
    good.then(|| value.to_owned()).ok_or_else(|| expected(value, "a quantity such as 100m, 0.5 or 64Mi"))
}
