//! Whether the workloads behind a rule would let the request in, and which policy says so: for operators, who may know.

use serde_json::{Value, json};
use weft_policy::{
    SpiffeId,
    authorize::{Caller, Operation, Verdict},
    canonical::{self, Authority},
    model::{Action, AuthorizationPolicy, TlsMode},
};

use super::{
    behind::{Behind, Port},
    effective::Effective,
    tokens,
};
use crate::compile::workloads::Workloads;

/// Who would send the request.
struct Sender {
    id: Option<SpiffeId>,
    address: std::net::IpAddr,
    told: String,
}

/// One entry for each port of each workload: its mode and who says so, the verdict, every policy with whether it matches,
/// and what is asked of tokens. Without `from`, or when that workload is not known, the caller has no identity. Of
/// namespaces that are not seen nothing is told but that.
pub fn access(of: &Effective<'_>, behind: &Behind) -> Value {
    let workloads = Workloads::of(of.resources, of.registered);
    let sender = sender(of, &workloads);
    let origins = workloads.mode_origins(&behind.ports.keys().cloned().collect());
    let entries = behind.ports.iter().map(|(key, port)| {
        let mut told = decided(of, port, &sender);
        if let Some(origin) = origins.get(key) {
            told["modeOrigin"] = origin.as_str().into();
        }
        told["workload"] = key.0.as_str().into();
        told["caller"] = sender.told.as_str().into();
        told
    });
    let unseen = behind.hidden.iter().map(|namespace| {
        json!({ "workload": format!("{namespace}/*"), "verdict": "not shown",
                "because": format!("you may not look into namespace {namespace}") })
    });
    let more = (behind.left_out > 0).then(|| {
        json!({ "workload": "...", "verdict": "not shown",
                "because": format!("{} more ports of workloads are left out", behind.left_out) })
    });
    entries.chain(unseen).chain(more).collect()
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

fn decided(of: &Effective<'_>, at: &Port, sender: &Sender) -> Value {
    let port = &at.inbound;
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
    let headers = &of.question.headers;
    // In the order of the sidecar: who, then the token, then what.
    let missing = tokens::applying(at).find(|policy| policy.required && !tokens::has_token(policy, headers));
    let bytes = port.request_authentications.first().filter(|_| opaque).map(|given| &*given.authentication);
    let (allowed, because) = match decision.verdict {
        _ if strict && sender.id.is_none() => (false, "the port takes mutual TLS only".to_owned()),
        _ if let Some(policy) = bytes => (false, format!("RequestAuthentication {}: bytes have no token", policy.name)),
        _ if let Some(policy) = missing => {
            (false, format!("RequestAuthentication {} requires a token, and the request has none", policy.name))
        }
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
    let authentication: Vec<Value> = tokens::applying(at).map(|policy| tokens::told(policy, headers)).collect();
    if authentication.iter().any(|policy| policy["hasToken"] == true) {
        let because = told["because"].as_str().unwrap_or_default();
        told["because"] = format!("{because}, if its token is valid; claims are not looked at here").into();
    }
    told["authentication"] = authentication.into();
    if let Some(shadow) = decision.shadow {
        told["shadow"] = shadow.into();
    }
    told
}
