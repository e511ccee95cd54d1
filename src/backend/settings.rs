//! The session parameters of a client, and the SQL that puts them in force on a backend.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hash::{BuildHasher, Hash, Hasher};

/// Parameters whose new value the instance may refuse although it took it before, because it depends on the catalog or on
/// privileges; and those that set who the session is. They are never sent ahead of a request.
const REVOCABLE: [&str; 7] = [
    "default_table_access_method",
    "default_tablespace",
    "default_text_search_config",
    "role",
    "session_authorization",
    "session_replication_role",
    "temp_tablespaces",
];
/// Time limits that could end our own statement.
const LIMITS: [&str; 2] = ["statement_timeout", "transaction_timeout"];
/// Parameters that make no difference to what a statement means.
const MEANINGLESS: [&str; 13] = [
    "application_name",
    "client_encoding",
    "client_min_messages",
    "deadlock_timeout",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "lock_timeout",
    "log_min_messages",
    "maintenance_work_mem",
    "statement_timeout",
    "work_mem",
];

/// Parameters by name; names are compared without case, as PostgreSQL does. Values are as `current_setting` gives them, or
/// as a StartupMessage carries them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Settings(BTreeMap<String, String>);

/// What has to be run so that other settings are in force.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    pub sql: String,
    /// It may fail for reasons of its own: whether it did has to be known before anything else is sent.
    pub may_fail: bool,
}

impl Settings {
    /// A later value of the same parameter wins.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_ascii_lowercase(), value.to_owned());
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Takes out custom parameters without a value that `is_reset` says nobody has set to that.
    pub fn forget_empty_customs(&mut self, is_reset: impl Fn(&str) -> bool) {
        self.0.retain(|name, value| !(value.is_empty() && name.contains('.') && is_reset(name)));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// A number for what these settings can make of a statement's text when it is parsed: two clients with the same one can
    /// share what a backend has prepared. 0 when nothing of the kind is set.
    pub fn parse_context(&self) -> u64 {
        let telling = |name: &str| MEANINGLESS.binary_search(&name).is_err();
        let mut told = self.iter().filter(|(name, _)| telling(name)).peekable();
        if told.peek().is_none() {
            return 0;
        }
        // Seeds differ from process to process only: names on a backend live no longer.
        let mut hasher = ahash::RandomState::with_seeds(1, 2, 3, 4).build_hasher();
        told.for_each(|pair| pair.hash(&mut hasher));
        hasher.finish() >> 1
    }

    /// What turns these settings into `wanted`; none when they are equal.
    ///
    /// `set_config` takes a value as a StartupMessage does: `search_path` as a list, not as one name. Whoever the session
    /// is goes last, and comes off first: the other parameters are set with the privileges of the login.
    pub fn change_to(&self, wanted: &Settings) -> Option<Change> {
        let identity = |name: &str| name == "role" || name == "session_authorization";
        let gone = || self.0.keys().filter(|name| !wanted.0.contains_key(*name));
        let changed = || wanted.0.iter().filter(|(name, value)| self.0.get(*name) != Some(*value));
        if gone().next().is_none() && changed().next().is_none() {
            return None;
        }
        let touched = || gone().chain(changed().map(|(name, _)| name));
        let may_fail = touched().any(|name| REVOCABLE.binary_search(&name.as_str()).is_ok())
            || LIMITS.iter().any(|limit| self.0.contains_key(*limit))
            || self.0.keys().chain(wanted.0.keys()).any(|name| identity(name));
        let mut sql = String::new();
        if self.0.keys().any(|name| identity(name)) {
            sql.push_str("RESET SESSION AUTHORIZATION;RESET ROLE;");
        }
        for name in gone().filter(|name| !identity(name)) {
            let _ = write!(sql, "RESET {};", identifier(name));
        }
        set(&mut sql, changed().filter(|(name, _)| !identity(name)));
        // session_authorization takes the role off: it has to come first.
        for name in ["session_authorization", "role"] {
            set(&mut sql, wanted.0.get_key_value(name).into_iter());
        }
        Some(Change { sql, may_fail })
    }
}

fn set<'a>(sql: &mut String, values: impl Iterator<Item = (&'a String, &'a String)>) {
    for (index, (name, value)) in values.enumerate() {
        let before = if index == 0 { "SELECT " } else { "," };
        let _ = write!(sql, "{before}{}", set_config(name, value, false));
        // Ended below, once there was any.
    }
    if !sql.is_empty() && !sql.ends_with(';') {
        sql.push(';');
    }
}

/// The call that sets a parameter, for the session or for the transaction (`local`).
pub fn set_config(name: &str, value: &str, local: bool) -> String {
    format!("pg_catalog.set_config({},{},{local})", literal(name), literal(value))
}

/// The statement that does the same; none for a value that it cannot spell. A list of names is given name by name: a string
/// would be one name with commas in it (GUC_LIST_QUOTE in PostgreSQL).
pub fn set_command(name: &str, value: &str, local: bool) -> Option<String> {
    const NAMES: [&str; 4] =
        ["local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"];
    if !value.is_ascii() {
        return None;
    }
    let value = match NAMES.contains(&name) {
        true => names_of(value)?.join(", "),
        false => literal(value),
    };
    Some(format!("SET {}{} TO {value}", if local { "LOCAL " } else { "" }, identifier(name)))
}

/// The names of a list, each in quotes; none for an empty list or one that is not well formed.
fn names_of(list: &str) -> Option<Vec<String>> {
    let (mut names, mut rest) = (Vec::new(), list.trim());
    loop {
        let (name, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (name, after) = quoted.split_once('"')?;
                (name.to_owned(), after.trim_start())
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim_end().to_ascii_lowercase(), &rest[end..])
            }
        };
        if name.is_empty() || name.contains('"') {
            return None;
        }
        names.push(format!("\"{name}\""));
        match after.strip_prefix(',') {
            Some(next) => rest = next.trim_start(),
            None => return after.is_empty().then_some(names),
        }
    }
}

/// A string right whatever `standard_conforming_strings` and `client_encoding` say. Ours are bytes of the database's
/// encoding, which is what `current_setting` and StartupMessages have.
pub(super) fn literal(text: &str) -> String {
    if text.is_ascii() {
        return format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
    }
    let mut hex = String::with_capacity(2 * text.len());
    for byte in text.bytes() {
        let _ = write!(hex, "{byte:02x}");
    }
    format!("pg_catalog.convert_from(E'\\\\x{hex}',pg_catalog.getdatabaseencoding())")
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
        let sql = r#"RESET "my"."var";SELECT pg_catalog.set_config(E'search_path',E'it''s, \\x',false);"#;
        assert_eq!(one.change_to(&two), Some(Change { sql: sql.into(), may_fail: false }));
        let sql = r"SELECT pg_catalog.set_config(E'a',pg_catalog.convert_from(E'\\xc3a4',pg_catalog.getdatabaseencoding()),false);";
        assert_eq!(Settings::default().change_to(&settings(&[("a", "ä")])).unwrap().sql, sql);
    }

    #[test]
    fn who_the_session_is_comes_off_first_and_goes_last() {
        let one = settings(&[("role", "a"), ("work_mem", "1MB")]);
        let two = settings(&[("role", "b"), ("session_authorization", "c")]);
        let sql = "RESET SESSION AUTHORIZATION;RESET ROLE;RESET \"work_mem\";\
                   SELECT pg_catalog.set_config(E'session_authorization',E'c',false);\
                   SELECT pg_catalog.set_config(E'role',E'b',false);";
        assert_eq!(one.change_to(&two), Some(Change { sql: sql.into(), may_fail: true }));
        let limited = settings(&[("statement_timeout", "1ms")]);
        assert!(limited.change_to(&Settings::default()).unwrap().may_fail);
        assert!(!Settings::default().change_to(&limited).unwrap().may_fail);
    }

    #[test]
    fn statements_are_shared_where_they_mean_the_same() {
        let named = settings(&[("application_name", "a"), ("work_mem", "1MB")]);
        assert_eq!(named.parse_context(), 0);
        let (one, two) = (settings(&[("search_path", "a")]), settings(&[("search_path", "b")]));
        assert_ne!(one.parse_context(), two.parse_context());
        assert_eq!(one.parse_context(), settings(&[("search_path", "a"), ("work_mem", "9MB")]).parse_context());
    }

    #[test]
    fn lists_of_names_are_set_name_by_name() {
        let spelt = |value| set_command("search_path", value, true);
        let words = r#"SET LOCAL "search_path" TO "$user", "public", "With, Comma""#;
        assert_eq!(spelt(r#""$user", PUBLIC , "With, Comma""#).as_deref(), Some(words));
        for odd in ["", "a,,b", "\"a", "\"a\"b", "\"a\"\"b\"", "ä"] {
            assert_eq!(spelt(odd), None, "{odd}");
        }
        assert_eq!(set_command("my.var", "a, 'b'", false).as_deref(), Some(r#"SET "my"."var" TO E'a, ''b'''"#));
    }

    #[test]
    fn lists_are_sorted_for_the_search() {
        assert!(REVOCABLE.is_sorted() && MEANINGLESS.is_sorted());
    }
}
