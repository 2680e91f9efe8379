//! Located nodes to typed objects: a serde `Deserializer` that reports unknown fields at every depth, with a
//! suggestion, and gives each failure the path and place of the value that caused it.

use std::{cell::RefCell, collections::BTreeSet, fmt, sync::Arc};

use serde::{
    Deserialize,
    de::{self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Visitor, value::StrDeserializer},
    forward_to_deserialize_any,
};

use super::{
    problem::{Problem, did_you_mean},
    yaml::{Key, Node, Value, join},
};

/// Values of wrong type that are reported of one object.
const MAX_WRONG: usize = 50;

/// What became of a tree.
pub struct Parsed<T> {
    /// The typed object, when every value has its type. Unknown fields are left out.
    pub value: Option<T>,
    /// Fields that the type does not have.
    pub unknown: Vec<Problem>,
    /// Values that are not of their type.
    pub wrong: Vec<Problem>,
}

/// The typed object, and everything that is wrong with it: a value of wrong type does not hide the next one.
pub fn parse<'de, T: Deserialize<'de>>(file: &Arc<str>, node: &'de Node) -> Parsed<T> {
    let (mut skipped, mut wrong, unknown) = (BTreeSet::new(), Vec::new(), RefCell::new(Vec::<Problem>::new()));
    loop {
        let context = Context { file, unknown: &unknown, skipped: &skipped };
        let result = T::deserialize(At { node, path: String::new(), context });
        let failure = match result {
            Ok(value) => {
                return Parsed { value: wrong.is_empty().then_some(value), unknown: unknown.into_inner(), wrong };
            }
            Err(failure) => failure,
        };
        let path = failure.path().to_owned();
        // What was left out on purpose is not missing.
        let ours = skipped.iter().any(|gone: &String| {
            gone.rsplit_once('.').map_or(("", gone.as_str()), |(parent, name)| (parent, name)).0 == path
                && failure.message.starts_with("missing field")
        });
        if !ours {
            wrong.push(failure.into_problem(file));
        }
        if path.is_empty() || wrong.len() >= MAX_WRONG || !skipped.insert(path) {
            return Parsed { value: None, unknown: unknown.into_inner(), wrong };
        }
    }
}

#[derive(Clone, Copy)]
struct Context<'a> {
    file: &'a Arc<str>,
    unknown: &'a RefCell<Vec<Problem>>,
    /// Paths of values that are known to be wrong and passed over.
    skipped: &'a BTreeSet<String>,
}

struct At<'de, 'a> {
    node: &'de Node,
    path: String,
    context: Context<'a>,
}

/// Why a value was refused; the innermost value that saw it gives the place.
#[derive(Debug)]
pub struct Failure {
    message: String,
    place: Option<(String, usize, usize)>,
}

impl Failure {
    fn path(&self) -> &str {
        self.place.as_ref().map_or("", |(path, ..)| path)
    }

    fn at(mut self, node: &Node, path: &str) -> Self {
        self.place.get_or_insert_with(|| (path.to_owned(), node.line, node.column));
        self
    }

    fn into_problem(self, file: &Arc<str>) -> Problem {
        let (path, line, column) = self.place.unwrap_or_default();
        let quoted = self.message.contains("expected a string")
            && ["integer", "floating", "boolean"].iter().any(|kind| self.message.contains(kind));
        let hint = if quoted { "put the value in quotes".to_owned() } else { String::new() };
        Problem { file: file.to_string(), line, column, path, message: self.message, hint, ..Problem::default() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), place: None }
    }
}

impl<'de> At<'de, '_> {
    fn visit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let (node, path) = (self.node, self.path.clone());
        let result = match &node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Sequence(items) => visitor.visit_seq(Items { items: items.iter().enumerate(), parent: self }),
            Value::Mapping(entries) => visitor.visit_map(Entries { entries: entries.iter(), next: None, parent: self }),
        };
        result.map_err(|failure| failure.at(node, &path))
    }

    fn report_unknown(&self, fields: &'static [&'static str]) {
        let Value::Mapping(entries) = &self.node.value else { return };
        for (key, _) in entries {
            let root = self.path.is_empty() && matches!(key.name.as_str(), "apiVersion" | "kind");
            if root || fields.contains(&key.name.as_str()) {
                continue;
            }
            let problem = Problem {
                file: self.context.file.to_string(),
                line: key.line,
                column: key.column,
                path: join(&self.path, &key.name),
                message: "unknown field".to_owned(),
                hint: suggestion(&key.name, fields),
                ..Problem::default()
            };
            // A second pass sees it again.
            let mut unknown = self.context.unknown.borrow_mut();
            if !unknown.contains(&problem) {
                unknown.push(problem);
            }
        }
    }
}

fn suggestion(name: &str, fields: &[&str]) -> String {
    let near = did_you_mean(name, fields.iter().copied());
    if near.is_empty() && fields.len() <= 12 { format!("known here: {}", fields.join(", ")) } else { near }
}

impl<'de> de::Deserializer<'de> for At<'de, '_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.visit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.node.value == Value::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.report_unknown(fields);
        self.visit(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let Some(text) = self.node.as_str() else {
            return self.visit(Refuse(variants)).map(|never| match never {});
        };
        let known = variants.contains(&text);
        let result = if known {
            visitor.visit_enum(Variant(text.into_deserializer()))
        } else {
            let near = did_you_mean(text, variants.iter().copied());
            let near = if near.is_empty() { near } else { format!("; {near}") };
            Err(de::Error::custom(format!("unknown value \"{text}\", expected one of {}{near}", variants.join(", "))))
        };
        result.map_err(|failure| failure.at(self.node, &self.path))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map identifier
    }
}

/// Refuses every value, saying what was expected.
struct Refuse(&'static [&'static str]);

enum Never {}

impl Visitor<'_> for Refuse {
    type Value = Never;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one of {}", self.0.join(", "))
    }
}

struct Variant<'de>(StrDeserializer<'de, Failure>);

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Failure;
    type Variant = Unit;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Unit), Failure> {
        Ok((seed.deserialize(self.0)?, Unit))
    }
}

/// All enums of the resources are plain words.
struct Unit;

impl<'de> de::VariantAccess<'de> for Unit {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, _: S) -> Result<S::Value, Failure> {
        Err(de::Error::custom("expected a value, found a plain word"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Failure> {
        Err(de::Error::custom("expected a list, found a plain word"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Failure> {
        Err(de::Error::custom("expected fields, found a plain word"))
    }
}

struct Items<'de, 'a> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
    parent: At<'de, 'a>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        let (node, path) = loop {
            let Some((index, node)) = self.items.next() else { return Ok(None) };
            let path = format!("{}[{index}]", self.parent.path);
            if !self.parent.context.skipped.contains(&path) {
                break (node, path);
            }
        };
        let result = seed.deserialize(At { node, path: path.clone(), context: self.parent.context });
        result.map(Some).map_err(|failure| failure.at(node, &path))
    }
}

struct Entries<'de, 'a> {
    entries: std::slice::Iter<'de, (Key, Node)>,
    next: Option<(&'de Key, &'de Node)>,
    parent: At<'de, 'a>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Failure;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        let (key, node) = loop {
            let Some((key, node)) = self.entries.next() else { return Ok(None) };
            if !self.parent.context.skipped.contains(&join(&self.parent.path, &key.name)) {
                break (key, node);
            }
        };
        self.next = Some((key, node));
        let name: StrDeserializer<'_, Failure> = key.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        let (key, node) = self.next.take().ok_or_else(|| de::Error::custom("value asked for before its key"))?;
        let path = join(&self.parent.path, &key.name);
        let result = seed.deserialize(At { node, path: path.clone(), context: self.parent.context });
        result.map_err(|failure| failure.at(node, &path))
    }
}
