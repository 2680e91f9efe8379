//! Regular expressions of routes, compiled once with bounds: matching takes time linear in the value, and a pattern
//! whose program would be large is refused.

use std::fmt;

use regex::{Regex, RegexBuilder};

/// Bytes of a pattern.
pub const MAX_PATTERN: usize = 1024;
/// Bytes of a compiled pattern, and of what a search keeps.
const MAX_COMPILED: usize = 64 * 1024;

/// A regular expression that is matched against a whole value.
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    regex: Regex,
}

/// Why a pattern is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PatternError {
    /// Longer than [`MAX_PATTERN`].
    #[error("is longer than {MAX_PATTERN} bytes")]
    TooLong,
    /// Its program would be larger than 64 KiB.
    #[error("is too large when compiled: use fewer or smaller repetitions")]
    TooLarge,
    /// Not a regular expression.
    #[error("is not a regular expression: {0}")]
    Syntax(String),
}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// When it is no regular expression, or too large.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        // By itself first: `a)(b` is well-formed only inside the group.
        let build = |pattern: &str| {
            RegexBuilder::new(pattern).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).nest_limit(64).build()
        };
        let regex = build(text).and_then(|_| build(&format!("^(?:{text})$"))).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => PatternError::TooLarge,
            error => PatternError::Syntax(last_line(&error.to_string())),
        })?;
        Ok(Self { text: text.into(), regex })
    }

    /// The whole value matches.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        self.regex.is_match(value)
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// The parser's message ends with what is wrong; before it is a picture of the place.
fn last_line(message: &str) -> String {
    let line = message.lines().last().unwrap_or(message).trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_value() {
        let pattern = Pattern::new("/items/[0-9]+|/all").expect("a pattern");
        for (value, expected) in
            [("/items/7", true), ("/all", true), ("/items/7/x", false), ("x/items/7", false), ("/all\n", false)]
        {
            assert_eq!(pattern.matches(value), expected, "{value:?}");
        }
    }

    #[test]
    fn what_is_no_pattern_or_too_large_is_refused_with_the_reason() {
        assert!(matches!(Pattern::new("(a"), Err(PatternError::Syntax(why)) if why.contains("unclosed group")));
        assert!(matches!(Pattern::new("a)(b"), Err(PatternError::Syntax(_))));
        assert_eq!(Pattern::new(&"a".repeat(1025)), Err(PatternError::TooLong));
        assert_eq!(Pattern::new(r"(\w{100}){100}"), Err(PatternError::TooLarge));
        assert!(matches!(Pattern::new(&"(".repeat(500)), Err(PatternError::Syntax(_))));
    }

    #[test]
    fn a_pattern_that_explodes_elsewhere_takes_linear_time_here() {
        let pattern = Pattern::new("(a+)+b").expect("a pattern");
        assert!(!pattern.matches(&"a".repeat(100_000)));
    }
}
