//! What a tenant may use: its own `[quota]`, over its tier's, over that of `proxy.toml`.

use std::time::Duration;

use super::file;
use super::problem::Scope;
use super::scalar::Limit;

/// The quotas of one tenant; none is no limit. What becomes of who goes beyond stands in docs/QUOTAS.md.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quota {
    /// Client connections.
    pub max_clients: Option<u32>,
    /// Transactions at a time.
    pub max_transactions: Option<u32>,
    pub transactions_per_second: Option<u32>,
    /// How many may come at once after a rest; there wherever the rate is.
    pub transactions_burst: Option<u32>,
    /// Bytes from and to clients together, without TLS.
    pub bytes_per_second: Option<u64>,
    pub bytes_burst: Option<u64>,
    /// Time that backends work for the tenant, in seconds for each minute: 60 are one backend that is always busy.
    pub backend_seconds_per_minute: Option<u32>,
    /// Bytes of rows in the answer to one query, one portion of a cursor, or one COPY.
    pub max_result: Option<u64>,
    /// For one statement; several in one simple query count as one.
    pub query_timeout: Option<Duration>,
    /// From a transaction's first statement to its end.
    pub transaction_timeout: Option<Duration>,
    pub idle_in_transaction_timeout: Option<Duration>,
    pub idle_session_timeout: Option<Duration>,
    /// How long a transaction is delayed before it is refused; default 1 s.
    pub delay_max: Duration,
    /// A client that waits for so long is told why by a NOTICE; default 5 s.
    pub notice_after: Option<Duration>,
    /// How long clients of a paused tenant wait before they are sent away; default 60 s.
    pub pause_max: Duration,
}

impl Default for Quota {
    fn default() -> Self {
        resolve(&[])
    }
}

/// The first layer that says something about a key decides; "none" is something.
pub(super) fn resolve(layers: &[&file::Quota]) -> Quota {
    let transactions = rate(layers, |quota| quota.transactions_per_second, |quota| quota.transactions_burst);
    let bytes = rate(layers, |quota| quota.bytes_per_second, |quota| quota.bytes_burst);
    let time = |key: fn(&file::Quota) -> Option<Limit<super::scalar::Period>>| limit(layers, key).map(|it| it.0);
    let plain = |key: fn(&file::Quota) -> Option<super::scalar::Period>| layers.iter().find_map(|layer| key(layer));
    let notice_after = layers.iter().find_map(|layer| layer.notice_after);
    Quota {
        max_clients: limit(layers, |quota| quota.max_clients).map(|it| it.0),
        max_transactions: limit(layers, |quota| quota.max_transactions).map(|it| it.0),
        transactions_per_second: transactions.map(|(rate, _)| rate.0),
        transactions_burst: transactions.map(|(_, burst)| burst.0),
        bytes_per_second: bytes.map(|(rate, _)| rate.0),
        bytes_burst: bytes.map(|(_, burst)| burst.0),
        backend_seconds_per_minute: limit(layers, |quota| quota.backend_seconds_per_minute).map(|it| it.0),
        max_result: limit(layers, |quota| quota.max_result).map(|it| it.0),
        query_timeout: time(|quota| quota.query_timeout),
        transaction_timeout: time(|quota| quota.transaction_timeout),
        idle_in_transaction_timeout: time(|quota| quota.idle_in_transaction_timeout),
        idle_session_timeout: time(|quota| quota.idle_session_timeout),
        delay_max: plain(|quota| quota.delay_max).map_or(Duration::from_secs(1), |it| it.0),
        notice_after: match notice_after {
            Some(limit) => limit.0.map(|it| it.0),
            None => Some(Duration::from_secs(5)),
        },
        pause_max: plain(|quota| quota.pause_max).map_or(Duration::from_secs(60), |it| it.0),
    }
}

fn limit<T: Copy>(layers: &[&file::Quota], key: impl Fn(&file::Quota) -> Option<Limit<T>>) -> Option<T> {
    layers.iter().find_map(|layer| key(layer)).and_then(|limit| limit.0)
}

/// A rate and its burst. A burst that was meant for another layer's rate does not count; without one, it is as much as a
/// second gives.
fn rate<T: Copy>(
    layers: &[&file::Quota],
    rate: impl Fn(&file::Quota) -> Option<Limit<T>>,
    burst: impl Fn(&file::Quota) -> Option<T>,
) -> Option<(T, T)> {
    let layer = layers.iter().position(|layer| rate(layer).is_some())?;
    let limit = rate(layers[layer]).and_then(|limit| limit.0)?;
    let own = layers[..=layer].iter().find_map(|layer| burst(layer));
    Some((limit, own.unwrap_or(limit)))
}

/// Reports what cannot be meant.
pub(super) fn check(written: &file::Quota, mut scope: Scope<'_, '_>) {
    let count = |limit: Option<Limit<super::scalar::Count>>| limit.is_some_and(|it| it.0.is_some_and(|it| it.0 == 0));
    let size = |limit: Option<Limit<super::scalar::Size>>| limit.is_some_and(|it| it.0.is_some_and(|it| it.0 == 0));
    let time =
        |limit: Option<Limit<super::scalar::Period>>| limit.is_some_and(|it| it.0.is_some_and(|it| it.0.is_zero()));
    let zeros = [
        ("max_clients", count(written.max_clients)),
        ("max_transactions", count(written.max_transactions)),
        ("transactions_per_second", count(written.transactions_per_second)),
        ("transactions_burst", written.transactions_burst.is_some_and(|it| it.0 == 0)),
        ("bytes_per_second", size(written.bytes_per_second)),
        ("bytes_burst", written.bytes_burst.is_some_and(|it| it.0 == 0)),
        ("backend_seconds_per_minute", count(written.backend_seconds_per_minute)),
        ("max_result", size(written.max_result)),
        ("query_timeout", time(written.query_timeout)),
        ("transaction_timeout", time(written.transaction_timeout)),
        ("idle_in_transaction_timeout", time(written.idle_in_transaction_timeout)),
        ("idle_session_timeout", time(written.idle_session_timeout)),
        ("notice_after", time(written.notice_after)),
        ("pause_max", written.pause_max.is_some_and(|it| it.0.is_zero())),
    ];
    for (key, _) in zeros.iter().filter(|(_, is_zero)| *is_zero) {
        scope.problem(key, "must not be 0; \"none\" is no limit, and state = \"suspended\" shuts a tenant out");
    }
}

#[cfg(test)]
mod tests {
    use super::super::scalar::{Count, Period, Size};
    use super::*;

    #[test]
    fn the_nearest_layer_decides() {
        let count = |number| Some(Limit(Some(Count(number))));
        let tenant =
            file::Quota { max_clients: Some(Limit(None)), transactions_per_second: count(5), ..Default::default() };
        let tier = file::Quota {
            max_clients: count(10),
            transactions_per_second: count(100),
            transactions_burst: Some(Count(1000)),
            bytes_per_second: Some(Limit(Some(Size(1 << 20)))),
            notice_after: Some(Limit(None)),
            ..Default::default()
        };
        let proxy = file::Quota {
            max_result: Some(Limit(Some(Size(7)))),
            delay_max: Some(Period(Duration::ZERO)),
            ..Default::default()
        };
        let quota = resolve(&[&tenant, &tier, &proxy]);
        assert_eq!(quota.max_clients, None);
        // The tier's burst is for the tier's rate.
        assert_eq!((quota.transactions_per_second, quota.transactions_burst), (Some(5), Some(5)));
        assert_eq!((quota.bytes_per_second, quota.bytes_burst), (Some(1 << 20), Some(1 << 20)));
        assert_eq!((quota.max_result, quota.delay_max, quota.notice_after), (Some(7), Duration::ZERO, None));
        let tier_alone = resolve(&[&file::Quota::default(), &tier]);
        assert_eq!((tier_alone.transactions_per_second, tier_alone.transactions_burst), (Some(100), Some(1000)));
    }
}
