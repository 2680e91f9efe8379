//! What the tokens of requests prove: `RequestAuthentication`.

use std::{collections::BTreeMap, time::Duration};

use http::HeaderName;
use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use weft_policy::convert::jwt::{
    MAX_AUDIENCES, MAX_CLAIM_HEADERS, MAX_FROM_HEADERS, MAX_ISSUERS, MAX_SKEW, MAX_TEXT, is_reserved,
};

use super::{Span, Spec, TargetRef, WorkloadSelector};
use crate::{
    jwks::{self, keys},
    source::check::Check,
};

/// Bytes of the URL of a key set.
const MAX_URL: usize = 2048;

/// Which JSON Web Tokens are accepted. Of several policies the most specific counts: of a port of a Service, a Service,
/// a selector, the namespace.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuthenticationSpec {
    /// What it applies to. Default: every workload of the namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// The workloads that it applies to, in place of targetRefs.
    pub selector: Option<WorkloadSelector>,
    /// A token must satisfy the one of its issuer; a token of another issuer is refused.
    pub jwt: Vec<JwtRule>,
    /// Requests without a token are refused. Default false: they have no claims.
    #[serde(default)]
    pub required: bool,
}

/// The tokens of one issuer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtRule {
    /// `iss` of the tokens.
    pub issuer: String,
    /// One of them must be in `aud`. Default: not checked.
    pub audiences: Option<Vec<String>>,
    /// Where the control plane fetches the keys, https.
    pub jwks_uri: Option<String>,
    /// The keys themselves, JSON.
    pub jwks: Option<String>,
    /// Signatures that are taken: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA. Default: all that fit
    /// the keys.
    #[schemars(transform = algorithms)]
    pub algorithms: Option<Vec<String>>,
    /// How far clocks may be apart, at most 5m. Default 60s.
    pub clock_skew: Option<Span>,
    /// Headers that hold the token. Default Authorization with Bearer.
    pub from_headers: Option<Vec<String>>,
    /// The token goes on to the app. Default false.
    #[serde(default)]
    pub forward: bool,
    /// Claims that the app gets as headers, claim to header. Members of objects are named outer.inner.
    pub claims_to_headers: Option<BTreeMap<String, String>>,
}

/// The words in its schema.
fn algorithms(schema: &mut Schema) {
    super::words(schema, &keys::ALGORITHMS);
}

impl Spec for RequestAuthenticationSpec {
    const TARGETS: &'static [&'static str] = &["Service", "Namespace"];

    fn targets(&self) -> &[TargetRef] {
        &self.target_refs
    }

    fn selector(&self) -> Option<&WorkloadSelector> {
        self.selector.as_ref()
    }

    fn check(&self, check: &mut Check<'_>) {
        if self.jwt.is_empty() {
            check.wrong("spec.jwt", "is empty", "a policy needs at least one issuer");
        }
        at_most(self.jwt.len(), MAX_ISSUERS, "spec.jwt", check);
        for (index, rule) in self.jwt.iter().enumerate() {
            let path = format!("spec.jwt[{index}]");
            text(&rule.issuer, &format!("{path}.issuer"), check);
            if self.jwt[..index].iter().any(|other| other.issuer == rule.issuer) {
                let hint = "put audiences and headers into one entry, and all keys into one set";
                check.wrong(&format!("{path}.issuer"), format!("\"{}\" is given twice", rule.issuer), hint);
            }
            self::rule(rule, &path, check);
        }
    }
}

fn rule(rule: &JwtRule, path: &str, check: &mut Check<'_>) {
    let lists = [("audiences", &rule.audiences), ("algorithms", &rule.algorithms), ("fromHeaders", &rule.from_headers)];
    for (field, list) in lists {
        if list.as_ref().is_some_and(Vec::is_empty) {
            check.wrong(&format!("{path}.{field}"), "is an empty list", "leave the field out for the default");
        }
    }
    for (index, audience) in rule.audiences.iter().flatten().enumerate() {
        text(audience, &format!("{path}.audiences[{index}]"), check);
    }
    at_most(rule.audiences.as_ref().map_or(0, Vec::len), MAX_AUDIENCES, &format!("{path}.audiences"), check);
    for (index, word) in rule.algorithms.iter().flatten().enumerate() {
        let path = format!("{path}.algorithms[{index}]");
        if word == "none" || word.starts_with("HS") {
            check.wrong(&path, format!("\"{word}\" proves nothing"), "signatures by a private key alone do");
        } else {
            check.one_of(&path, "algorithm", word, &keys::ALGORITHMS);
        }
    }
    if rule.clock_skew.is_some_and(|skew| skew.0 > MAX_SKEW) {
        check.wrong(&format!("{path}.clockSkew"), "is longer than 5m", "set the clocks, or renew tokens earlier");
    }
    keys_of(rule, path, check);
    headers(rule, path, check);
}

fn keys_of(rule: &JwtRule, path: &str, check: &mut Check<'_>) {
    if rule.jwks_uri.is_some() == rule.jwks.is_some() {
        check.wrong(path, "needs exactly one of jwksUri and jwks", "");
    }
    if let Some(url) = &rule.jwks_uri {
        let path = format!("{path}.jwksUri");
        at_most(url.len(), MAX_URL, &path, check);
        if let Err(why) = jwks::check_url(url) {
            check.wrong(&path, format!("\"{url}\" is not an https URL: {why}"), "such as https://id.example/jwks.json");
        }
    }
    if let Some(text) = &rule.jwks {
        let path = format!("{path}.jwks");
        match keys::parse(text) {
            Ok(parsed) => {
                for (index, why) in parsed.broken {
                    check.wrong(&path, format!("key {index} {why}"), "");
                }
            }
            Err(why) => check.wrong(&path, format!("cannot be used: {why}"), "{\"keys\": [...]} of public keys"),
        }
    }
}

fn headers(rule: &JwtRule, path: &str, check: &mut Check<'_>) {
    let mut seen: Vec<String> = Vec::new();
    let mut once = |header: &str, path: &str, check: &mut Check<'_>| {
        let lower = header.to_ascii_lowercase();
        if seen.contains(&lower) {
            check.wrong(path, format!("\"{header}\" is given twice"), "");
        }
        seen.push(lower);
    };
    let reserved = |header: &str| HeaderName::from_bytes(header.as_bytes()).is_ok_and(|name| is_reserved(&name));
    for (place, header) in rule.from_headers.iter().flatten().enumerate() {
        let path = format!("{path}.fromHeaders[{place}]");
        check.header(&path, header);
        if reserved(header) && !header.eq_ignore_ascii_case("authorization") {
            check.wrong(&path, format!("\"{header}\" holds no token"), "such as x-token");
        }
        once(header, &path, check);
    }
    at_most(rule.from_headers.as_ref().map_or(0, Vec::len), MAX_FROM_HEADERS, &format!("{path}.fromHeaders"), check);
    for (claim, header) in rule.claims_to_headers.iter().flatten() {
        let path = format!("{path}.claimsToHeaders.{claim}");
        text(claim, &path, check);
        check.header(&path, header);
        if reserved(header) {
            check.wrong(&path, format!("\"{header}\" frames or routes the request"), "such as x-user");
        }
        once(header, &path, check);
    }
    let count = rule.claims_to_headers.as_ref().map_or(0, BTreeMap::len);
    at_most(count, MAX_CLAIM_HEADERS, &format!("{path}.claimsToHeaders"), check);
}

fn text(text: &str, path: &str, check: &mut Check<'_>) {
    if text.is_empty() {
        check.wrong(path, "is empty", "");
    }
    at_most(text.len(), MAX_TEXT, path, check);
}

fn at_most(count: usize, most: usize, path: &str, check: &mut Check<'_>) {
    if count > most {
        check.wrong(path, format!("{count} is too many"), format!("at most {most}"));
    }
}

impl JwtRule {
    /// How far clocks may be apart, if it says so.
    #[must_use]
    pub fn skew(&self) -> Option<Duration> {
        self.clock_skew.map(|skew| skew.0)
    }
}
