//! Session parameters that a client gave at startup, and the SQL that puts them in force on a backend.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Parameters by name; names are compared without case, as PostgreSQL does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// A later value of the same parameter wins.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_ascii_lowercase(), value.to_owned());
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The SQL that turns these settings into `wanted`; none when they are equal.
    ///
    /// `set_config` takes the value as a startup packet would: `search_path` as a list, not as one name.
    pub fn change_to(&self, wanted: &Settings) -> Option<String> {
        let mut sql = String::new();
        for name in self.0.keys().filter(|name| !wanted.0.contains_key(*name)) {
            let _ = write!(sql, "RESET {};", identifier(name));
        }
        let changed: Vec<String> = wanted
            .0
            .iter()
            .filter(|(name, value)| self.0.get(*name) != Some(*value))
            .map(|(name, value)| format!("pg_catalog.set_config({}, {}, false)", literal(name), literal(value)))
            .collect();
        if !changed.is_empty() {
            let _ = write!(sql, "SELECT {}", changed.join(", "));
        }
        (!sql.is_empty()).then_some(sql)
    }
}

/// An escape string, right whatever `standard_conforming_strings` says.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A parameter's name, whose dots separate a custom parameter's class.
fn identifier(name: &str) -> String {
    let parts: Vec<String> = name.split('.').map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::default();
        for (name, value) in pairs {
            settings.set(name, value);
        }
        settings
    }

    #[test]
    fn only_what_differs_is_set() {
        let one = settings(&[("DateStyle", "ISO"), ("my.var", "1")]);
        assert_eq!(one.change_to(&one), None);
        let two = settings(&[("datestyle", "ISO"), ("search_path", "it's, \\x")]);
        assert_eq!(
            one.change_to(&two).unwrap(),
            r#"RESET "my"."var";SELECT pg_catalog.set_config(E'search_path', E'it''s, \\x', false)"#
        );
    }
}
