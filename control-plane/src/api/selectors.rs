//! Label and field selectors: equality and set based, as `-l` and `--field-selector` send them.

use serde_json::Value;

use super::kinds::field;
use crate::source::{label_value, qualified_name};

/// What a list or watch is limited to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct FieldRequirement {
    path: [&'static str; 2],
    value: String,
    equal: bool,
}

impl Selector {
    /// Parses `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// What is wrong, with the part that is.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, String> {
        let labels: Result<_, String> = requirements(labels).into_iter().map(requirement).collect();
        let fields: Result<_, String> =
            fields.split(',').filter(|part| !part.trim().is_empty()).map(field_requirement).collect();
        Ok(Self {
            labels: labels.map_err(|why| format!("labelSelector: {why}"))?,
            fields: fields.map_err(|why| format!("fieldSelector: {why}"))?,
        })
    }

    /// Whether the object is selected.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let labels = field(object, &["metadata", "labels"]);
        self.labels.iter().all(|requirement| requirement.matches(labels))
            && self.fields.iter().all(|wanted| {
                let value = field(object, &wanted.path).as_str().unwrap_or_default();
                (value == wanted.value) == wanted.equal
            })
    }
}

impl Requirement {
    fn matches(&self, labels: &Value) -> bool {
        let value = labels.get(&self.key).and_then(Value::as_str);
        let among = |values: &[String]| value.is_some_and(|value| values.iter().any(|wanted| wanted == value));
        match &self.operator {
            Operator::In(values) => among(values),
            // As in Kubernetes, an object without the label is not in the set.
            Operator::NotIn(values) => !among(values),
            Operator::Exists => value.is_some(),
            Operator::Absent => value.is_none(),
        }
    }
}

/// Parts between commas outside of parentheses.
fn requirements(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_i32);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth <= 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !text.trim().is_empty() {
        parts.push(&text[start..]);
    }
    parts
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let part = part.trim();
    if part.is_empty() {
        return Err("an empty requirement: one comma too many".into());
    }
    if let Some(key) = part.strip_prefix('!') {
        return made(part, key, Operator::Absent);
    }
    if let Some((key, value)) = part.split_once("!=") {
        return made(part, key, Operator::NotIn(vec![value.trim().into()]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return made(part, key, Operator::In(vec![value.trim().into()]));
    }
    let Some((key, rest)) = part.split_once(char::is_whitespace) else {
        return made(part, part, Operator::Exists);
    };
    let rest = rest.trim();
    let (negative, set) = match (rest.strip_prefix("notin"), rest.strip_prefix("in")) {
        (Some(set), _) => (true, set),
        (None, Some(set)) => (false, set),
        _ => return Err(format!("\"{part}\": expected =, ==, !=, in, notin or nothing after \"{key}\"")),
    };
    let set = set.trim().strip_prefix('(').and_then(|set| set.strip_suffix(')'));
    let set = set.ok_or_else(|| format!("\"{part}\": expected values in parentheses, such as {key} in (a, b)"))?;
    let values = set.split(',').map(|value| value.trim().to_owned()).collect();
    made(part, key, if negative { Operator::NotIn(values) } else { Operator::In(values) })
}

fn made(part: &str, key: &str, operator: Operator) -> Result<Requirement, String> {
    let key = key.trim();
    qualified_name(key).map_err(|why| format!("\"{part}\": \"{key}\" is not a label key: {why}"))?;
    if let Operator::In(values) | Operator::NotIn(values) = &operator {
        for value in values {
            label_value(value).map_err(|why| format!("\"{part}\": \"{value}\" is not a label value: {why}"))?;
        }
    }
    Ok(Requirement { key: key.into(), operator })
}

fn field_requirement(part: &str) -> Result<FieldRequirement, String> {
    let part = part.trim();
    let found = part.split_once("!=").map(|(path, value)| (path, value, false));
    let found = found.or_else(|| part.split_once("==").map(|(path, value)| (path, value, true)));
    let found = found.or_else(|| part.split_once('=').map(|(path, value)| (path, value, true)));
    let (path, value, equal) = found.ok_or_else(|| format!("\"{part}\": expected =, == or !="))?;
    let path = match path.trim() {
        "metadata.name" => ["metadata", "name"],
        "metadata.namespace" => ["metadata", "namespace"],
        other => return Err(format!("\"{other}\" is not supported: metadata.name and metadata.namespace are")),
    };
    Ok(FieldRequirement { path, value: value.trim().into(), equal })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(labels: &str, fields: &str) -> bool {
        let object = json!({ "metadata": {
            "name": "cart", "namespace": "shop", "labels": { "app": "cart", "tier": "back", "a.b/c": "" },
        }});
        Selector::parse(labels, fields).expect(labels).matches(&object)
    }

    #[test]
    fn labels_are_selected_by_equality_and_by_sets() {
        for yes in [
            "",
            "app=cart",
            "app==cart",
            "app!=web",
            "app in (web, cart)",
            "app notin (web)",
            "app",
            "!none",
            "a.b/c=",
            "none!=x",
            "none notin (x)",
            "app=cart,tier in (back,front),!none",
        ] {
            assert!(matches(yes, ""), "{yes}");
        }
        for no in
            ["app=web", "app!=cart", "app in (web)", "app notin (cart,web)", "none", "!app", "app=cart,tier=front"]
        {
            assert!(!matches(no, ""), "{no}");
        }
    }

    #[test]
    fn fields_are_name_and_namespace() {
        assert!(matches("", "metadata.name=cart"));
        assert!(matches("", "metadata.name!=web,metadata.namespace==shop"));
        assert!(!matches("", "metadata.namespace=other"));
    }

    #[test]
    fn a_bad_selector_says_which_part_and_why() {
        for (labels, fields, says) in [
            ("app in web", "", "labelSelector: \"app in web\": expected values in parentheses, such as app in (a, b)"),
            ("app like x", "", "expected =, ==, !=, in, notin or nothing after \"app\""),
            ("a=b,,c=d", "", "an empty requirement"),
            ("-x=1", "", "\"-x\" is not a label key"),
            ("a=b c", "", "\"b c\" is not a label value"),
            ("", "spec.type=x", "fieldSelector: \"spec.type\" is not supported: metadata.name and"),
            ("", "metadata.name", "expected =, == or !="),
        ] {
            let error = Selector::parse(labels, fields).expect_err(labels);
            assert!(error.contains(says), "{error}");
        }
    }
}
