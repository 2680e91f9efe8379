//! Which requests of a rule belong together, and for how long (Gateway API's `sessionPersistence`, GEP-1619).

use std::{fmt, time::Duration};

use http::HeaderName;

/// Session persistence of a rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Session {
    /// Where the token of a session is.
    pub carrier: Carrier,
    /// From the beginning of a session to its end. Default none.
    pub absolute: Option<Duration>,
    /// Without a request. Default none.
    pub idle: Option<Duration>,
    /// `None`: only the sidecar that made a token can read it.
    pub key: Option<SessionKey>,
}

/// Where the token of a session is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Carrier {
    /// In a cookie (RFC 6265), which the answer sets.
    Cookie {
        /// Its name, a token.
        name: Box<str>,
        /// The caller keeps it for [`Session::absolute`]; else until it ends.
        permanent: bool,
    },
    /// In a header field of the answer, which requests bring back.
    Header(HeaderName),
}

/// What tokens are sealed with. It never shows in a text.
#[derive(Clone, Eq, PartialEq)]
pub struct SessionKey(pub [u8; 32]);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(..)")
    }
}
