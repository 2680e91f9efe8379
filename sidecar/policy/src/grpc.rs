//! Status codes of gRPC by number and name (gRPC, statuscodes).

/// The codes of failures, by name, in the order of their numbers from 1; 0 is `OK`.
pub const CODES: [&str; 16] = [
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The number of a failure, 1 to 16.
#[must_use]
pub fn code(name: &str) -> Option<u32> {
    (1..).zip(CODES).find(|(_, known)| *known == name).map(|(code, _)| code)
}

/// The name of a code; `None` for a number that is none.
#[must_use]
pub fn name(code: u32) -> Option<&'static str> {
    match code.checked_sub(1) {
        None => Some("OK"),
        Some(index) => CODES.get(usize::try_from(index).ok()?).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_belong_together() {
        for (number, text) in [(1, "CANCELLED"), (4, "DEADLINE_EXCEEDED"), (14, "UNAVAILABLE"), (16, "UNAUTHENTICATED")]
        {
            assert_eq!((name(number), code(text)), (Some(text), Some(number)));
        }
        assert_eq!((name(0), name(17), code("OK"), code("nonsense")), (Some("OK"), None, None, None));
    }
}
