//! SHOW CONFIG and SET: PgBouncer's names where they mean the same, and every key of `proxy.toml`.

use std::sync::LazyLock;

use super::super::View;
use super::super::table::{Row, row};
use crate::config::Config;
use crate::wire::{PgError, sqlstate};

/// The reference of all keys; tests hold it against the code's keys and defaults.
const REFERENCE: &str = include_str!("../../../../proxy.toml");

/// PostgreSQL's codes for a parameter that cannot be changed now, and for one that there is not.
const CANT_CHANGE: &str = "55P02";
const UNDEFINED_OBJECT: &str = "42704";

/// Keys that take effect only after a restart, as `reload` warns of.
const FIXED: [&str; 11] = [
    "listen.",
    "http.address",
    "tracing.endpoint",
    "log.format",
    "log.filter",
    "limits.max_clients",
    "auth.free_attempts",
    "auth.backoff",
    "auth.backoff_max",
    "auth.verifier_ttl",
    "auth.mock_iterations",
];

/// Keys that name files: they are read anew and watched with `proxy.toml` itself.
const FILES: [&str; 4] = ["tenants_dir", "tls.certificates", "http.token", "http.client_ca"];

struct Known {
    name: &'static str,
    read: fn(&Config) -> String,
    default: &'static str,
    /// Ours, where SET may change it; and what stands behind PgBouncer's value there.
    key: Option<(&'static str, &'static str)>,
}

const SECONDS: &str = "s";
const PLAIN: &str = "";

/// Values as PgBouncer writes them: times in seconds.
#[rustfmt::skip]
const PGBOUNCER: &[Known] = &[
    Known { name: "default_pool_size", default: "20", key: Some(("pool.max_backends_per_role", PLAIN)),
            read: |config| config.pool.defaults.max_backends_per_role.to_string() },
    Known { name: "listen_backlog", default: "1024", key: None, read: |config| config.listen.backlog.to_string() },
    Known { name: "max_client_conn", default: "10000", key: None, read: |config| config.limits.max_clients.to_string() },
    Known { name: "max_db_connections", default: "20", key: Some(("pool.max_backends", PLAIN)),
            read: |config| config.pool.defaults.max_backends.to_string() },
    Known { name: "max_packet_size", default: "1073741823", key: Some(("limits.max_message", PLAIN)),
            read: |config| config.limits.max_message.to_string() },
    Known { name: "max_prepared_statements", default: "200", key: Some(("limits.max_prepared_per_backend", PLAIN)),
            read: |config| config.limits.max_prepared_per_backend.to_string() },
    // Without a bound of its own, as PgBouncer's 0.
    Known { name: "max_user_connections", default: "0", key: None, read: |_| "0".to_owned() },
    Known { name: "min_pool_size", default: "0", key: Some(("pool.min_backends", PLAIN)),
            read: |config| config.pool.defaults.min_backends.to_string() },
    Known { name: "pool_mode", default: "transaction", key: Some(("pool.mode", PLAIN)),
            read: |config| config.pool.defaults.mode.text().to_owned() },
    Known { name: "query_wait_timeout", default: "30", key: Some(("pool.queue_timeout", SECONDS)),
            read: |config| config.pool.defaults.queue_timeout.as_secs().to_string() },
    Known { name: "reserve_pool_size", default: "0", key: None, read: |_| "0".to_owned() },
    Known { name: "server_connect_timeout", default: "5", key: Some(("pool.connect_timeout", SECONDS)),
            read: |config| config.pool.connect_timeout.as_secs().to_string() },
    Known { name: "server_idle_timeout", default: "600", key: Some(("pool.idle_timeout", SECONDS)),
            read: |config| config.pool.defaults.idle_timeout.as_secs().to_string() },
    Known { name: "server_lifetime", default: "3600", key: Some(("pool.lifetime", SECONDS)),
            read: |config| config.pool.defaults.lifetime.as_secs().to_string() },
    Known { name: "stats_period", default: "60", key: None, read: |_| "60".to_owned() },
];

/// The key of `proxy.toml` that SET means, and the value as it would stand there.
pub(in super::super) fn written(name: &str, value: Option<String>) -> Result<(String, Option<String>), PgError> {
    let fixed = || {
        let text = format!("parameter \"{name}\" cannot be changed without restarting the proxy");
        let hint = "Change proxy.toml and restart. SHOW CONFIG says which can be changed at run time.";
        PgError::error(CANT_CHANGE, text).with_hint(hint)
    };
    if let Some(known) = PGBOUNCER.iter().find(|known| known.name == name) {
        let (key, unit) = known.key.ok_or_else(fixed)?;
        // A time with its unit is taken as well.
        let as_written = |value: String| match value.bytes().all(|byte| byte.is_ascii_digit()) {
            true => format!("{value}{unit}"),
            false => value,
        };
        return Ok((key.to_owned(), value.map(as_written)));
    }
    match KEYS.iter().any(|(key, _)| key == name) {
        true if FILES.contains(&name) => {
            let text = format!("parameter \"{name}\" names files, and is set in proxy.toml only");
            Err(PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
                .with_hint("Changes there are taken over at once."))
        }
        true if is_fixed(name) => Err(fixed()),
        true => Ok((name.to_owned(), value)),
        false => {
            let text = format!("unrecognized configuration parameter \"{name}\"");
            let hint = "SHOW CONFIG has the names. What belongs to one tenant, instance or role stands in its file.";
            Err(PgError::error(UNDEFINED_OBJECT, text).with_hint(hint))
        }
    }
}

fn is_fixed(key: &str) -> bool {
    FIXED.iter().any(|it| key == *it || it.ends_with('.') && key.starts_with(it))
}

pub(super) fn config(view: View<'_>) -> Vec<Row> {
    let config = view.config.load();
    let yes_no = |changeable: bool| if changeable { "yes" } else { "no" };
    let known = PGBOUNCER.iter().map(|it| row![it.name, (it.read)(&config), it.default, yes_no(it.key.is_some())]);
    let ours = KEYS.iter().map(|(key, default)| {
        let value = config.written.get(key).or(default.as_ref()).cloned();
        row![key.as_str(), value.unwrap_or_default(), default.clone(), yes_no(!is_fixed(key))]
    });
    known.chain(ours).collect()
}

/// Each key of the reference with its default, if it has a fixed one.
static KEYS: LazyLock<Vec<(String, Option<String>)>> = LazyLock::new(|| {
    let mut table = String::new();
    let mut keys = Vec::new();
    for line in REFERENCE.lines() {
        let shown = line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
        if let Some(name) = line.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            table = format!("{name}.");
        } else if line.starts_with("#[") {
            // From here on tables have names of the reader's choice.
            break;
        } else if let Some((key, value)) = shown.and_then(|rest| rest.split_once(" = "))
            && table != "routing.databases."
        {
            let default = (!value.ends_with("# example")).then(|| plain(value));
            keys.push((format!("{table}{key}"), default));
        }
    }
    keys
});

/// A TOML value as it would stand in the environment.
fn plain(value: &str) -> String {
    value.trim().trim_start_matches('[').trim_end_matches(']').replace('"', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_a_key_of_ours_with_its_unit() {
        let value = |text: &str| Some(text.to_owned());
        assert_eq!(written("query_wait_timeout", value("5")), Ok(("pool.queue_timeout".to_owned(), value("5s"))));
        assert_eq!(written("query_wait_timeout", value("5ms")), Ok(("pool.queue_timeout".to_owned(), value("5ms"))));
        assert_eq!(written("default_pool_size", None), Ok(("pool.max_backends_per_role".to_owned(), None)));
        assert_eq!(written("log.sql", value("true")), Ok(("log.sql".to_owned(), value("true"))));
        let code = |name| written(name, None).unwrap_err().code;
        assert_eq!([code("max_client_conn"), code("listen.workers"), code("nonsense")], ["55P02", "55P02", "42704"]);
        assert_eq!(code("http.token"), "0A000");
        assert_eq!(code("admin.roles.ops.access"), "42704");
        for known in PGBOUNCER {
            let ours = |key: &str| KEYS.iter().any(|(it, _)| it == key) && !is_fixed(key);
            assert!(known.key.is_none_or(|(key, _)| ours(key)), "{}", known.name);
        }
    }

    #[test]
    fn every_key_of_the_reference_is_shown_with_its_default() {
        let default = |key: &str| KEYS.iter().find(|(it, _)| it == key).unwrap_or_else(|| panic!("{key}")).1.clone();
        assert_eq!(default("listen.addresses").as_deref(), Some("127.0.0.1:6432"));
        assert_eq!(default("pool.mode").as_deref(), Some("transaction"));
        assert_eq!(default("tls.mode"), None);
        assert_eq!(default("drain.timeout").as_deref(), Some("30s"));
        assert!(KEYS.len() > 45, "{}", KEYS.len());
        assert!(!KEYS.iter().any(|(key, _)| key.contains("host") || key.contains("verifier =")));
        let mut names: Vec<&str> =
            KEYS.iter().map(|(key, _)| key.as_str()).chain(PGBOUNCER.iter().map(|it| it.name)).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
