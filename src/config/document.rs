//! One TOML file as a tree of values that know where they come from, with the line of every key.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use config::{Map, Value, ValueKind};
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::problem::Problem;

/// Origin of values that were given in the environment; the name is the `config` crate's.
pub(super) const ENVIRONMENT: &str = "the environment";
/// Origin of values that were given with `--set`.
pub const OVERRIDE: &str = "--set";
/// What every environment variable of ours begins with.
pub(super) const PREFIX: &str = "PGTENANT__";

/// A file that was read, or one with the further layers merged over it.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub path: PathBuf,
    /// Always a table.
    pub values: Value,
    /// Line (from 1) of each key, by its dotted path.
    lines: HashMap<String, usize>,
}

impl Document {
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let remedy = match error.kind() {
                std::io::ErrorKind::NotFound => "not found; write it, or name another file",
                _ => "cannot be read",
            };
            Problem::of_file(path, format!("{remedy} ({error})"))
        })?;
        Self::parse(path, &Zeroizing::new(text))
    }

    pub fn parse(path: &Path, text: &str) -> Result<Self, Problem> {
        let table = DeTable::parse(text).map_err(|error| syntax_problem(path, text, &error))?;
        let mut planter =
            Planter { origin: path.display().to_string(), line_starts: line_starts(text), lines: HashMap::new() };
        let values = planter.table(table.get_ref(), "");
        Ok(Document { path: path.to_owned(), values, lines: planter.lines })
    }

    /// The folder that relative paths in this file begin at.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// A problem with the key at this dotted path, which says where the value was written.
    pub fn problem(&self, key: &str, message: String) -> Problem {
        let (place, line) = match self.origin(key) {
            Some(ENVIRONMENT) => (variable(key), None),
            Some(OVERRIDE) => (OVERRIDE.to_owned(), None),
            _ => (self.path.display().to_string(), self.lines.get(key).copied()),
        };
        Problem { place, key: key.to_owned(), line, message }
    }

    fn origin(&self, key: &str) -> Option<&str> {
        let mut value = &self.values;
        for part in split(key) {
            let ValueKind::Table(table) = &value.kind else {
                break;
            };
            value = table.get(&part)?;
        }
        value.origin()
    }
}

/// The environment variable for a dotted path.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// Appends a key to a dotted path, quoted where TOML needs it.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// Splits what [`join`] made.
fn split(path: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for c in path.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => {
                escaped = true;
                continue;
            }
            '"' => {
                quoted = !quoted;
                continue;
            }
            '.' if !quoted => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("begins with one part").push(c);
    }
    parts
}

/// Turns parsed TOML into values.
struct Planter {
    origin: String,
    line_starts: Vec<usize>,
    lines: HashMap<String, usize>,
}

impl Planter {
    fn table(&mut self, table: &DeTable<'_>, path: &str) -> Value {
        let mut values = Map::new();
        for (key, value) in table {
            let path = join(path, key.get_ref());
            let line = self.line_starts.partition_point(|start| *start <= key.span().start);
            self.lines.insert(path.clone(), line);
            values.insert(key.get_ref().to_string(), self.value(value.get_ref(), &path));
        }
        Value::new(Some(&self.origin), ValueKind::Table(values))
    }

    fn value(&mut self, value: &DeValue<'_>, path: &str) -> Value {
        let kind = match value {
            DeValue::Table(table) => return self.table(table, path),
            DeValue::Array(array) => {
                ValueKind::Array(array.iter().map(|item| self.value(item.get_ref(), path)).collect())
            }
            DeValue::String(text) => ValueKind::String(text.to_string()),
            DeValue::Boolean(flag) => ValueKind::Boolean(*flag),
            DeValue::Datetime(moment) => ValueKind::String(moment.to_string()),
            // TOML's integers have 64 bits; a longer one is refused as what it is not: a float.
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).map_or(ValueKind::Float(f64::NAN), ValueKind::I64)
            }
            DeValue::Float(number) => ValueKind::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        };
        Value::new(Some(&self.origin), kind)
    }
}

fn line_starts(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect()
}

/// The parser's message with line, column and a caret below the place.
///
/// A line that may hold a password or verifier is not shown: the message may end up in a log.
fn syntax_problem(path: &Path, text: &str, error: &toml::de::Error) -> Problem {
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let starts = line_starts(text);
    let line = starts.partition_point(|start| *start <= at);
    let shown = text.lines().nth(line - 1).unwrap_or("");
    let before = text.get(starts[line - 1]..at).unwrap_or("").chars().count();
    let mut message = format!("not valid TOML at line {line}, column {}: {}", before + 1, error.message().trim());
    let lower = shown.to_lowercase();
    if !["password", "verifier", "scram", "md5"].iter().any(|word| lower.contains(word)) {
        let margin = " ".repeat(line.to_string().len());
        message.push_str(&format!("\n {line} | {shown}\n {margin} | {}^", " ".repeat(before)));
    }
    Problem::of_file(path, message)
}
