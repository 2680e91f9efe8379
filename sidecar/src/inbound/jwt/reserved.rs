//! Fields that only this sidecar may say at a port, whichever of its RequestAuthentications a request falls under: what
//! claims go into. Removed from every request, in head and trailers, in every form in which an app may read them.

use std::rc::Rc;

use http::{HeaderMap, HeaderName};
use weft_policy::model::{InboundPort, Issuer};

/// The reserved fields of a port.
pub struct Reserved {
    claims: Box<[HeaderName]>,
    /// Where tokens may be: fields of the head, and nothing in trailers.
    tokens: Box<[HeaderName]>,
}

impl Reserved {
    /// Those of a port; `None`: it has none.
    pub fn of(port: &InboundPort) -> Option<Rc<Self>> {
        let issuers = port.request_authentications.iter().flat_map(|given| &given.authentication.issuers);
        (!port.request_authentications.is_empty()).then(|| Rc::new(Self::new(issuers)))
    }

    /// Those of issuers.
    pub fn new<'a>(issuers: impl Iterator<Item = &'a Issuer>) -> Self {
        let (mut claims, mut tokens) = (Vec::new(), Vec::new());
        for issuer in issuers {
            claims.extend(issuer.claims_to_headers.iter().map(|(_, header)| header.clone()));
            tokens.extend_from_slice(&issuer.from_headers);
        }
        Self { claims: claims.into(), tokens: tokens.into() }
    }

    /// Removes them from a head.
    pub fn strip_head(&self, head: &mut HeaderMap) {
        strip(head, &self.claims);
    }

    /// Removes them from trailers, which some servers add to the fields of the head.
    pub fn strip_trailers(&self, trailers: &mut HeaderMap) {
        strip(trailers, &self.claims);
        strip(trailers, &self.tokens);
    }
}

fn strip(fields: &mut HeaderMap, reserved: &[HeaderName]) {
    if reserved.is_empty() {
        return;
    }
    // In most requests there is none.
    while let Some(name) = fields.keys().find(|name| reserved.iter().any(|own| same(own, name))).cloned() {
        fields.remove(name);
    }
}

/// Servers that make variables of fields (CGI, WSGI, PHP) keep letters and digits only.
fn same(a: &HeaderName, b: &HeaderName) -> bool {
    let (a, b) = (a.as_str().as_bytes(), b.as_str().as_bytes());
    let alike = |a: u8, b: u8| a == b || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric());
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(*a, *b))
}
