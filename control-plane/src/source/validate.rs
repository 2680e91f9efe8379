//! What a type cannot say: ranges, names, addresses. Every value that reaches the compiler has passed here.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use gateway_api::apis::standard::httproutes::{HttpRoute, HttpRouteRules};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};

use super::{
    Workload,
    problem::{Origin, Problem, did_you_mean},
};

/// Words for the protocol of a workload's port.
pub const PROTOCOLS: [&str; 6] = ["http", "http1", "http2", "grpc", "tcp", "tls"];

/// Collects the problems of one object.
pub struct Check<'a> {
    origin: &'a Origin,
    problems: Vec<Problem>,
}

impl<'a> Check<'a> {
    pub fn new(origin: &'a Origin) -> Self {
        Self { origin, problems: Vec::new() }
    }

    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    fn wrong(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(self.origin.problem(path, message, hint));
    }

    /// A DNS label: what becomes a part of host names, SNI and SPIFFE ids.
    pub fn label(&mut self, path: &str, text: &str) {
        if is_dns_name(text) && !is_dns_label(text) {
            self.wrong(path, format!("\"{text}\" is not a DNS label"), "at most 63 characters and no \".\"");
        }
    }

    /// A name of any object.
    pub fn name(&mut self, path: &str, text: &str) {
        if text.is_empty() {
            self.wrong(path, "is missing", "");
        } else if !is_dns_name(text) {
            let rule = "lower-case letters, digits, \"-\" and \".\", at most 253";
            self.wrong(path, format!("\"{text}\" is not a name"), rule);
        }
    }

    fn port(&mut self, path: &str, port: i64) {
        if !(1..=65535).contains(&port) {
            self.wrong(path, format!("{port} is not a port"), "1 to 65535");
        }
    }

    fn ip(&mut self, path: &str, text: &str) {
        if text.parse::<IpAddr>().is_err() {
            self.wrong(path, format!("\"{text}\" is not an IP address"), "");
        }
    }
}

/// Whether the text is a DNS name of lower-case labels.
pub fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Whether the text is a DNS label: 1 to 63 lower-case letters, digits and inner dashes.
pub fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

pub fn nothing(_: &Namespace, _: &mut Check<'_>) {}

pub fn service(service: &Service, check: &mut Check<'_>) {
    let Some(spec) = &service.spec else { return check.wrong("spec", "is missing", "") };
    if spec.type_.as_deref() == Some("ExternalName") {
        check.wrong("spec.type", "ExternalName is not supported", "use a Service with an EndpointSlice");
    }
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() {
        check.wrong("spec.ports", "a Service needs at least one port", "");
    }
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        check.port(&format!("{path}.port"), port.port.into());
        match port.protocol.as_deref() {
            None | Some("TCP") => {}
            Some(other) => {
                check.wrong(&format!("{path}.protocol"), format!("{other} is not carried by the mesh"), "TCP only");
            }
        }
        if !seen.insert(port.port) {
            check.wrong(&format!("{path}.port"), format!("port {} is given twice", port.port), "");
        }
        if let Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(target)) = &port.target_port {
            check.port(&format!("{path}.targetPort"), (*target).into());
        }
    }
}

pub fn endpoint_slice(slice: &EndpointSlice, check: &mut Check<'_>) {
    let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
    if service.is_none() {
        let message = "label kubernetes.io/service-name is missing";
        check.wrong("metadata.labels", message, "it names the Service that the endpoints belong to");
    }
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        check.wrong("addressType", format!("\"{}\" is not supported", slice.address_type), "IPv4 or IPv6");
    }
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        if endpoint.addresses.is_empty() {
            check.wrong(&format!("endpoints[{index}].addresses"), "an endpoint needs an address", "");
        }
        for (place, address) in endpoint.addresses.iter().enumerate() {
            check.ip(&format!("endpoints[{index}].addresses[{place}]"), address);
        }
    }
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        check.port(&format!("ports[{index}].port"), port.port.unwrap_or(0).into());
    }
}

pub fn workload(workload: &Workload, check: &mut Check<'_>) {
    check.ip("spec.address", &workload.spec.address);
    if let Some(mesh) = &workload.spec.mesh_address
        && mesh.parse::<SocketAddr>().map_or(true, |address| address.port() == 0)
    {
        check.wrong("spec.meshAddress", format!("\"{mesh}\" is not an ip:port"), "");
    }
    if let Some(account) = &workload.spec.service_account {
        check.name("spec.serviceAccount", account);
        check.label("spec.serviceAccount", account);
    }
    let mut seen = BTreeSet::new();
    for (index, port) in workload.spec.ports.iter().enumerate() {
        check.port(&format!("spec.ports[{index}].port"), port.port.into());
        if !seen.insert(port.port) {
            check.wrong(&format!("spec.ports[{index}].port"), format!("port {} is given twice", port.port), "");
        }
        if let Some(protocol) = &port.protocol
            && !PROTOCOLS.contains(&protocol.as_str())
        {
            let near = did_you_mean(protocol, PROTOCOLS);
            let hint = if near.is_empty() { format!("one of {}", PROTOCOLS.join(", ")) } else { near };
            check.wrong(&format!("spec.ports[{index}].protocol"), format!("unknown protocol \"{protocol}\""), hint);
        }
    }
}

pub fn route(route: &HttpRoute, check: &mut Check<'_>) {
    for (index, parent) in route.spec.parent_refs.iter().flatten().enumerate() {
        if let Some(port) = parent.port {
            check.port(&format!("spec.parentRefs[{index}].port"), port.into());
        }
    }
    for (index, rule) in route.spec.rules.iter().flatten().enumerate() {
        route_rule(rule, &format!("spec.rules[{index}]"), check);
    }
}

fn route_rule(rule: &HttpRouteRules, path: &str, check: &mut Check<'_>) {
    for (index, backend) in rule.backend_refs.iter().flatten().enumerate() {
        if let Some(port) = backend.port {
            check.port(&format!("{path}.backendRefs[{index}].port"), port.into());
        }
        if let Some(weight) = backend.weight
            && !(0..=1_000_000).contains(&weight)
        {
            let message = format!("{weight} is not a weight");
            check.wrong(&format!("{path}.backendRefs[{index}].weight"), message, "0 to 1000000");
        }
    }
    for (index, found) in rule.matches.iter().flatten().enumerate() {
        if let Some(value) = found.path.as_ref().and_then(|path| path.value.as_deref())
            && !value.starts_with('/')
        {
            let message = format!("\"{value}\" does not start with \"/\"");
            check.wrong(&format!("{path}.matches[{index}].path.value"), message, "");
        }
        for (place, header) in found.headers.iter().flatten().enumerate() {
            if http::HeaderName::from_bytes(header.name.as_bytes()).is_err() {
                let message = format!("\"{}\" is not a header name", header.name);
                check.wrong(&format!("{path}.matches[{index}].headers[{place}].name"), message, "");
            }
        }
        for (place, query) in found.query_params.iter().flatten().enumerate() {
            if query.name.is_empty() {
                check.wrong(&format!("{path}.matches[{index}].queryParams[{place}].name"), "is empty", "");
            }
        }
    }
    let Some(timeouts) = &rule.timeouts else { return };
    let mut read = |name: &str, text: &Option<String>| {
        let text = text.as_deref()?;
        let value = duration(text);
        if value.is_none() {
            let message = format!("\"{text}\" is not a duration");
            check.wrong(&format!("{path}.timeouts.{name}"), message, "such as 10s, 500ms or 1m30s");
        }
        value.filter(|value| !value.is_zero())
    };
    if let (Some(request), Some(backend)) =
        (read("request", &timeouts.request), read("backendRequest", &timeouts.backend_request))
        && backend > request
    {
        check.wrong(&format!("{path}.timeouts.backendRequest"), "is longer than timeouts.request", "");
    }
}

/// A duration by GEP-2257: one to four of up to five digits and `h`, `m`, `s` or `ms`.
pub fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        total += match &rest[..unit] {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = &rest[unit..];
        parts += 1;
    }
    (1..=4).contains(&parts).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_follow_gep_2257() {
        assert_eq!(duration("1h2m3s4ms"), Some(Duration::from_millis(3_723_004)));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        for wrong in ["", "1", "s", "1.5s", "-1s", "100000s", "1us", "1s1s1s1s1s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
