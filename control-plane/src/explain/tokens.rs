//! Which RequestAuthentications a request meets, and what becomes of it with a token and without one. Whether a token is
//! valid is not looked at: the control plane verifies none.

use http::{HeaderMap, HeaderName, header};
use serde_json::{Value, json};
use weft_policy::model::{Issuer, RequestAuthentication};

use super::behind::Port;

/// The policies of the port for requests to one of its services.
pub fn applying(port: &Port) -> impl Iterator<Item = &RequestAuthentication> {
    let applies = |services: &[_]| services.is_empty() || services.iter().any(|service| port.targets.contains(service));
    let all = port.inbound.request_authentications.iter();
    all.filter(move |given| applies(&given.services)).map(|given| &*given.authentication)
}

/// Whether the request has a token where the policy looks for one.
pub fn has_token(policy: &RequestAuthentication, headers: &HeaderMap) -> bool {
    let places = policy.issuers.iter().flat_map(|issuer| &issuer.from_headers);
    places.into_iter().any(|place| headers.get_all(place).iter().any(|value| is_token(place, value.as_bytes())))
}

/// `authorization` has other credentials too.
fn is_token(place: &HeaderName, value: &[u8]) -> bool {
    const SCHEME: &[u8] = b"bearer ";
    *place != header::AUTHORIZATION || value.get(..SCHEME.len()).is_some_and(|start| start.eq_ignore_ascii_case(SCHEME))
}

/// One policy, for people and programs.
pub fn told(policy: &RequestAuthentication, headers: &HeaderMap) -> Value {
    let without = if policy.required {
        "401: a token is required"
    } else {
        "goes on without claims: rules of AuthorizationPolicies that want claims do not match"
    };
    let keyless: Vec<&str> =
        policy.issuers.iter().filter(|issuer| issuer.keys.is_empty()).map(|issuer| &*issuer.issuer).collect();
    let valid = "goes on when it is valid, 401 otherwise, also when it is of another issuer";
    let with = match keyless.len() {
        0 => valid.to_owned(),
        some if some == policy.issuers.len() => "401: the keys of its issuer are not there".to_owned(),
        _ => format!("{valid}; 401 when it is of {}, whose keys are not there", keyless.join(" or ")),
    };
    json!({
        "name": &*policy.name,
        "required": policy.required,
        "issuers": policy.issuers.iter().map(issuer).collect::<Vec<_>>(),
        "hasToken": has_token(policy, headers),
        "withoutToken": without,
        "withToken": with,
    })
}

fn issuer(issuer: &Issuer) -> Value {
    json!({
        "issuer": &*issuer.issuer,
        "audiences": issuer.audiences.iter().map(|audience| &**audience).collect::<Vec<_>>(),
        "fromHeaders": issuer.from_headers.iter().map(HeaderName::as_str).collect::<Vec<_>>(),
        "algorithms": issuer.algorithms.iter().map(|algorithm| algorithm.as_str()).collect::<Vec<_>>(),
        "keys": issuer.keys.len(),
    })
}
