//! Session persistence of a rule (GEP-1619) as it was written, in the terms of the wire.

use std::time::Duration;

use gateway_api::apis::experimental::httproutes::{
    HttpRouteRulesSessionPersistence, HttpRouteRulesSessionPersistenceCookieConfigLifetimeType as Lifetime,
    HttpRouteRulesSessionPersistenceType as Type,
};
use weft_policy::balance::hash;
use weft_proto::v1::{self, session_persistence::Carrier};

use super::Rule;
use crate::source::{check::Check, duration};

/// What a token can tell apart.
const SHORTEST: Duration = Duration::from_secs(1);
/// Longest name, as the schema has it.
const MAX_NAME: usize = 128;

/// What a rule says, without a key. `id` is the rule's, of which a session without a name gets one.
pub fn of(rule: &Rule, id: &str) -> Option<v1::SessionPersistence> {
    let session = rule.session_persistence.as_ref()?;
    let named = || format!("weft-session-{:016x}", hash::stable(id.as_bytes()));
    let name = session.session_name.clone().filter(|name| !name.is_empty()).unwrap_or_else(named);
    let time = |text: &Option<String>| prost_types::Duration::try_from(duration(text.as_deref()?)?).ok();
    Some(v1::SessionPersistence {
        carrier: Some(match session.r#type {
            Some(Type::Header) => Carrier::Header(name.to_ascii_lowercase()),
            Some(Type::Cookie) | None => Carrier::Cookie(name),
        }),
        permanent: is_permanent(session),
        absolute_timeout: time(&session.absolute_timeout),
        idle_timeout: time(&session.idle_timeout),
        key: bytes::Bytes::new(),
    })
}

fn is_permanent(session: &HttpRouteRulesSessionPersistence) -> bool {
    let lifetime = session.cookie_config.as_ref().and_then(|config| config.lifetime_type.as_ref());
    lifetime == Some(&Lifetime::Permanent)
}

/// What Gateway API forbids, and what the sidecars would refuse.
pub fn check(rule: &Rule, path: &str, check: &mut Check<'_>) {
    let Some(session) = &rule.session_persistence else { return };
    let path = format!("{path}.sessionPersistence");
    let is_header = session.r#type == Some(Type::Header);
    for (field, text) in [("absoluteTimeout", &session.absolute_timeout), ("idleTimeout", &session.idle_timeout)] {
        let Some(text) = text else { continue };
        let at = format!("{path}.{field}");
        match duration(text) {
            None => check.wrong(&at, format!("\"{text}\" is not a duration"), "such as 1h, 30m or 90s"),
            Some(time) if time < SHORTEST => {
                check.wrong(&at, format!("{text} is too short: tokens count seconds"), "1s, or leave it out for none");
            }
            Some(_) => {}
        }
    }
    if is_permanent(session) && session.absolute_timeout.is_none() {
        let hint = "it says how long the caller keeps the cookie";
        check.wrong(&path, "a permanent cookie needs absoluteTimeout", hint);
    }
    if is_header && session.cookie_config.is_some() {
        check.wrong(&format!("{path}.cookieConfig"), "goes with type Cookie only", "leave it out");
    }
    if let Some(name) = &session.session_name {
        let at = format!("{path}.sessionName");
        if name.len() > MAX_NAME {
            check.wrong(&at, format!("has {} characters", name.len()), format!("at most {MAX_NAME}"));
        } else if !name.is_empty() && http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            let what = if is_header { "header field" } else { "cookie" };
            check.wrong(&at, format!("\"{name}\" is not the name of a {what}"), "letters, digits, \"-\" and \"_\"");
        } else if is_header && weft_policy::convert::is_fixed_header(&name.to_ascii_lowercase()) {
            let hint = "choose a field of your own";
            check.wrong(&at, format!("\"{name}\" belongs to the connection, to framing or to the mesh"), hint);
        }
    }
}
