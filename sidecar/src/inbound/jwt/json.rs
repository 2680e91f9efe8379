//! JSON of tokens, strictly: an object whose members are flattened to `outer.inner`, each name once. Which of two
//! members of one name counts differs between parsers, so that a token with two is refused.

use std::{
    collections::HashSet,
    fmt::{self, Write as _},
};

use serde::de::{self, DeserializeSeed, Deserializer as _, Error as _, MapAccess, SeqAccess, Visitor};

use super::flaw::Flaw;

/// Objects and lists in each other.
const MAX_DEPTH: usize = 16;
/// From here on numbers of JSON are no longer exact in what most libraries make of them: two ids could become one.
const EXACT: f64 = 9_007_199_254_740_992.0;
/// What makes the error of a name that is there twice.
/// Bytes of all flattened names.
const MAX_NAMES: usize = 64 << 10;
const TWICE: &str = "a name is there twice";

/// A JSON object.
#[derive(Debug, Default)]
pub struct Object {
    /// Every member, objects and lists too.
    names: HashSet<String>,
    /// Every value.
    pub leaves: Vec<Leaf>,
    /// Bytes of all names above: a long one that is repeated for each element of a list must not grow a small token into
    /// megabytes before its signature is looked at.
    bytes: usize,
}

/// A value and where it is.
#[derive(Debug)]
pub struct Leaf {
    /// Flattened.
    pub name: String,
    /// What it is.
    pub value: Scalar,
    /// It is an element of a list.
    pub listed: bool,
}

/// A value.
#[derive(Debug, PartialEq)]
pub enum Scalar {
    Text(String),
    Number(f64, String),
    Bool(bool),
}

impl Scalar {
    /// As rules and headers see it.
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Number(_, text) => text,
            Self::Bool(value) => value.to_string(),
        }
    }
}

impl Object {
    /// Reads an object.
    ///
    /// # Errors
    /// [`Flaw::Duplicate`], or [`Flaw::Malformed`] for everything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, Flaw> {
        let mut object = Self::default();
        let mut path = String::new();
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let root = Members { into: &mut object, path: &mut path, depth: 0 };
        let read = reader.deserialize_map(root).and_then(|()| reader.end());
        match read {
            Ok(()) => Ok(object),
            // The only error that is ours to tell apart; serde carries nothing but text.
            Err(error) if error.to_string().starts_with(TWICE) => Err(Flaw::Duplicate),
            Err(_) => Err(Flaw::Malformed),
        }
    }

    /// Whether there is such a member, whatever it is.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The one value of a member that is no list.
    fn one(&self, name: &str) -> Option<&Scalar> {
        self.leaves.iter().find(|leaf| leaf.name == name && !leaf.listed).map(|leaf| &leaf.value)
    }

    /// A text that must be one if it is there.
    ///
    /// # Errors
    /// When it is something else.
    pub fn text(&self, name: &str) -> Result<Option<&str>, Flaw> {
        match self.one(name) {
            Some(Scalar::Text(text)) => Ok(Some(text)),
            None if !self.has(name) => Ok(None),
            _ => Err(Flaw::Malformed),
        }
    }

    /// A number that must be one if it is there.
    ///
    /// # Errors
    /// When it is something else.
    pub fn number(&self, name: &str) -> Result<Option<f64>, Flaw> {
        match self.one(name) {
            Some(Scalar::Number(number, _)) => Ok(Some(*number)),
            None if !self.has(name) => Ok(None),
            _ => Err(Flaw::Malformed),
        }
    }

    /// A text or a list of texts.
    ///
    /// # Errors
    /// When it, or a part of it, is something else.
    pub fn texts(&self, name: &str) -> Result<Vec<&str>, Flaw> {
        let own = self.leaves.iter().filter(|leaf| leaf.name == name);
        let texts = own.map(|leaf| match &leaf.value {
            Scalar::Text(text) => Ok(text.as_str()),
            _ => Err(Flaw::Malformed),
        });
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let nested = self.names.iter().any(|other| other.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
        if nested { Err(Flaw::Malformed) } else { Ok(texts) }
    }
}

/// The members of an object, below `path`.
struct Members<'a> {
    into: &'a mut Object,
    path: &'a mut String,
    depth: usize,
}

/// One value at `path`.
struct Value<'a> {
    into: &'a mut Object,
    path: &'a mut String,
    depth: usize,
    listed: bool,
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.depth > MAX_DEPTH {
            return Err(A::Error::custom("too deep"));
        }
        let outer = self.path.len();
        while let Some(name) = map.next_key::<String>()? {
            if self.depth > 0 {
                self.path.push('.');
            }
            self.path.push_str(&name);
            self.into.bytes += self.path.len();
            if self.into.bytes > MAX_NAMES {
                return Err(A::Error::custom("too many names"));
            }
            if !self.into.names.insert(self.path.clone()) {
                return Err(A::Error::custom(TWICE));
            }
            map.next_value_seed(Value {
                into: &mut *self.into,
                path: &mut *self.path,
                depth: self.depth + 1,
                listed: false,
            })?;
            self.path.truncate(outer);
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Value<'_> {
    fn leaf<E: de::Error>(self, value: Scalar) -> Result<(), E> {
        self.into.bytes += self.path.len();
        if self.into.bytes > MAX_NAMES {
            return Err(E::custom("too many names"));
        }
        self.into.leaves.push(Leaf { name: self.path.clone(), value, listed: self.listed });
        Ok(())
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.leaf(Scalar::Bool(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        // Exact as text, whatever its size; as a number only times are read, which are far smaller.
        let number = u32::try_from(value).map_or_else(|_| whole(value), f64::from);
        self.leaf(Scalar::Number(number, value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        let number = -whole(value.unsigned_abs());
        self.leaf(Scalar::Number(number, value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        if value.abs() >= EXACT {
            return Err(E::custom("a number that is not exact"));
        }
        let mut text = String::new();
        write!(text, "{value}").map_err(E::custom)?;
        self.leaf(Scalar::Number(value, text))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.leaf(Scalar::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<(), E> {
        self.leaf(Scalar::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if self.depth > MAX_DEPTH {
            return Err(A::Error::custom("too deep"));
        }
        while list
            .next_element_seed(Value {
                into: &mut *self.into,
                path: &mut *self.path,
                depth: self.depth + 1,
                listed: true,
            })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        if !self.listed {
            return Members { into: self.into, path: self.path, depth: self.depth }.visit_map(map);
        }
        // No rule can name the members of an object in a list: they are read for their form alone.
        let (mut apart, mut path) = (Object::default(), String::new());
        Members { into: &mut apart, path: &mut path, depth: self.depth }.visit_map(map)
    }
}

/// A whole number as one with a fraction; what is beyond its precision is rounded.
fn whole(value: u64) -> f64 {
    let (high, low) = (value >> 32, value & u64::from(u32::MAX));
    let part = |part: u64| f64::from(u32::try_from(part).unwrap_or(u32::MAX));
    part(high) * 4_294_967_296.0 + part(low)
}
