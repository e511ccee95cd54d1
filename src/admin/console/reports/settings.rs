//! SHOW CONFIG: PgBouncer's names where they mean the same, then every key of `proxy.toml`.

use std::sync::LazyLock;

use super::super::View;
use super::super::table::{Row, row};
use crate::config::Config;

/// The reference of all keys; tests hold it against the code's keys and defaults.
const REFERENCE: &str = include_str!("../../../../proxy.toml");

/// Keys that take effect only after a restart, as `reload` warns of.
const FIXED: [&str; 10] = [
    "listen.",
    "http.address",
    "log.format",
    "log.filter",
    "limits.max_clients",
    "auth.free_attempts",
    "auth.backoff",
    "auth.backoff_max",
    "auth.verifier_ttl",
    "auth.mock_iterations",
];

struct Known {
    name: &'static str,
    read: fn(&Config) -> String,
    default: &'static str,
    changeable: bool,
}

/// Values as PgBouncer writes them: times in seconds.
#[rustfmt::skip]
const PGBOUNCER: &[Known] = &[
    Known { name: "default_pool_size", default: "20", changeable: true,
            read: |config| config.pool.defaults.max_backends_per_role.to_string() },
    Known { name: "listen_backlog", default: "1024", changeable: false, read: |config| config.listen.backlog.to_string() },
    Known { name: "max_client_conn", default: "10000", changeable: false,
            read: |config| config.limits.max_clients.to_string() },
    Known { name: "max_db_connections", default: "20", changeable: true,
            read: |config| config.pool.defaults.max_backends.to_string() },
    Known { name: "max_packet_size", default: "1073741823", changeable: true,
            read: |config| config.limits.max_message.to_string() },
    Known { name: "max_prepared_statements", default: "200", changeable: true,
            read: |config| config.limits.max_prepared_per_backend.to_string() },
    // Without a bound of its own, as PgBouncer's 0.
    Known { name: "max_user_connections", default: "0", changeable: true, read: |_| "0".to_owned() },
    Known { name: "min_pool_size", default: "0", changeable: true,
            read: |config| config.pool.defaults.min_backends.to_string() },
    Known { name: "pool_mode", default: "transaction", changeable: true,
            read: |config| config.pool.defaults.mode.text().to_owned() },
    Known { name: "query_wait_timeout", default: "30", changeable: true,
            read: |config| config.pool.defaults.queue_timeout.as_secs().to_string() },
    Known { name: "reserve_pool_size", default: "0", changeable: false, read: |_| "0".to_owned() },
    Known { name: "server_connect_timeout", default: "5", changeable: true,
            read: |config| config.pool.connect_timeout.as_secs().to_string() },
    Known { name: "server_idle_timeout", default: "600", changeable: true,
            read: |config| config.pool.defaults.idle_timeout.as_secs().to_string() },
    Known { name: "server_lifetime", default: "3600", changeable: true,
            read: |config| config.pool.defaults.lifetime.as_secs().to_string() },
    Known { name: "stats_period", default: "60", changeable: false, read: |_| "60".to_owned() },
];

pub(super) fn config(view: View<'_>) -> Vec<Row> {
    let config = view.config.load();
    let yes_no = |changeable: bool| if changeable { "yes" } else { "no" };
    let known = PGBOUNCER.iter().map(|it| row![it.name, (it.read)(&config), it.default, yes_no(it.changeable)]);
    let ours = KEYS.iter().map(|(key, default)| {
        let value = config.written.get(key).or(default.as_ref()).cloned();
        let fixed = FIXED.iter().any(|it| key == it || it.ends_with('.') && key.starts_with(it));
        row![key.as_str(), value.unwrap_or_default(), default.clone(), yes_no(!fixed)]
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
