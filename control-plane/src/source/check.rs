//! What checks of all kinds share: the collector of problems, and the forms of names, labels and durations.

use std::{net::IpAddr, time::Duration};

use super::{
    policies::Span,
    problem::{Origin, Problem, did_you_mean},
};

/// Longer times are mistakes.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Collects the problems of one object.
pub struct Check<'a> {
    origin: &'a Origin,
    problems: Vec<Problem>,
}

impl<'a> Check<'a> {
    pub fn new(origin: &'a Origin) -> Self {
        Self { origin, problems: Vec::new() }
    }

    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// A problem at `path`.
    pub fn wrong(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(self.origin.problem(path, message, hint));
    }

    /// A DNS label: what becomes a part of host names, SNI and SPIFFE ids.
    pub fn label(&mut self, path: &str, text: &str) {
        if is_dns_name(text) && !is_dns_label(text) {
            self.wrong(path, format!("\"{text}\" is not a DNS label"), "at most 63 characters and no \".\"");
        }
    }

    /// A name of any object.
    pub fn name(&mut self, path: &str, text: &str) {
        if text.is_empty() {
            self.wrong(path, "is missing", "");
        } else if !is_dns_name(text) {
            let rule = "lower-case letters, digits, \"-\" and \".\", at most 253";
            self.wrong(path, format!("\"{text}\" is not a name"), rule);
        }
    }

    /// A port, 1 to 65535.
    pub fn port(&mut self, path: &str, port: i64) {
        if !(1..=65535).contains(&port) {
            self.wrong(path, format!("{port} is not a port"), "1 to 65535");
        }
    }

    /// A share of requests: of those that are not 0 the smallest is one of a million.
    pub fn percent(&mut self, path: &str, percent: Option<f64>) {
        let Some(percent) = percent else { return };
        if !(0.0..=100.0).contains(&percent) {
            self.wrong(path, format!("{percent} is not a percentage"), "0 to 100");
        } else if percent > 0.0 && percent < 0.0001 {
            self.wrong(path, format!("{percent} is less than one of a million"), "0, or at least 0.0001");
        }
    }

    /// A length of time that somebody can have meant.
    pub fn span(&mut self, path: &str, span: Option<Span>) {
        if span.is_some_and(|span| span.0 > YEAR) {
            self.wrong(path, "is longer than a year", "at most 8760h");
        }
    }

    /// The same, and not 0s.
    pub fn some_time(&mut self, path: &str, span: Option<Span>) {
        self.span(path, span);
        if span.is_some_and(|span| span.0.is_zero()) {
            self.wrong(path, "must be more than 0s", "leave it out for the default");
        }
    }

    /// A number that must not be 0.
    pub fn positive(&mut self, path: &str, number: Option<u32>) {
        if number == Some(0) {
            self.wrong(path, "0 would stop everything", "at least 1");
        }
    }

    /// One of the words that are known.
    pub fn one_of(&mut self, path: &str, what: &str, word: &str, known: &[&str]) {
        if !known.contains(&word) {
            let near = did_you_mean(word, known.iter().copied());
            let hint = if near.is_empty() { format!("one of {}", known.join(", ")) } else { near };
            self.wrong(path, format!("unknown {what} \"{word}\""), hint);
        }
    }

    /// Two lengths of time of which the first is not the longer one.
    pub fn ordered(&mut self, path: &str, low: &str, shorter: Option<Span>, high: &str, longer: Option<Span>) {
        if let (Some(shorter), Some(longer)) = (shorter, longer)
            && shorter > longer
        {
            self.wrong(&format!("{path}.{low}"), format!("is longer than {high}"), "");
        }
    }

    /// An HTTP method.
    pub fn method(&mut self, path: &str, method: &str) {
        let upper = method.to_ascii_uppercase();
        if http::Method::from_bytes(method.as_bytes()).is_err() {
            self.wrong(path, format!("\"{method}\" is not a method"), "");
        } else if upper != method && matches!(upper.as_str(), "GET" | "PUT" | "POST" | "DELETE" | "HEAD" | "PATCH") {
            self.wrong(path, format!("\"{method}\" is not a method"), format!("methods have case: use \"{upper}\""));
        }
    }

    /// The name of a header.
    pub fn header(&mut self, path: &str, name: &str) {
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            self.wrong(path, format!("\"{name}\" is not a header name"), "");
        }
    }

    /// Port and weight of a backend.
    pub fn backend(&mut self, path: &str, port: Option<i32>, weight: Option<i32>) {
        if let Some(port) = port {
            self.port(&format!("{path}.port"), port.into());
        }
        if let Some(weight) = weight.filter(|weight| !(0..=1_000_000).contains(weight)) {
            self.wrong(&format!("{path}.weight"), format!("{weight} is not a weight"), "0 to 1000000");
        }
    }

    /// An IP address.
    pub fn ip(&mut self, path: &str, text: &str) {
        if text.parse::<IpAddr>().is_err() {
            self.wrong(path, format!("\"{text}\" is not an IP address"), "");
        }
    }
}

/// Whether the text is a DNS name of lower-case labels.
pub fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Whether the text is a DNS label: 1 to 63 lower-case letters, digits and inner dashes.
pub fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A name with an optional DNS prefix, such as `app` or `kubernetes.io/service-name`.
///
/// # Errors
/// The rule that is broken.
pub fn qualified_name(text: &str) -> Result<(), &'static str> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    if prefix.is_some_and(|prefix| !is_dns_name(prefix)) {
        return Err("the part before \"/\" is a DNS name");
    }
    if name.is_empty() { Err("a name is needed") } else { label_value(name) }
}

/// At most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends; may be empty.
///
/// # Errors
/// The rule that is broken.
pub fn label_value(text: &str) -> Result<(), &'static str> {
    let edge = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.len() > 63 {
        Err("at most 63 characters")
    } else if !text.bytes().all(inner) || !edge(text.bytes().next()) || !edge(text.bytes().last()) {
        Err("letters, digits, \"-\", \"_\" and \".\", with a letter or digit at both ends")
    } else {
        Ok(())
    }
}

/// A duration by GEP-2257: one to four of up to five digits and `h`, `m`, `s` or `ms`.
pub fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        total += match &rest[..unit] {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = &rest[unit..];
        parts += 1;
    }
    (1..=4).contains(&parts).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_follow_gep_2257() {
        assert_eq!(duration("1h2m3s4ms"), Some(Duration::from_millis(3_723_004)));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        for wrong in ["", "1", "s", "1.5s", "-1s", "100000s", "1us", "1s1s1s1s1s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
