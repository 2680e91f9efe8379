//! Whether the workloads behind a rule would let the request in, and which policy says so: for operators, who may know.

use std::collections::BTreeMap;

use prost::Message as _;
use serde_json::{Value, json};
use weft_policy::{
    SpiffeId,
    authorize::{Caller, Operation, Verdict},
    canonical::{self, Authority},
    convert,
    model::{Action, AuthorizationPolicy, InboundPort, RouteRule, TlsMode},
};
use weft_proto::{ResourceType, v1};

use super::{effective::Effective, endpoints};

/// Who would send the request.
struct Sender {
    id: Option<SpiffeId>,
    address: std::net::IpAddr,
    told: String,
}

/// One entry for each port of each workload: its mode, the verdict, and every policy with whether it matches. Without
/// `from`, or when that workload is not known, the caller has no identity. There is no token.
pub fn access(of: &Effective<'_>, rule: &RouteRule) -> Value {
    let sender = sender(of);
    let mut found = BTreeMap::new();
    for target in rule.backends.iter().filter_map(|backend| backend.target.as_ref()) {
        for endpoint in endpoints(of.view, &target.service) {
            let Some(port) = endpoint.ports.get(&u32::from(target.port)) else { continue };
            let configs = of.view.named(ResourceType::WorkloadConfig, &endpoint.workload, "");
            let config = configs.first().and_then(|resource| resource.resource.as_ref());
            let config = config.and_then(|any| v1::WorkloadConfig::decode(any.value.as_ref()).ok());
            let Some(config) = config.and_then(|config| convert::workload_config(config).ok()) else { continue };
            if let Some(inbound) = config.ports.iter().find(|inbound| u32::from(inbound.port) == *port) {
                let told = decided(of, inbound, &sender);
                found.insert((endpoint.workload.clone(), *port), (endpoint.workload.clone(), told));
            }
        }
    }
    let entries = found.into_values().map(|(workload, mut told)| {
        told["workload"] = workload.into();
        told["caller"] = sender.told.as_str().into();
        told
    });
    entries.collect()
}

/// The workload that asks, as the mesh knows it.
fn sender(of: &Effective<'_>) -> Sender {
    let loopback = std::net::Ipv4Addr::LOCALHOST.into();
    let Some(from) = &of.question.from else {
        return Sender { id: None, address: loopback, told: "without an identity: --from names a workload".into() };
    };
    let slices = of
        .view
        .all(ResourceType::EndpointSlice, "")
        .filter_map(|resource| v1::EndpointSlice::decode(resource.resource.as_ref()?.value.as_ref()).ok());
    let endpoint = slices.flat_map(|slice| slice.endpoints).find(|endpoint| endpoint.workload == *from);
    let object = of.resources.workloads.get(from);
    let account = object.map(|object| object.value.spec.service_account.as_deref().unwrap_or("default"));
    let id = match (&endpoint, account) {
        (Some(endpoint), _) => SpiffeId::parse(&endpoint.spiffe_id).ok(),
        (None, Some(account)) => SpiffeId::workload(&of.resources.trust_domain, &of.question.namespace, account),
        (None, None) => None,
    };
    let address = endpoint.and_then(|endpoint| endpoint.address.parse().ok()).unwrap_or(loopback);
    let told = id.as_ref().map_or_else(|| format!("without an identity: {from} is not known"), ToString::to_string);
    Sender { id, address, told }
}

fn decided(of: &Effective<'_>, port: &InboundPort, sender: &Sender) -> Value {
    let caller = Caller { id: sender.id.as_ref(), address: sender.address };
    let url = &of.question.url;
    let host = url.authority().and_then(|authority| Authority::parse(authority.as_str().as_bytes()).ok());
    let host = host.unwrap_or(Authority { host: "".into(), port: None });
    let path = canonical::canonical_path(url.path()).ok().flatten().unwrap_or_else(|| url.path().to_owned());
    let method = &of.question.method;
    let operation = Operation { method, path: &path, host: &host, headers: &of.question.headers, claims: None };
    let engine = &port.access.authorization;
    let opaque = port.protocol.is_opaque();
    let decision =
        if opaque { engine.connection(&caller, port.port) } else { engine.request(&caller, port.port, &operation) };
    let matches = |policy: &AuthorizationPolicy| {
        if opaque {
            policy.matches_connection(&caller, port.port)
        } else {
            policy.matches_request(&caller, port.port, &operation)
        }
    };
    let strict = port.access.tls_mode == TlsMode::Strict;
    let (allowed, because) = match decision.verdict {
        _ if strict && sender.id.is_none() => (false, "the port takes mutual TLS only".to_owned()),
        Verdict::Denied { policy: Some(policy) } => (false, format!("AuthorizationPolicy {policy} denies it")),
        Verdict::Denied { policy: None } => (false, "no AuthorizationPolicy that allows matches".to_owned()),
        Verdict::Allowed => {
            let allows = |policy: &&AuthorizationPolicy| policy.action == Action::Allow && !policy.dry_run;
            let allowing = engine.policies().iter().filter(allows).find(|policy| matches(policy));
            let open = || "no AuthorizationPolicy that allows guards the port".to_owned();
            (true, allowing.map_or_else(open, |policy| format!("AuthorizationPolicy {} allows it", policy.name)))
        }
    };
    let policies = engine.policies().iter().map(|policy| {
        let action = if policy.action == Action::Allow { "Allow" } else { "Deny" };
        json!({ "name": policy.name.as_str(), "action": action, "dryRun": policy.dry_run, "matches": matches(policy) })
    });
    let mut told = json!({
        "port": port.port,
        "mode": if strict { "Strict" } else { "Permissive" },
        "verdict": if allowed { "allowed" } else { "denied" },
        "because": because,
        "policies": policies.collect::<Vec<_>>(),
    });
    if let Some(shadow) = decision.shadow {
        told["shadow"] = shadow.into();
    }
    told
}
