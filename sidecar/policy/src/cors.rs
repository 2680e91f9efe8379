//! Cross-origin resource sharing (WHATWG Fetch, section 3.3): the answer to a preflight, and what is added to the
//! answers of actual requests. Whether a page may read an answer is the browser's decision: nothing is refused here.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::model::{Allowed, Cors, Origin};

/// What a rule with CORS says of one request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decision {
    /// `Access-Control-Allow-Origin`; `None`: the request has no origin, or none that is allowed.
    allow: Option<HeaderValue>,
    /// The request names an origin.
    cross: bool,
}

impl Cors {
    /// Reads the origin of a request. An origin that is given twice is none.
    #[must_use]
    pub fn decide(&self, headers: &HeaderMap) -> Decision {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let (first, more) = (origins.next(), origins.next().is_some());
        let allow = first.filter(|origin| !more && self.allows(origin)).map(|origin| {
            // With credentials `*` is not a wildcard any more: browsers refuse it.
            if self.any_origin() { HeaderValue::from_static("*") } else { origin.clone() }
        });
        Decision { allow, cross: first.is_some() }
    }

    /// The headers of the answer to a preflight, or `None` when the request is none. For an origin that is not
    /// allowed only `Vary`, from which a browser concludes that it may not call.
    #[must_use]
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<HeaderMap> {
        let wanted = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
        let wanted = wanted.filter(|_| *method == Method::OPTIONS && headers.contains_key(header::ORIGIN))?;
        let mut answer = HeaderMap::new();
        answer.insert(
            header::VARY,
            HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
        );
        let Some(origin) = self.decide(headers).allow else { return Some(answer) };
        self.insert_origin(&mut answer, origin);
        // Of `*` what was asked for is echoed: the literal means nothing with credentials, and never Authorization.
        let methods = match &self.allow_methods {
            Allowed::All => Some(wanted.clone()),
            Allowed::Some(methods) => list(methods.iter().map(Method::as_str)),
        };
        let fields = match &self.allow_headers {
            Allowed::All => headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned(),
            Allowed::Some(names) => list(names.iter().map(HeaderName::as_str)),
        };
        for (name, value) in
            [(header::ACCESS_CONTROL_ALLOW_METHODS, methods), (header::ACCESS_CONTROL_ALLOW_HEADERS, fields)]
        {
            if let Some(value) = value {
                answer.insert(name, value);
            }
        }
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age));
        Some(answer)
    }

    /// Adds to the answer of an actual request what was decided. What the app says of CORS gives way: the rule is the
    /// one place that decides.
    pub fn answer(&self, decision: &Decision, headers: &mut HeaderMap) {
        if decision.cross {
            headers.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
            headers.remove(header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
            headers.remove(header::ACCESS_CONTROL_EXPOSE_HEADERS);
        }
        if let Some(origin) = &decision.allow {
            let expose = match &self.expose_headers {
                Allowed::All if self.allow_credentials => list(headers.keys().map(HeaderName::as_str)),
                Allowed::All => Some(HeaderValue::from_static("*")),
                Allowed::Some(names) => list(names.iter().map(HeaderName::as_str)),
            };
            self.insert_origin(headers, origin.clone());
            if let Some(expose) = expose {
                headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose);
            }
        }
        // Also where there was no origin: a cache must not give this answer to a page.
        if !self.any_origin() && !varies_by_origin(headers) {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
    }

    /// The answer is the same for every origin.
    fn any_origin(&self) -> bool {
        !self.allow_credentials && self.allow_origins.contains(&Origin::Any)
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let origin = origin.to_str().ok();
        self.allow_origins.iter().any(|allowed| match (allowed, origin) {
            (Origin::Any, _) => true,
            (Origin::Exact(exact), Some(origin)) => **exact == *origin,
            (Origin::Below(scheme, below), Some(origin)) => origin
                .strip_prefix(&**scheme)
                .and_then(|host| host.strip_suffix(&**below))
                .is_some_and(|name| !name.is_empty() && name.bytes().all(of_a_name)),
            (_, None) => false,
        })
    }

    fn insert_origin(&self, headers: &mut HeaderMap, origin: HeaderValue) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.allow_credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

/// Nothing that ends a host: `https://evil.example/.shop.example` is not below `.shop.example`.
const fn of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

fn varies_by_origin(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::VARY).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).any(|name| name == "*" || name.eq_ignore_ascii_case("origin"))
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> Option<HeaderValue> {
    let text = items.collect::<Vec<_>>().join(", ");
    if text.is_empty() { None } else { HeaderValue::from_maybe_shared(Bytes::from(text)).ok() }
}

#[cfg(test)]
mod tests;
