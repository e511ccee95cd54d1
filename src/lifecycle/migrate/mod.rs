//! Migrations: the same folder of SQL files for every tenant's database, wave by wave (docs/MIGRATIONS.md).

pub mod bake;
pub mod fingerprint;
pub mod folder;
pub mod history;
pub mod plan;
pub mod repair;
pub mod run;
pub mod run_journal;
pub mod script;
mod seat;
pub mod state;
pub mod waves;
pub mod work;

pub use seat::role_name;

use std::time::Duration;

/// In fault points and the audit log.
const ACT: &str = "migrate";
/// Pauses after somebody's lock: the first one, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A tenant's database.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub tenant: &'a str,
    pub database: &'a str,
}

/// How long somebody's lock is waited for, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// PostgreSQL's `lock_timeout`: while a statement waits, everybody else waits behind it.
    pub lock_timeout: Duration,
    /// Attempts after the first one.
    pub retries: u32,
}

impl Patience {
    /// Before attempt `tried` + 1: it doubles, and half of it is random, so that those who met do not meet again.
    pub fn pause(self, tried: u32, random: u32) -> Duration {
        let whole = FIRST_PAUSE.saturating_mul(1 << tried.saturating_sub(1).min(20)).min(LONGEST_PAUSE);
        whole / 2 + whole.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_minute() {
        let patience = Patience { lock_timeout: Duration::from_secs(2), retries: 10 };
        assert_eq!(patience.pause(1, 0), FIRST_PAUSE / 2);
        assert_eq!(patience.pause(1, u32::MAX), FIRST_PAUSE);
        assert_eq!(patience.pause(2, u32::MAX), FIRST_PAUSE * 2);
        assert_eq!(patience.pause(30, u32::MAX), LONGEST_PAUSE);
    }
}
