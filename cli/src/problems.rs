//! Problems of resource files for people: place, the line itself, what is wrong, what to do.

use weft_control_plane::source::Problem;

use crate::style::{self, BAD, STRONG, WARNING};

/// Whether a problem stops the work.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// Nothing is done.
    Error,
    /// It is told.
    Warning,
}

/// The problem with the line of `text` that it is about.
pub fn render(problem: &Problem, severity: Severity, text: Option<&str>) -> String {
    let (color, word) = match severity {
        Severity::Error => (BAD, "error"),
        Severity::Warning => (WARNING, "warning"),
    };
    let path = if problem.path.is_empty() { String::new() } else { format!("{}: ", problem.path) };
    let mut shown = format!("{}: {path}{}\n", style::paint(color, word), problem.message);
    let number = problem.line.to_string();
    let pad = " ".repeat(number.len());
    let place = if problem.line > 0 { format!(":{}:{}", problem.line, problem.column) } else { String::new() };
    shown.push_str(&format!("{pad}--> {}{place}\n", problem.file));
    let line = text.filter(|_| problem.line > 0).and_then(|text| text.lines().nth(problem.line - 1));
    if let Some(line) = line {
        let before = line.chars().take(problem.column.saturating_sub(1));
        // Tabs stay tabs, so that the mark stands under its place.
        let indent: String = before.map(|letter| if letter == '\t' { '\t' } else { ' ' }).collect();
        let mark = style::paint(color, "^");
        shown.push_str(&format!("{pad} |\n{} | {line}\n{pad} | {indent}{mark}\n", style::paint(STRONG, &number)));
    }
    if !problem.hint.is_empty() {
        shown.push_str(&format!("{pad} = {}\n", problem.hint));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_with_its_line_and_a_mark_below_it() {
        let problem = Problem {
            file: "a.yaml".into(),
            line: 2,
            column: 3,
            path: "spec.prots".into(),
            message: "unknown field".into(),
            hint: "did you mean \"ports\"?".into(),
            ..Problem::default()
        };
        let shown = render(&problem, Severity::Error, Some("spec:\n  prots: []\n"));
        let plain = anstream::adapter::strip_str(&shown).to_string();
        assert_eq!(
            plain,
            "error: spec.prots: unknown field\n --> a.yaml:2:3\n  |\n2 |   prots: []\n  |   ^\n  = did you mean \"ports\"?\n"
        );
        let nowhere = Problem { file: "a.yaml".into(), message: "gone".into(), ..Problem::default() };
        assert!(render(&nowhere, Severity::Warning, None).ends_with(": gone\n --> a.yaml\n"));
    }
}
