//! Whether the workloads behind a rule would let the request in, and which policy says so: for operators, who may know.

use std::collections::{BTreeMap, BTreeSet};

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
use crate::compile::workloads::Workloads;

/// Who would send the request.
struct Sender {
    id: Option<SpiffeId>,
    address: std::net::IpAddr,
    told: String,
}

/// One entry for each port of each workload: its mode and who says so, the verdict, and every policy with whether it
/// matches. Without `from`, or when that workload is not known, the caller has no identity. There is no token. Of
/// namespaces that are not seen nothing is told but that.
pub fn access(of: &Effective<'_>, rule: &RouteRule) -> Value {
    let workloads = Workloads::of(of.resources, of.registered);
    let sender = sender(of, &workloads);
    let (mut found, mut hidden) = (BTreeMap::new(), BTreeSet::new());
    for target in rule.backends.iter().filter_map(|backend| backend.target.as_ref()) {
        let namespace = target.service.namespace();
        for endpoint in endpoints(of.view, &target.service) {
            if !(of.sees)(namespace) {
                hidden.insert(namespace);
                break;
            }
            let Some(port) = endpoint.ports.get(&u32::from(target.port)) else { continue };
            let configs = of.view.named(ResourceType::WorkloadConfig, &endpoint.workload, "");
            let config = configs.first().and_then(|resource| resource.resource.as_ref());
            let config = config.and_then(|any| v1::WorkloadConfig::decode(any.value.as_ref()).ok());
            let Some(config) = config.and_then(|config| convert::workload_config(config).ok()) else { continue };
            if let Some(inbound) = config.ports.iter().find(|inbound| u32::from(inbound.port) == *port) {
                found.insert((endpoint.workload.clone(), *port), decided(of, inbound, &sender));
            }
        }
    }
    let origins = workloads.mode_origins(&found.keys().cloned().collect());
    let entries = found.into_iter().map(|(key, mut told)| {
        if let Some(origin) = origins.get(&key) {
            told["modeOrigin"] = origin.as_str().into();
        }
        told["workload"] = key.0.into();
        told["caller"] = sender.told.as_str().into();
        told
    });
    let unseen = hidden.into_iter().map(|namespace| {
        json!({ "workload": format!("{namespace}/*"), "verdict": "not shown",
                "because": format!("you may not look into namespace {namespace}") })
    });
    entries.chain(unseen).collect()
}

/// The workload that asks, as the mesh knows it.
fn sender(of: &Effective<'_>, workloads: &Workloads<'_>) -> Sender {
    let loopback = std::net::Ipv4Addr::LOCALHOST.into();
    let Some(from) = &of.question.from else {
        return Sender { id: None, address: loopback, told: "without an identity: --from names a workload".into() };
    };
    let known = workloads.known(from);
    let id = known.and_then(|(id, _)| SpiffeId::parse(id).ok());
    let address = known.and_then(|(_, address)| address.parse().ok()).unwrap_or(loopback);
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
