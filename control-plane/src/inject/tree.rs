//! YAML text to a tree that remembers how it was written: order, scalars as they stand, flow style, comments. What is not
//! changed is written as it was, whatever version of YAML its author had in mind.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, Span, StructureStyle};

use crate::source::Problem;

/// Nodes of one document with all aliases expanded, and nesting depth: more is an attack or an accident.
const MAX_NODES: usize = 200_000;
const MAX_DEPTH: usize = 64;

/// A value as it was written.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it starts, from 1, in the document.
    pub line: usize,
    pub column: usize,
    /// Comments on lines of their own before it, with `#`, and empty lines; of a member of a mapping they are its key's.
    pub comments: Vec<String>,
    pub kind: Kind,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Kind {
    Scalar(Scalar),
    Sequence { items: Vec<Node>, flow: bool, indented: bool },
    Mapping { entries: Vec<(Scalar, Node)>, flow: bool },
}

/// A scalar or a key.
#[derive(Clone, Debug)]
pub struct Scalar {
    pub text: String,
    pub style: ScalarStyle,
    pub line: usize,
    pub column: usize,
    /// Comments on lines of their own before a key.
    pub comments: Vec<String>,
    /// Comment behind it on its line.
    pub trailing: Option<String>,
}

impl Scalar {
    /// Its meaning: that of YAML 1.1 for the words yes, no, on and off, as Kubernetes reads them.
    pub fn value(&self) -> Value {
        if self.style != ScalarStyle::Plain {
            return Value::String(self.text.clone());
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => Value::Null,
            "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => true.into(),
            "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => false.into(),
            text => number(text).unwrap_or_else(|| Value::String(text.into())),
        }
    }
}

/// A plain scalar that is a number. What is only written again keeps its text, so octal numbers need no care here.
fn number(text: &str) -> Option<Value> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    if let Ok(number) = text.parse::<u64>() {
        return Some(number.into());
    }
    if let Ok(number) = text.parse::<i64>() {
        return Some(number.into());
    }
    let floating = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    floating.then(|| text.parse::<f64>().ok()).flatten().filter(|number| number.is_finite()).map(Value::from)
}

impl Node {
    /// The same as a JSON tree.
    pub fn value(&self) -> Value {
        match &self.kind {
            Kind::Scalar(scalar) => scalar.value(),
            Kind::Sequence { items, .. } => Value::Array(items.iter().map(Self::value).collect()),
            Kind::Mapping { entries, .. } => {
                Value::Object(entries.iter().map(|(key, node)| (key.text.clone(), node.value())).collect())
            }
        }
    }

    /// The member of a mapping.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match &self.kind {
            Kind::Mapping { entries, .. } => entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// Whether a literal or folded text stands at the end.
    pub fn ends_with_block(&self) -> bool {
        match &self.kind {
            Kind::Scalar(scalar) => matches!(scalar.style, ScalarStyle::Literal | ScalarStyle::Folded),
            Kind::Sequence { items, .. } => items.last().is_some_and(Self::ends_with_block),
            Kind::Mapping { entries, .. } => entries.last().is_some_and(|(_, node)| node.ends_with_block()),
        }
    }

    /// Gives a member of the mapping at `path` another name.
    pub fn rename(&mut self, path: &[String], from: &str, to: &str) {
        let Kind::Mapping { entries, .. } = &mut self.kind else { return };
        match path {
            [] => {
                entries.iter_mut().filter(|(key, _)| key.text == from).for_each(|(key, _)| to.clone_into(&mut key.text))
            }
            [first, rest @ ..] => {
                let below = entries.iter_mut().filter(|(key, _)| key.text == *first);
                below.for_each(|(_, node)| node.rename(rest, from, to));
            }
        }
    }

    /// Where the field at this path stands, or the nearest one above it that is written.
    pub fn place(&self, path: &str) -> (usize, usize) {
        let (mut node, mut rest) = (self, path);
        while !rest.is_empty() {
            let next = match &node.kind {
                Kind::Mapping { entries, .. } => {
                    // The longest: keys of annotations have dots.
                    let begins = |key: &str| {
                        rest.strip_prefix(key).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
                    };
                    let found = entries.iter().filter_map(|(key, node)| Some((node, begins(&key.text)?)));
                    found.min_by_key(|(_, rest)| rest.len())
                }
                Kind::Sequence { items, .. } => rest.strip_prefix('[').and_then(|rest| {
                    let (index, rest) = rest.split_once(']')?;
                    Some((items.get(index.parse::<usize>().ok()?)?, rest))
                }),
                Kind::Scalar(_) => None,
            };
            let Some((child, after)) = next else { break };
            (node, rest) = (child, after.trim_start_matches('.'));
        }
        (node.line, node.column)
    }

    fn size(&self) -> usize {
        match &self.kind {
            Kind::Scalar(_) => 1,
            Kind::Sequence { items, .. } => 1 + items.iter().map(Self::size).sum::<usize>(),
            Kind::Mapping { entries, .. } => 1 + entries.iter().map(|(_, node)| node.size()).sum::<usize>(),
        }
    }
}

/// The first document of a text; `None` when it is empty.
///
/// # Errors
/// When it is not YAML, with the place in the text.
pub fn parse(text: &str) -> Result<Option<Node>, Problem> {
    let mut builder = Builder::of(text);
    for event in Parser::new_from_str_with_options(text, Options::default()) {
        let (event, span) = event.map_err(|error| {
            let (line, column) = (error.marker().line(), error.marker().col() + 1);
            at(line, column, format!("not valid YAML: {}", error.info()))
        })?;
        builder.event(event, &span)?;
    }
    Ok(builder.document.filter(|node| node.value() != Value::Null))
}

fn at(line: usize, column: usize, message: impl Into<String>) -> Problem {
    Problem { line, column, message: message.into(), ..Problem::default() }
}

struct Open {
    node: Node,
    anchor: usize,
    key: Option<Scalar>,
}

struct Builder<'a> {
    lines: Vec<&'a str>,
    /// The first line whose comment is not taken yet, from 0.
    next_comment: usize,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    document: Option<Node>,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn of(text: &'a str) -> Self {
        let lines = text.lines().collect();
        Self { lines, next_comment: 0, open: Vec::new(), anchors: BTreeMap::new(), document: None, nodes: 0 }
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Problem> {
        let (line, column) = (span.start.line(), span.start.col() + 1);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if tag.is_some_and(|tag| tag.suffix() != "str") {
                    return Err(at(line, column, "a tag (!...) is not understood here"));
                }
                // Where nothing is written it comes as the word for it, at the place of what follows.
                let nothing = text == "~" && style == ScalarStyle::Plain && !self.has(span, '~');
                let (text, comments, trailing) = match nothing {
                    true => (String::new(), Vec::new(), None),
                    false => (text.into_owned(), self.comments(line), self.trailing(span, style)),
                };
                let scalar = Scalar { text, style, line, column, comments, trailing };
                if self.expects_key() { self.key(scalar) } else { self.add(Self::leaf(scalar), anchor) }
            }
            Event::SequenceStart(style, anchor, _) => {
                // An indented list starts to the right of the key that it belongs to.
                let key = self.open.last().and_then(|open| open.key.as_ref());
                let dash = self.lines.get(line - 1).map_or(0, |line| line.len() - line.trim_start().len() + 1);
                let indented = key.is_some_and(|key| dash > key.column);
                let kind = Kind::Sequence { items: Vec::new(), flow: style == StructureStyle::Flow, indented };
                self.start(line, column, kind, anchor)
            }
            Event::MappingStart(style, anchor, _) => {
                let kind = Kind::Mapping { entries: Vec::new(), flow: style == StructureStyle::Flow };
                self.start(line, column, kind, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(mut done) => {
                    self.behind_flow(&done.node, span);
                    merge(&mut done.node)?;
                    self.add(done.node, done.anchor)
                }
                None => Ok(()),
            },
            Event::Alias(id) => match self.anchors.get(&id).cloned() {
                Some(found) => {
                    self.nodes += found.size();
                    let comments = self.comments(line);
                    self.add(Node { line, column, comments, ..found }, 0)
                }
                None => Err(at(line, column, "an alias inside of its own anchor")),
            },
            _ => Ok(()),
        }
    }

    /// Whether this letter stands at the start of a span.
    fn has(&self, span: &Span, letter: char) -> bool {
        let line = self.lines.get(span.start.line() - 1);
        line.and_then(|line| line.chars().nth(span.start.col())) == Some(letter)
    }

    /// The comment lines and empty lines before this line that nobody has. Empty ones at the start of the document are the
    /// document's.
    fn comments(&mut self, line: usize) -> Vec<String> {
        let before = self.next_comment..(line - 1).max(self.next_comment);
        let first = before.start == 0;
        self.next_comment = before.end;
        let lines = self.lines.get(before).unwrap_or_default().iter().map(|line| line.trim());
        let lines = lines.filter(|line| line.is_empty() || line.starts_with('#'));
        lines.skip_while(|line| first && line.is_empty()).map(str::to_owned).collect()
    }

    /// The comment behind a scalar. Its own lines have none.
    fn trailing(&mut self, span: &Span, style: ScalarStyle) -> Option<String> {
        let block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
        // The end of a block is the start of what follows.
        let last = if block { span.end.line().saturating_sub(1).max(span.start.line()) } else { span.end.line() };
        self.next_comment = self.next_comment.max(last);
        if block {
            return None;
        }
        let line = self.lines.get(span.end.line() - 1)?;
        let rest: String = line.chars().skip(span.end.col()).collect();
        let rest = rest.trim_start_matches(':');
        let comment = rest.trim();
        (comment.starts_with('#') && rest.starts_with([' ', '\t'])).then(|| comment.to_owned())
    }

    /// The comment behind a list or mapping in flow style is its key's, on whose line it begins.
    fn behind_flow(&mut self, node: &Node, span: &Span) {
        let flow = matches!(node.kind, Kind::Sequence { flow: true, .. } | Kind::Mapping { flow: true, .. });
        if !flow || node.line != span.end.line() {
            return;
        }
        let comment = self.trailing(span, ScalarStyle::Plain);
        if let Some(Open { key: Some(key), .. }) = self.open.last_mut() {
            key.trailing = key.trailing.take().or(comment);
        }
    }

    fn leaf(scalar: Scalar) -> Node {
        let (line, column, comments) = (scalar.line, scalar.column, scalar.comments.clone());
        Node { line, column, comments, kind: Kind::Scalar(scalar) }
    }

    fn expects_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { node: Node { kind: Kind::Mapping { .. }, .. }, key: None, .. }))
    }

    fn key(&mut self, key: Scalar) -> Result<(), Problem> {
        let Some(Open { node: Node { kind: Kind::Mapping { entries, .. }, .. }, key: place, .. }) =
            self.open.last_mut()
        else {
            return Ok(());
        };
        if entries.iter().any(|(known, _)| known.text == key.text) {
            return Err(at(key.line, key.column, format!("key {:?} is given twice", key.text)));
        }
        *place = Some(key);
        Ok(())
    }

    fn start(&mut self, line: usize, column: usize, kind: Kind, anchor: usize) -> Result<(), Problem> {
        if self.expects_key() {
            return Err(at(line, column, "a key must be text"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(at(line, column, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        // Below a key they belong to the first member or item.
        let item = matches!(self.open.last(), Some(Open { node: Node { kind: Kind::Sequence { .. }, .. }, .. }));
        let comments = if item { self.comments(line) } else { Vec::new() };
        self.open.push(Open { node: Node { line, column, comments, kind }, anchor, key: None });
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Problem> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(at(node.line, node.column, format!("more than {MAX_NODES} values in one document")));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(Open { node: Node { kind: Kind::Sequence { items, .. }, .. }, .. }) => items.push(node),
            Some(Open { node: Node { kind: Kind::Mapping { entries, .. }, .. }, key, .. }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => return Err(at(node.line, node.column, "a key must be text")),
            },
            _ => self.document = self.document.take().or(Some(node)),
        }
        Ok(())
    }
}

/// Puts the members of `<<` in its place: Kubernetes and compose know merge keys.
fn merge(node: &mut Node) -> Result<(), Problem> {
    let Kind::Mapping { entries, .. } = &mut node.kind else { return Ok(()) };
    let is_merge = |(key, _): &(Scalar, Node)| key.style == ScalarStyle::Plain && key.text == "<<";
    let Some(index) = entries.iter().position(is_merge) else { return Ok(()) };
    let (key, from) = entries.remove(index);
    let sources = match from.kind {
        Kind::Sequence { items, .. } => items,
        kind => vec![Node { kind, ..from }],
    };
    for source in sources {
        let Kind::Mapping { entries: more, .. } = source.kind else {
            return Err(at(key.line, key.column, "what << merges must be a mapping"));
        };
        for (key, node) in more {
            if !entries.iter().any(|(known, _)| known.text == key.text) {
                entries.push((key, node));
            }
        }
    }
    Ok(())
}
