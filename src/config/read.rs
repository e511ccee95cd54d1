//! Reads a tree of values into a type; what does not fit is reported with its place, and all of it in one pass.

use std::fmt;

use config::{Value, ValueKind};
use serde::de::value::SeqDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, Expected, IntoDeserializer, MapAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use super::document::{Document, ENVIRONMENT, OVERRIDE, join};
use super::problem::Gathered;
use super::unknown;

/// A value that does not fit its type.
#[derive(Debug)]
pub(super) struct Misfit {
    /// Keys from the innermost outwards.
    path: Vec<String>,
    pub reason: Reason,
}

#[derive(Debug)]
pub(super) enum Reason {
    UnknownKey { known: &'static [&'static str] },
    Other(String),
}

impl Misfit {
    fn other(message: String) -> Self {
        Misfit { path: Vec::new(), reason: Reason::Other(message) }
    }

    fn under(mut self, key: &str) -> Self {
        self.path.push(key.to_owned());
        self
    }

    /// Keys from the outermost inwards.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.path.iter().rev().map(String::as_str)
    }
}

/// Reads the document. Whatever does not fit is reported and left out.
pub(super) fn read<T: DeserializeOwned + Default>(document: &Document, gathered: &mut Gathered<'_>) -> T {
    let (value, misfits) = fit(document.values.clone());
    for misfit in misfits {
        let (table, path) =
            misfit.keys().fold((String::new(), String::new()), |(_, path), key| (path.clone(), join(&path, key)));
        let message = match (&misfit.reason, misfit.path.first()) {
            (Reason::UnknownKey { known }, Some(key)) => unknown::key(&table, key, known),
            (Reason::UnknownKey { .. }, None) => "unknown key".to_owned(),
            (Reason::Other(message), _) => message.clone(),
        };
        gathered.add(document.problem(&path, message));
    }
    value
}

/// Takes one misfit after the other out of the tree until the rest fits.
pub(super) fn fit<T: DeserializeOwned + Default>(mut tree: Value) -> (T, Vec<Misfit>) {
    let mut misfits = Vec::new();
    loop {
        match T::deserialize(Node(&tree)) {
            Ok(value) => return (value, misfits),
            Err(misfit) => {
                let removed = remove(&mut tree, misfit.keys());
                misfits.push(misfit);
                if !removed {
                    return (T::default(), misfits);
                }
            }
        }
    }
}

fn remove<'k>(tree: &mut Value, mut keys: impl DoubleEndedIterator<Item = &'k str>) -> bool {
    let Some(last) = keys.next_back() else {
        return false;
    };
    let mut value = tree;
    for key in keys {
        let ValueKind::Table(table) = &mut value.kind else {
            return false;
        };
        let Some(next) = table.get_mut(key) else {
            return false;
        };
        value = next;
    }
    match &mut value.kind {
        ValueKind::Table(table) => table.remove(last).is_some(),
        _ => false,
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::UnknownKey { .. } => f.write_str("unknown key"),
            Reason::Other(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Misfit {}

impl Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Misfit::other(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Misfit::other(format!("expected {}, found {}", Wanted(expected), Found(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Misfit::other(format!("{} is out of range; expected {}", Found(found), Wanted(expected)))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Misfit::other(unknown::value(variant, known))
    }

    // The key itself is put on the path where it was read, see `Entries`.
    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Misfit { path: Vec::new(), reason: Reason::UnknownKey { known } }
    }
}

/// What serde expected, in words for somebody who writes TOML.
struct Wanted<'a>(&'a dyn Expected);

impl fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        match text.as_str() {
            "a boolean" => f.write_str("true or false"),
            "a sequence" => f.write_str("a list"),
            "a map" => f.write_str("a table"),
            "u16" | "u32" | "u64" | "usize" => f.write_str("a whole number, zero or more"),
            text if text.starts_with("struct ") => f.write_str("a table"),
            text => f.write_str(text),
        }
    }
}

/// What was found instead. A string's text is not repeated: a password may stand where it does not belong.
struct Found<'a>(Unexpected<'a>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Str(_) => f.write_str("a string"),
            Unexpected::Seq => f.write_str("a list"),
            Unexpected::Map => f.write_str("a table"),
            Unexpected::Bool(flag) => write!(f, "{flag}"),
            Unexpected::Signed(number) => write!(f, "{number}"),
            Unexpected::Float(number) => write!(f, "{number}"),
            other => other.fmt(f),
        }
    }
}

/// One value. The environment and `--set` know only text: there numbers, flags and lists are read from it.
#[derive(Clone, Copy)]
struct Node<'de>(&'de Value);

impl<'de> Node<'de> {
    /// The text of a value that comes from a place without types.
    fn untyped(&self) -> Option<&'de str> {
        match (&self.0.kind, self.0.origin()) {
            (ValueKind::String(text), Some(ENVIRONMENT | OVERRIDE)) => Some(text),
            _ => None,
        }
    }

    fn number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.untyped().map(str::parse::<i64>) {
            Some(Ok(number)) => visitor.visit_i64(number),
            _ => self.deserialize_any(visitor),
        }
    }
}

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.0.kind {
            ValueKind::Nil => visitor.visit_unit(),
            ValueKind::Boolean(flag) => visitor.visit_bool(*flag),
            ValueKind::I64(number) => visitor.visit_i64(*number),
            ValueKind::U64(number) => visitor.visit_u64(*number),
            ValueKind::I128(number) => visitor.visit_i128(*number),
            ValueKind::U128(number) => visitor.visit_u128(*number),
            ValueKind::Float(number) => visitor.visit_f64(*number),
            ValueKind::String(text) => visitor.visit_borrowed_str(text),
            ValueKind::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.iter().map(Node))),
            ValueKind::Table(table) => visitor.visit_map(Entries { rest: sorted(table).into_iter(), current: None }),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.untyped().map(str::parse::<bool>) {
            Some(Ok(flag)) => visitor.visit_bool(flag),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.number(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.number(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.number(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.untyped() {
            Some(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                visitor.visit_seq(SeqDeserializer::new(items))
            }
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match &self.0.kind {
            ValueKind::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            ValueKind::Boolean(flag) => Err(Misfit::unknown_variant(&flag.to_string(), variants)),
            _ => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct map
        struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Misfit> for Node<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// By name, so that problems come in the same order every time.
fn sorted(table: &config::Map<String, Value>) -> Vec<(&str, &Value)> {
    let mut entries: Vec<_> = table.iter().map(|(key, value)| (key.as_str(), value)).collect();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

/// The entries of a table; puts each key on the path of what goes wrong below it.
struct Entries<'de> {
    rest: std::vec::IntoIter<(&'de str, &'de Value)>,
    current: Option<(&'de str, &'de Value)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        self.current = self.rest.next();
        let Some((key, _)) = self.current else {
            return Ok(None);
        };
        seed.deserialize(key.into_deserializer()).map(Some).map_err(|misfit: Misfit| misfit.under(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let (key, value) = self.current.take().ok_or_else(|| Misfit::other("a value without a key".to_owned()))?;
        seed.deserialize(Node(value)).map_err(|misfit| misfit.under(key))
    }
}
