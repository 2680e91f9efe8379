//! What filters of routes do: header changes, paths, redirects, the choice of mirrored requests. CORS is in `cors`.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, uri::PathAndQuery};

use crate::{
    canonical::Authority,
    model::{Filters, HeaderModifier, Mirror, PathMatch, PathModifier, Redirect, Rewrite, Scheme},
};

impl Filters {
    /// Nothing is done.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.request_headers.is_empty()
            && self.response_headers.is_empty()
            && self.redirect.is_none()
            && self.rewrite.is_none()
            && self.mirrors.is_empty()
            && self.cors.is_none()
    }
}

impl HeaderModifier {
    /// Sets, adds, removes. Where `set` has a name twice the first one counts (Gateway API, `HTTPHeader`).
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in self.set.iter().rev() {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

impl PathModifier {
    /// The path that takes the place of `path`, which `matched` has matched; both without a query. By Gateway API's
    /// table for `ReplacePrefixMatch`, slashes are neither doubled nor lost. Where no prefix was matched, an exact path
    /// counts as one and a pattern leaves the path as it is.
    #[must_use]
    pub fn apply<'a>(&'a self, path: &'a str, matched: &PathMatch) -> Cow<'a, str> {
        let replacement = match self {
            Self::Full(full) => return Cow::Borrowed(full),
            Self::Prefix(replacement) => replacement,
        };
        let prefix = match matched {
            PathMatch::Prefix(prefix) | PathMatch::Exact(prefix) => prefix.strip_suffix('/').unwrap_or(prefix),
            PathMatch::Any => "",
            PathMatch::Regex(_) => return Cow::Borrowed(path),
        };
        match path.strip_prefix(prefix) {
            // The target `*` of OPTIONS has no prefix that could be replaced.
            Some(rest) if !rest.is_empty() && !rest.starts_with('/') => Cow::Borrowed(path),
            None => Cow::Borrowed(path),
            Some("") => Cow::Borrowed(replacement),
            Some(rest) => {
                let replacement = replacement.strip_suffix('/').unwrap_or(replacement);
                Cow::Owned(format!("{replacement}{rest}"))
            }
        }
    }
}

impl Rewrite {
    /// Path and query as forwarded; `None`: as they came.
    #[must_use]
    pub fn path(&self, path: &PathAndQuery, matched: &PathMatch) -> Option<PathAndQuery> {
        let changed = self.path.as_ref()?.apply(path.path(), matched);
        if changed == path.path() {
            return None;
        }
        let text = match path.query() {
            None => changed.into_owned(),
            Some(query) => format!("{changed}?{query}"),
        };
        PathAndQuery::from_maybe_shared(Bytes::from(text)).ok()
    }
}

/// What of a request a redirect is made from.
#[derive(Clone, Copy, Debug)]
pub struct Redirected<'a> {
    /// Who was called.
    pub authority: &'a Authority,
    /// Path and query as sent.
    pub path: &'a PathAndQuery,
    /// What of the path has matched.
    pub matched: &'a PathMatch,
    /// The Service's port: in a mesh it stands for the Gateway's listener.
    pub port: u16,
}

impl Scheme {
    const fn parts(self) -> (&'static str, u16) {
        match self {
            Self::Http => ("http", 80),
            Self::Https => ("https", 443),
        }
    }
}

impl Redirect {
    /// The value of `Location`, by Gateway API's rules: scheme, host, path and port of the request where the filter
    /// does not name them; a port that is its scheme's own is not written; the query stays. An app calls in `http`. A
    /// request without a Host gets a path alone. `None` when that is no field value.
    #[must_use]
    pub fn location(&self, request: Redirected) -> Option<HeaderValue> {
        let (scheme, well_known) = self.scheme.unwrap_or(Scheme::Http).parts();
        let port = self.port.unwrap_or(if self.scheme.is_some() { well_known } else { request.port });
        let host = self.hostname.as_deref().unwrap_or(&request.authority.host);
        let mut text = String::new();
        if !host.is_empty() {
            let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
            text = format!("{scheme}://{open}{host}{close}");
            if port != well_known {
                text.push_str(&format!(":{port}"));
            }
        }
        let path = request.path.path();
        match &self.path {
            None => text.push_str(path),
            Some(change) => text.push_str(&change.apply(path, request.matched)),
        }
        if let Some(query) = request.path.query() {
            text.push('?');
            text.push_str(query);
        }
        HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
    }
}

impl Mirror {
    /// This request is one of those that are copied; `random` is 64 random bits.
    #[must_use]
    pub const fn chooses(&self, random: u64) -> bool {
        // The upper half scaled to a million: no modulo bias, and exact at both ends.
        ((random >> 32) * 1_000_000) >> 32 < self.ppm as u64
    }
}

#[cfg(test)]
mod tests;
