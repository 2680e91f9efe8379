//! `--env-file`: variables for the app, one on each line.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, bail};

/// The variables of a file.
pub fn read(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let shown = || format!("--env-file {}", path.display());
    let text = std::fs::read_to_string(path).with_context(shown)?;
    let mut variables = BTreeMap::new();
    for (line, number) in text.lines().zip(1..) {
        let variable = variable(line).with_context(|| format!("{}:{number}", shown()))?;
        variables.extend(variable);
    }
    Ok(variables)
}

/// `NAME=VALUE`, `export NAME=VALUE`, an empty line or a comment. A value in quotes is what is between them; in double
/// ones, `\"`, `\\`, `\$` and `\n` mean what they mean in a shell or a string. Nothing is expanded. The value stays out of
/// error messages: it may be a secret.
fn variable(line: &str) -> anyhow::Result<Option<(String, String)>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) =
        line.split_once('=').context("expected NAME=VALUE, a comment that begins with #, or nothing")?;
    let name = name.trim();
    let good = |(at, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || at > 0 && c.is_ascii_digit();
    if name.is_empty() || !name.char_indices().all(good) {
        bail!("name {name:?}: must be of letters, digits and '_'");
    }
    let value = value.trim();
    let value = match value.chars().next() {
        Some('\'') => inside(value, '\'')?.to_owned(),
        Some('"') => unescaped(inside(value, '"')?)?,
        _ => value.to_owned(),
    };
    if value.contains('\0') {
        bail!("{name}: a value cannot have a NUL");
    }
    Ok(Some((name.to_owned(), value)))
}

fn inside(value: &str, quote: char) -> anyhow::Result<&str> {
    let inside = value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
    inside.with_context(|| format!("the value begins with {quote} and does not end with it"))
}

fn unescaped(text: &str) -> anyhow::Result<String> {
    let mut value = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match (c, if c == '\\' { rest.next() } else { None }) {
            ('"', _) => bail!("a quote inside quotes; write it as \\\""),
            ('\\', Some('n')) => value.push('\n'),
            ('\\', Some(c @ ('"' | '\\' | '$'))) => value.push(c),
            ('\\', _) => bail!("a backslash in double quotes; write it as \\\\, or use single quotes"),
            (c, _) => value.push(c),
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_variable_a_comment_or_nothing() {
        let pair = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        for (line, expected) in [
            ("", None),
            ("  # A=B", None),
            ("A=B", pair("A", "B")),
            ("export _a1 = b c # d ", pair("_a1", "b c # d")),
            ("A=", pair("A", "")),
            ("A=b=c", pair("A", "b=c")),
            (r#"A=' $b "c" '"#, pair("A", r#" $b "c" "#)),
            (r#"A="b\n\"c\" \\ \$d""#, pair("A", "b\n\"c\" \\ $d")),
        ] {
            assert_eq!(variable(line).unwrap(), expected, "{line}");
        }
        for (line, expected) in [
            ("A", "expected NAME=VALUE"),
            ("1A=b", "name \"1A\""),
            ("A B=c", "name \"A B\""),
            ("A='b", "does not end with it"),
            ("A=\"", "does not end with it"),
            (r#"A="b\c""#, "a backslash in double quotes"),
            (r#"A="b"c""#, "a quote inside quotes"),
        ] {
            let error = format!("{:#}", variable(line).expect_err(line));
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn a_wrong_line_is_told_by_file_and_number_and_without_its_value() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "A=1\nTOKEN='s3cret\n").unwrap();
        let error = format!("{:#}", read(file.path()).unwrap_err());
        assert!(error.contains(&format!("{}:2", file.path().display())) && !error.contains("s3cret"), "{error}");
    }
}
