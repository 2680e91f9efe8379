//! What is wrong with a resource and where: the one type in which loading and compiling report to people.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::Serialize;

/// Something wrong in a resource, with its place.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Problem {
    /// File, or `registration ns/name` for what a sidecar registered.
    pub file: String,
    /// Line from 1; 0 if there is none.
    pub line: usize,
    /// Column from 1; 0 if there is none.
    pub column: usize,
    /// Path of the field, such as `spec.ports[0].port`. May be empty.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it. May be empty.
    pub hint: String,
    /// What a status condition says of it.
    #[serde(skip)]
    pub reason: Reason,
}

/// The reason words of Gateway API that conditions need.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// None of the others.
    #[default]
    Invalid,
    /// A backend does not exist.
    BackendNotFound,
    /// Another object of the kind has its place: the older one wins, or that of a file.
    Conflicted,
    /// A backend of a kind that we do not know.
    InvalidKind,
    /// Keys of an issuer are not there: accepted, and not in force as it is meant.
    KeysMissing,
    /// The parent does not exist, or has no such port.
    NoMatchingParent,
    /// A reference to another namespace that nobody allows.
    RefNotPermitted,
    /// What a policy is attached to does not exist.
    TargetNotFound,
    /// A value that we cannot act on.
    UnsupportedValue,
}

impl Reason {
    /// Whether the object is accepted all the same, and only not in force.
    #[must_use]
    pub const fn is_accepted(self) -> bool {
        matches!(self, Self::KeysMissing)
    }

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::BackendNotFound => "BackendNotFound",
            Self::Conflicted => "Conflicted",
            Self::InvalidKind => "InvalidKind",
            Self::KeysMissing => "KeysMissing",
            Self::NoMatchingParent => "NoMatchingParent",
            Self::RefNotPermitted => "RefNotPermitted",
            Self::TargetNotFound => "TargetNotFound",
            Self::UnsupportedValue => "UnsupportedValue",
        }
    }
}

impl Problem {
    /// Gives the problem its reason.
    #[must_use]
    pub const fn because(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

/// Where an object was written: its file and the position of each of its fields.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Origin {
    /// The file.
    pub file: Arc<str>,
    /// Field path to line and column.
    pub positions: BTreeMap<String, (usize, usize)>,
}

impl Origin {
    /// A problem at `path`, placed at the nearest enclosing field that was written.
    #[must_use]
    pub fn problem(&self, path: &str, message: impl Into<String>, hint: impl Into<String>) -> Problem {
        let (line, column) = self.locate(path);
        Problem {
            file: self.file.to_string(),
            line,
            column,
            path: path.to_owned(),
            message: message.into(),
            hint: hint.into(),
            reason: Reason::Invalid,
        }
    }

    fn locate(&self, path: &str) -> (usize, usize) {
        let mut rest = path;
        loop {
            if let Some(&position) = self.positions.get(rest) {
                return position;
            }
            if rest.is_empty() {
                return (0, 0);
            }
            rest = &rest[..rest.rfind(['.', '[']).unwrap_or(0)];
        }
    }
}

/// Longest word, in bytes, that is compared with others: what is longer is no name.
const MAX_WORD: usize = 253;

/// The candidate that `word` most likely meant, if one is near enough.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > MAX_WORD {
        return None;
    }
    let limit = (word.chars().count() / 3).max(1);
    let word = word.to_lowercase();
    let length = word.chars().count();
    candidates
        .into_iter()
        .map(|candidate| (candidate.to_lowercase(), candidate))
        // Each character more or less is an edit: most candidates need no comparison.
        .filter(|(lower, _)| lower.chars().count().abs_diff(length) <= limit)
        .map(|(lower, candidate)| (distance(&word, &lower), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// `did you mean "..."?`, or nothing.
#[must_use]
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map_or_else(String::new, |found| format!("did you mean \"{found}\"?"))
}

/// Edit distance in which swapping two neighbours counts as one edit.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            let edit = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = edit.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if swap {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_for_a_name_gets_no_suggestion() {
        let (longest, longer) = ("a".repeat(253), "a".repeat(254));
        assert_eq!(nearest(&longest, [longer.as_str()]), Some(longer.as_str()));
        assert_eq!(nearest(&longer, [longer.as_str()]), None);
    }

    #[test]
    fn a_suggestion_is_near_and_the_nearest() {
        assert_eq!(nearest("selectr", ["selector", "ports", "sector"]), Some("selector"));
        assert_eq!(nearest("prots", ["ports", "protocol"]), Some("ports"));
        assert_eq!(nearest("targetport", ["targetPort", "port"]), Some("targetPort"));
        assert_eq!(nearest("banana", ["selector", "ports"]), None);
    }

    #[test]
    fn a_missing_field_is_placed_at_its_nearest_written_parent() {
        let origin = Origin {
            file: "a.yaml".into(),
            positions: BTreeMap::from([(String::new(), (1, 1)), ("spec.ports[0]".to_owned(), (7, 5))]),
        };
        assert_eq!(origin.problem("spec.ports[0].port", "x", "").to_string(), "a.yaml:7:5: spec.ports[0].port: x");
        assert_eq!(origin.problem("status", "x", "do y").to_string(), "a.yaml:1:1: status: x (do y)");
    }
}
