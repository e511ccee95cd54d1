//! What of a session lives on a backend: the question, asked when a transaction may have changed it, and the answer.

use std::fmt::Write;

use super::settings::{Settings, literal};
use super::{Backend, CommandError};
use crate::metrics::{Label, Pin};

/// The condition under which the backend has some, where it can be asked.
fn condition(pin: Pin) -> Option<&'static str> {
    Some(match pin {
        // Whatever is in a schema depends on it (manual, 53.18).
        Pin::Temporary => {
            "EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass \
             AND refobjid = pg_catalog.pg_my_temp_schema())"
        }
        Pin::AdvisoryLock => {
            "EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid())"
        }
        Pin::Cursor => "EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)",
        Pin::Listen => "EXISTS (SELECT FROM pg_catalog.pg_listening_channels())",
        Pin::Prepared => "EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)",
        _ => return None,
    })
}

/// A set of reasons to stay on a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pins(u16);

impl Pins {
    pub const NONE: Pins = Pins(0);
    /// All that can be asked for.
    pub const ASKABLE: Pins = Pins(0b1_1111);

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn contains(self, pin: Pin) -> bool {
        self.0 & (1 << pin as u8) != 0
    }

    pub fn insert(&mut self, pin: Pin) {
        self.0 |= 1 << pin as u8;
    }

    pub fn remove(&mut self, pin: Pin) {
        self.0 &= !(1 << pin as u8);
    }

    pub fn without(self, other: Pins) -> Pins {
        Pins(self.0 & !other.0)
    }

    pub fn iter(self) -> impl Iterator<Item = Pin> {
        Pin::ALL.iter().copied().filter(move |pin| self.contains(*pin))
    }
}

impl std::ops::BitOr for Pins {
    type Output = Pins;

    fn bitor(self, other: Pins) -> Pins {
        Pins(self.0 | other.0)
    }
}

impl std::ops::BitAnd for Pins {
    type Output = Pins;

    fn bitand(self, other: Pins) -> Pins {
        Pins(self.0 & other.0)
    }
}

/// What is in doubt about a backend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubt {
    /// Kinds of which there may be some, or none any more.
    pub pins: Pins,
    /// Parameters that may have another value.
    pub parameters: Vec<String>,
    /// Any parameter may have another value.
    pub all_parameters: bool,
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Census {
    /// Those in force beyond what the login gave. A custom parameter that was set and reset keeps its name and no value.
    pub settings: Settings,
    /// Of the kinds asked for.
    pub pins: Pins,
}

impl Doubt {
    pub fn is_empty(&self) -> bool {
        self.pins.is_empty() && self.parameters.is_empty() && !self.all_parameters
    }

    /// One row for each parameter (its value in hexadecimal digits, since our text has to mean the same in every
    /// `client_encoding`) and for each kind of state that is there.
    fn query(&self, in_force: &Settings) -> String {
        let mut parts = Vec::new();
        let hex = |value: &str| {
            format!("pg_catalog.encode(pg_catalog.convert_to({value},pg_catalog.getdatabaseencoding()),'hex')")
        };
        let mut names: Vec<&str> = self.parameters.iter().map(String::as_str).collect();
        if self.all_parameters {
            let value = hex("pg_catalog.current_setting(name)");
            // The present transaction's own are not the session's.
            parts.push(format!(
                "SELECT 'set',name,{value} FROM pg_catalog.pg_settings WHERE source='session' AND name NOT IN \
                 ('transaction_isolation','transaction_read_only','transaction_deferrable')"
            ));
            // Not shown there.
            names.retain(|name| name.contains('.'));
            names.extend(["role", "session_authorization"]);
            names.extend(in_force.iter().map(|(name, _)| name).filter(|name| name.contains('.')));
        }
        names.sort_unstable();
        names.dedup();
        for name in names {
            let name = literal(name);
            let value = hex(&format!("pg_catalog.current_setting({name},true)"));
            parts.push(format!("SELECT 'set',{name},{value}"));
        }
        for pin in self.pins.iter() {
            if let Some(condition) = condition(pin) {
                parts.push(format!("SELECT 'pin','{}',NULL WHERE {condition}", pin.text()));
            }
        }
        let mut sql = String::new();
        for (index, part) in parts.iter().enumerate() {
            let _ = write!(sql, "{}{part}", if index == 0 { "" } else { " UNION ALL " });
        }
        sql
    }
}

impl Backend {
    /// Asks the backend what is there. `startup` are the parameters that the client began with.
    ///
    /// # Errors
    /// The backend is gone or does not answer; a refusal means that the doubt remains.
    pub async fn census(&mut self, doubt: &Doubt) -> Result<Census, CommandError> {
        let rows = self.rows(&doubt.query(&self.in_force)).await?;
        let mut settings = if doubt.all_parameters { Settings::default() } else { (*self.in_force).clone() };
        let mut pins = Pins::NONE;
        for row in rows {
            let [Some(kind), Some(name), value] = &row[..] else { return Err(CommandError::Unexpected) };
            if kind == "pin" {
                pins = pins | Pin::ALL.iter().copied().find(|pin| pin.text() == name).map_or(Pins::NONE, Pins::from);
                continue;
            }
            match value.as_deref().map(text_of_hex) {
                // Who the session is, unless somebody has said so.
                Some(Some(value))
                    if self.is_baseline(name, &value)
                        && !doubt.parameters.contains(name)
                        && self.in_force.get(name).is_none() =>
                {
                    settings.remove(name);
                }
                Some(Some(value)) => settings.set(name, &value),
                Some(None) => pins.insert(Pin::Unknown),
                None => settings.remove(name),
            }
        }
        Ok(Census { settings, pins })
    }
}

impl Backend {
    /// Whether the login gave this value.
    pub fn is_baseline(&self, name: &str, value: &str) -> bool {
        self.baseline.get(name) == Some(value)
    }
}

impl From<Pin> for Pins {
    fn from(pin: Pin) -> Self {
        let mut pins = Pins::NONE;
        pins.insert(pin);
        pins
    }
}

/// None for what is no UTF-8, which we cannot put back.
fn text_of_hex(hex: &str) -> Option<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let bytes = hex.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?));
    String::from_utf8(bytes.collect::<Option<Vec<u8>>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_pins() {
        let mut pins = Pins::from(Pin::Listen);
        pins.insert(Pin::Unknown);
        assert_eq!(pins.iter().collect::<Vec<_>>(), [Pin::Listen, Pin::Unknown]);
        pins.remove(Pin::Listen);
        assert!(!pins.contains(Pin::Listen) && (pins & Pins::ASKABLE).is_empty());
        for (index, pin) in Pin::ALL.iter().copied().enumerate() {
            assert_eq!(pin as usize, index);
            assert_eq!(condition(pin).is_some(), Pins::ASKABLE.contains(pin), "{pin:?}");
        }
    }

    #[test]
    fn values_come_in_hexadecimal_digits() {
        assert_eq!(text_of_hex("61c3a4").as_deref(), Some("aä"));
        assert_eq!((text_of_hex("e4"), text_of_hex("6"), text_of_hex("zz")), (None, None, None));
        assert_eq!(text_of_hex("").as_deref(), Some(""));
    }

    #[test]
    fn only_what_is_in_doubt_is_asked_for() {
        let doubt = Doubt { parameters: vec!["my.var".into()], ..Doubt::default() };
        let sql = doubt.query(&Settings::default());
        assert!(sql.contains("E'my.var'") && !sql.contains("UNION") && !sql.contains("pg_settings"), "{sql}");
        let doubt = Doubt { pins: Pin::Cursor.into(), all_parameters: true, ..Doubt::default() };
        let sql = doubt.query(&Settings::default());
        assert!(sql.contains("pg_settings") && sql.contains("'role'") && sql.contains("pg_cursors"), "{sql}");
    }
}
