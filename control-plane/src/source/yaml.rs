//! YAML text to trees of located nodes. Scalars follow the YAML 1.2 core schema; duplicate keys, unbounded alias
//! expansion and keys that are not scalars are errors.

use std::{collections::BTreeMap, sync::Arc};

use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, Span};

use super::problem::Problem;

/// Nodes of one file with all aliases expanded, and nesting depth: more is an attack or an accident.
const MAX_NODES: usize = 200_000;
const MAX_DEPTH: usize = 64;

/// A value and where it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub line: usize,
    pub column: usize,
    pub value: Value,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

/// A mapping key and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub name: String,
    pub line: usize,
    pub column: usize,
}

impl Node {
    /// The value of this key, if the node is a mapping that has it.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text of a string node.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Every field path below this node with its line and column.
    pub fn positions(&self) -> BTreeMap<String, (usize, usize)> {
        let mut found = BTreeMap::new();
        self.collect(String::new(), &mut found);
        found
    }

    fn collect(&self, path: String, found: &mut BTreeMap<String, (usize, usize)>) {
        match &self.value {
            Value::Mapping(entries) => {
                for (key, node) in entries {
                    node.collect(join(&path, &key.name), found);
                }
            }
            Value::Sequence(items) => {
                for (index, node) in items.iter().enumerate() {
                    node.collect(format!("{path}[{index}]"), found);
                }
            }
            _ => {}
        }
        found.insert(path, (self.line, self.column));
    }

    fn size(&self) -> usize {
        match &self.value {
            Value::Mapping(entries) => 1 + entries.iter().map(|(_, node)| node.size()).sum::<usize>(),
            Value::Sequence(items) => 1 + items.iter().map(Self::size).sum::<usize>(),
            _ => 1,
        }
    }
}

impl From<&serde_json::Value> for Node {
    /// The same tree; no node has a place.
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let key = |name: &String| Key { name: name.clone(), line: 0, column: 0 };
        let value = match value {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => Value::Unsigned(number),
                (None, Some(number)) => Value::Signed(number),
                _ => Value::Float(number.as_f64().unwrap_or(f64::INFINITY)),
            },
            Json::String(text) => Value::String(text.clone()),
            Json::Array(items) => Value::Sequence(items.iter().map(Self::from).collect()),
            Json::Object(entries) => {
                Value::Mapping(entries.iter().map(|(name, value)| (key(name), Self::from(value))).collect())
            }
        };
        Self { line: 0, column: 0, value }
    }
}

impl From<&Node> for serde_json::Value {
    /// The same tree. A number that JSON cannot write becomes null.
    fn from(node: &Node) -> Self {
        match &node.value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Signed(value) => (*value).into(),
            Value::Unsigned(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::String(text) => text.as_str().into(),
            Value::Sequence(items) => items.iter().map(Self::from).collect(),
            Value::Mapping(entries) => entries.iter().map(|(key, node)| (key.name.clone(), Self::from(node))).collect(),
        }
    }
}

/// `path` with one more field name.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The documents of a file; empty ones are left out.
pub fn parse(file: &Arc<str>, text: &str) -> Result<Vec<Node>, Problem> {
    let mut builder = Builder { file, open: Vec::new(), anchors: BTreeMap::new(), documents: Vec::new(), nodes: 0 };
    let options = Options::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| {
            builder.problem(
                error.marker().line(),
                error.marker().col() + 1,
                format!("not valid YAML: {}", error.info()),
            )
        })?;
        builder.event(event, &span)?;
    }
    Ok(builder.documents)
}

struct Open {
    node: Node,
    anchor: usize,
    key: Option<Key>,
}

struct Builder<'a> {
    file: &'a Arc<str>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    documents: Vec<Node>,
    nodes: usize,
}

impl Builder<'_> {
    fn problem(&self, line: usize, column: usize, message: String) -> Problem {
        Problem { file: self.file.to_string(), line, column, message, ..Problem::default() }
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Problem> {
        let (line, column) = (span.start.line(), span.start.col() + 1);
        let node = |value| Node { line, column, value };
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let value = if style == ScalarStyle::Plain { resolve(&text) } else { Value::String(text.into_owned()) };
                // A key is text, whatever it looks like.
                if let Some(Open { node: Node { value: Value::Mapping(entries), .. }, key: key @ None, .. }) =
                    self.open.last_mut()
                {
                    let name = match span_text(&value) {
                        Some(name) => name,
                        None => return Err(self.problem(line, column, "a key must be text".to_owned())),
                    };
                    if entries.iter().any(|(known, _)| known.name == name) {
                        return Err(self.problem(line, column, format!("key \"{name}\" is given twice")));
                    }
                    *key = Some(Key { name, line, column });
                    return Ok(());
                }
                self.add(node(value), anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.start(node(Value::Sequence(Vec::new())), anchor),
            Event::MappingStart(_, anchor, _) => self.start(node(Value::Mapping(Vec::new())), anchor),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(done) => self.add(done.node, done.anchor),
                None => Ok(()),
            },
            Event::Alias(id) => match self.anchors.get(&id).cloned() {
                Some(found) => {
                    self.nodes += found.size();
                    self.add(Node { line, column, ..found }, 0)
                }
                None => Err(self.problem(line, column, "an alias inside of its own anchor".to_owned())),
            },
            Event::DocumentStart(..) => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn start(&mut self, node: Node, anchor: usize) -> Result<(), Problem> {
        if let Some(Open { node: Node { value: Value::Mapping(_), .. }, key: None, .. }) = self.open.last() {
            return Err(self.problem(node.line, node.column, "a key must be text".to_owned()));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(self.problem(node.line, node.column, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.open.push(Open { node, anchor, key: None });
        Ok(())
    }

    fn add(&mut self, mut node: Node, anchor: usize) -> Result<(), Problem> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(self.problem(node.line, node.column, format!("more than {MAX_NODES} values in one file")));
        }
        if let Value::Mapping(entries) = &node.value
            && let Some((key, _)) = entries.first()
        {
            (node.line, node.column) = (key.line, key.column);
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(Open { node: Node { value: Value::Sequence(items), .. }, .. }) => items.push(node),
            Some(Open { node: Node { value: Value::Mapping(entries), .. }, key, .. }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => return Err(self.problem(node.line, node.column, "a key must be text".to_owned())),
            },
            _ if node.value == Value::Null => {}
            _ => self.documents.push(node),
        }
        Ok(())
    }
}

/// A scalar as the text of a key.
fn span_text(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(text) => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::Signed(value) => value.to_string(),
        Value::Unsigned(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        _ => return None,
    })
}

/// A plain scalar by the core schema.
fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Value::String(text.to_owned());
    }
    let radix = |prefix, radix| text.strip_prefix(prefix).and_then(|digits| u64::from_str_radix(digits, radix).ok());
    if let Some(value) = radix("0x", 16).or_else(|| radix("0o", 8)).or_else(|| text.parse().ok()) {
        return Value::Unsigned(value);
    }
    if let Ok(value) = text.parse() {
        return Value::Signed(value);
    }
    let floating = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    match text.parse() {
        Ok(value) if floating => Value::Float(value),
        _ => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(text: &str) -> Result<Vec<Node>, String> {
        parse(&"f.yaml".into(), text).map_err(|problem| problem.to_string())
    }

    #[test]
    fn every_field_knows_its_line_and_column() {
        let text = "# c\n---\n---\nkind: A\nspec:\n  ports:\n  - port: 80\n    name: http\n  - {port: 81}\n";
        let found = documents(text).unwrap();
        assert_eq!(found.len(), 1);
        let positions = found[0].positions();
        assert_eq!(positions[""], (4, 1));
        assert_eq!(positions["spec"], (6, 3));
        assert_eq!(positions["spec.ports[0]"], (7, 5));
        assert_eq!(positions["spec.ports[0].port"], (7, 11));
        assert_eq!(positions["spec.ports[0].name"], (8, 11));
        assert_eq!(positions["spec.ports[1].port"], (9, 12));
    }

    #[test]
    fn scalars_follow_the_core_schema() {
        assert_eq!(resolve("12"), Value::Unsigned(12));
        assert_eq!(resolve("-3"), Value::Signed(-3));
        assert_eq!(resolve("0x1f"), Value::Unsigned(31));
        assert_eq!(resolve("1.5"), Value::Float(1.5));
        assert_eq!(resolve("10.0.0.1"), Value::String("10.0.0.1".to_owned()));
        assert_eq!(resolve("10s"), Value::String("10s".to_owned()));
        assert_eq!(resolve("no"), Value::String("no".to_owned()));
        assert_eq!(resolve("~"), Value::Null);
    }

    #[test]
    fn a_key_given_twice_is_an_error_at_the_second() {
        assert_eq!(documents("a: 1\nb: 2\na: 3\n").unwrap_err(), "f.yaml:3:1: key \"a\" is given twice");
    }

    #[test]
    fn broken_yaml_is_reported_with_its_place() {
        assert!(documents("a: [1\nb: 2\n").unwrap_err().starts_with("f.yaml:2:"));
    }

    #[test]
    fn aliases_are_expanded_but_not_without_end() {
        let found = documents("a: &x {n: 1}\nb: *x\n").unwrap();
        assert_eq!(found[0].get("b").and_then(|b| b.get("n")).map(|n| &n.value), Some(&Value::Unsigned(1)));
        let mut bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n".to_owned();
        for level in 1..9 {
            let alias = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{alias}]\n"));
        }
        assert!(documents(&bomb).unwrap_err().contains("more than 200000 values"));
    }
}
