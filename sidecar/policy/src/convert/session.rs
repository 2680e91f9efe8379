//! Session persistence from the wire.

use weft_proto::v1;

use super::{Invalid, duration, filter::changeable, invalid};
use crate::model::{Carrier, Session, SessionKey};

/// Longest name of a session, as Gateway API has it.
const MAX_NAME: usize = 128;

pub fn session(wire: v1::SessionPersistence) -> Result<Session, Invalid> {
    use v1::session_persistence::Carrier as Wire;
    let absolute = duration("absolute_timeout", wire.absolute_timeout)?;
    let carrier = match wire.carrier {
        Some(Wire::Cookie(name)) => {
            // A cookie's name is a token, as a header's is (RFC 6265 section 4.1.1).
            if name.len() > MAX_NAME || http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                return invalid("cookie", name, format!("must be a token of at most {MAX_NAME} bytes"));
            }
            if wire.permanent && absolute.is_none() {
                return invalid("absolute_timeout", "0", "is required for a cookie that is permanent");
            }
            Carrier::Cookie { name: name.into(), permanent: wire.permanent }
        }
        Some(Wire::Header(name)) if name.len() > MAX_NAME => {
            return invalid("header", name, format!("must have at most {MAX_NAME} bytes"));
        }
        Some(Wire::Header(name)) => Carrier::Header(changeable("header", name)?),
        None => return invalid("carrier", "", "must be a cookie or a header"),
    };
    let key = match <[u8; 32]>::try_from(&wire.key[..]) {
        Ok(key) => Some(SessionKey(key)),
        Err(_) if wire.key.is_empty() => None,
        // Its bytes are nobody's business.
        Err(_) => return invalid("key", format!("{} bytes", wire.key.len()), "must have 32 bytes"),
    };
    Ok(Session { carrier, absolute, idle: duration("idle_timeout", wire.idle_timeout)?, key })
}
