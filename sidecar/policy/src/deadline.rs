//! How long a caller still waits: `grpc-timeout` (gRPC over HTTP/2) and our own field for the rest of HTTP. Each hop
//! passes on what is left, so that nobody works for a caller who has given up.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Milliseconds that the caller still waits. Applications may pass it on, and may send it themselves.
pub const TIMEOUT_MS: HeaderName = HeaderName::from_static("x-weft-timeout-ms");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The longest wait that a caller may name; more means none.
const MAX: Duration = Duration::from_secs(100_000_000);

/// How long the caller waits: the shorter of both fields. What is malformed counts as absent.
#[must_use]
pub fn of(headers: &HeaderMap, grpc: bool) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
    let ours = text(&TIMEOUT_MS).and_then(digits).map(Duration::from_millis);
    let theirs = if grpc { text(&GRPC_TIMEOUT).and_then(grpc_timeout) } else { None };
    let shorter = match (ours, theirs) {
        (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
        (ours, theirs) => ours.or(theirs),
    };
    shorter.filter(|wait| *wait <= MAX)
}

/// Writes what is left of the wait into the field that the next hop reads.
pub fn set(headers: &mut HeaderMap, grpc: bool, left: Duration) {
    if grpc {
        headers.remove(TIMEOUT_MS);
        headers.insert(GRPC_TIMEOUT, format_grpc(left));
    } else {
        headers.insert(TIMEOUT_MS, HeaderValue::from(millis(left)));
    }
}

/// Whole milliseconds, at least one: less than one would mean no time at all.
fn millis(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn digits(text: &str) -> Option<u64> {
    let valid = !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| text.parse().ok()).flatten()
}

/// At most eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let value = digits(text.strip_suffix(unit)?).filter(|_| text.len() <= 9)?;
    Some(match unit {
        'H' => Duration::from_secs(value * 3600),
        'M' => Duration::from_secs(value * 60),
        'S' => Duration::from_secs(value),
        'm' => Duration::from_millis(value),
        'u' => Duration::from_micros(value),
        'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

/// The finest unit that has room in eight digits, rounded down but never to nothing.
fn format_grpc(left: Duration) -> HeaderValue {
    const UNITS: [(u128, char); 6] = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60_000_000_000, 'M'),
        (3_600_000_000_000, 'H'),
    ];
    let nanos = left.as_nanos().max(1);
    let (unit, letter) = UNITS.into_iter().find(|(unit, _)| nanos / unit < 100_000_000).unwrap_or(UNITS[5]);
    let value = (nanos / unit).min(99_999_999);
    HeaderValue::from_str(&format!("{value}{letter}")).unwrap_or(HeaderValue::from_static("1n"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn the_shorter_of_both_fields_counts() {
        let both = headers(&[("x-weft-timeout-ms", "1500"), ("grpc-timeout", "1S")]);
        assert_eq!(of(&both, true), Some(Duration::from_secs(1)));
        assert_eq!(of(&both, false), Some(Duration::from_millis(1500)), "grpc-timeout belongs to gRPC");
        assert_eq!(of(&HeaderMap::new(), true), None);
    }

    #[test]
    fn what_is_malformed_counts_as_absent() {
        for value in ["", "5", "S", "-1S", "+1S", "1.5S", "123456789S", "1x", "1é", "99999999H"] {
            assert_eq!(of(&headers(&[("grpc-timeout", value)]), true), None, "{value:?}");
        }
        for value in ["", "-1", "1s", "99999999999999999999", "999999999999999999"] {
            assert_eq!(of(&headers(&[("x-weft-timeout-ms", value)]), false), None, "{value:?}");
        }
    }

    #[test]
    fn nothing_left_is_still_a_deadline() {
        let mut left = HeaderMap::new();
        set(&mut left, true, Duration::ZERO);
        assert_eq!(of(&left, true), Some(Duration::from_nanos(1)));
        set(&mut left, false, Duration::ZERO);
        assert_eq!(of(&left, false), Some(Duration::from_millis(1)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_but_for_rounding_down(nanos in 1_u64..100_000_000_000_000_000) {
            let wait = Duration::from_nanos(nanos);
            let mut fields = HeaderMap::new();
            set(&mut fields, true, wait);
            let read = of(&fields, true).expect("a deadline");
            prop_assert!(read <= wait, "never longer");
            prop_assert!(wait - read <= wait / 100_000, "{read:?} of {wait:?}");
        }
    }
}
