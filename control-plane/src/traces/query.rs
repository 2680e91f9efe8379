//! What traces are asked for, in the terms of all readers: service, operation, attributes, time, duration.

use std::{sync::Arc, time::Duration};

use super::{Span, Traces};

/// Traces of one answer.
pub const MAX_LIMIT: usize = 1500;
const DEFAULT_LIMIT: usize = 20;

/// A question. All that is given must be met, by one span.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// `service.name`.
    pub service: Option<String>,
    /// Name of a span.
    pub operation: Option<String>,
    /// Attributes of the span, its process or its events.
    pub tags: Vec<(String, String)>,
    /// Began at this time or later; nanoseconds since 1970.
    pub from: Option<u64>,
    /// Began at this time or earlier.
    pub to: Option<u64>,
    /// Took at least this long.
    pub shortest: Option<Duration>,
    /// Took at most this long.
    pub longest: Option<Duration>,
    /// Traces; default 20.
    pub limit: Option<usize>,
}

impl Query {
    /// The newest traces that have such a span.
    #[must_use]
    pub fn run(&self, traces: &Traces) -> Vec<Vec<Arc<Span>>> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
        traces.search(limit, |spans| spans.iter().any(|span| self.matches(span)))
    }

    fn matches(&self, span: &Span) -> bool {
        let took = Duration::from_nanos(span.duration);
        self.service.as_ref().is_none_or(|service| *service == span.process.service)
            && self.operation.as_ref().is_none_or(|operation| *operation == span.name)
            && self.from.is_none_or(|from| span.start >= from)
            && self.to.is_none_or(|to| span.start <= to)
            && self.shortest.is_none_or(|shortest| took >= shortest)
            && self.longest.is_none_or(|longest| took <= longest)
            && self.tags.iter().all(|(key, value)| tagged(span, key, value))
    }
}

/// Jaeger shows `error` and `span.kind` as tags, so they can be asked for.
fn tagged(span: &Span, key: &str, value: &str) -> bool {
    match key {
        "error" if span.attribute("error").is_none() => (value == "true") == span.failed(),
        "span.kind" => span.kind == value,
        _ => {
            let lists = [&span.attributes, &span.process.attributes];
            let events = span.events.iter().map(|event| &event.attributes);
            lists.into_iter().chain(events).flatten().any(|(name, held)| name == key && held.to_string() == value)
        }
    }
}

/// A duration as Go writes it: `1.2s`, `100ms`, `1h30m`, `250us`.
///
/// # Errors
/// What was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("duration {text:?}: expected a number and a unit, such as 1.5s or 100ms");
    let (mut rest, mut total) = (text.trim(), 0.0_f64);
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += number * seconds;
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| wrong())
}
