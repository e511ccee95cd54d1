//! Why somebody is refused, and what the client is told.

use std::time::Duration;

use crate::metrics::{Label, QuotaName};
use crate::wire::{PgError, sqlstate};

/// Why a transaction may not begin yet, or a client not come in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Short {
    pub quota: QuotaName,
    pub limit: f64,
    pub used: f64,
    /// How long it takes until there is room again, as far as anybody knows.
    pub wait: Option<Duration>,
}

impl Short {
    /// With codes for which drivers keep their connection, but for a client that does not get in.
    pub fn to_client(&self, tenant: &str) -> PgError {
        let quota = self.quota.text();
        let detail = format!(
            "Quota {quota} of tenant \"{tenant}\": limit {}, in use {}.",
            number(self.limit),
            number(self.used)
        );
        let hint = match (self.quota, self.wait) {
            (QuotaName::MaxClients, _) => "Try again when others have left, or use fewer connections.".to_owned(),
            (_, Some(wait)) => format!("Try again in {} s.", number((wait.as_secs_f64() * 10.0).ceil() / 10.0)),
            (_, None) => "Try again when other transactions of the tenant are over.".to_owned(),
        };
        let error = match self.quota {
            QuotaName::MaxClients => {
                PgError::fatal(sqlstate::TOO_MANY_CONNECTIONS, "too many clients of this tenant already")
            }
            _ => PgError::error(sqlstate::CONFIGURATION_LIMIT, format!("tenant quota exceeded: {quota}")),
        };
        error.with_detail(detail).with_hint(hint)
    }
}

/// Without a fraction where there is none worth a word.
fn number(value: f64) -> String {
    if value >= 100.0 || (value - value.round()).abs() < 0.05 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_told_quota_limit_use_and_when_to_come_again() {
        let wait = Some(Duration::from_millis(230));
        let short = Short { quota: QuotaName::TransactionsPerSecond, limit: 10.0, used: 12.34, wait };
        let error = short.to_client("acme");
        assert_eq!(
            error.to_string(),
            "ERROR: tenant quota exceeded: transactions_per_second (SQLSTATE 53400); \
            Quota transactions_per_second of tenant \"acme\": limit 10, in use 12.3."
        );
        assert_eq!(error.hint.as_deref(), Some("Try again in 0.3 s."));
        let full = Short { quota: QuotaName::MaxClients, limit: 200.0, used: 200.0, wait: None };
        assert_eq!(
            (full.to_client("acme").code.as_str(), number(1e9), number(0.5)),
            ("53300", "1000000000".into(), "0.5".into())
        );
    }
}
