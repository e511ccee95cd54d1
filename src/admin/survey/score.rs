//! Who hurts: one number for each tenant, by which the page and `top` are sorted (docs/OPERATING.md explains it).

use std::time::Duration;

use super::figures::Rates;

/// From 0, all is well, to 100; and the reasons, the weightiest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Score {
    pub value: f64,
    pub why: Vec<&'static str>,
}

/// What the score is made of.
pub(super) struct Suffering<'a> {
    pub waiting: u64,
    pub longest_wait: Duration,
    pub queue_timeout: Duration,
    pub max_backends: u32,
    pub highest_use: f64,
    pub pins: u64,
    pub rates: &'a Rates,
}

/// A part of less than this is no reason worth a word.
const WORTH_A_WORD: f64 = 1.0;

/// The sum of five parts, each of which can be full:
///
/// - queue, 35: clients that wait, on average or now, against the backends that there may be, or the longest wait against
///   `queue_timeout`, whichever is more;
/// - quota, 25: the quota that is closest to its limit, from half of it on;
/// - errors, 20: the share of transactions that failed, a tenth of them being full;
/// - logins, 10: the same for logins, half of them being full;
/// - pins, 10: backends that are kept, against those that there may be.
pub(super) fn of(suffering: &Suffering<'_>) -> Score {
    let Suffering { waiting, longest_wait, queue_timeout, max_backends, highest_use, pins, rates } = suffering;
    let backends = f64::from((*max_backends).max(1));
    let queued = rates.wait_seconds.max(*waiting as f64) / backends;
    let waits = longest_wait.as_secs_f64() / queue_timeout.as_secs_f64().max(0.001);
    let share = |failed: f64, all: f64| if failed > 0.0 { failed / (all + failed).max(failed) } else { 0.0 };
    let parts = [
        ("queue", 35.0, queued.max(waits)),
        ("quota", 25.0, (highest_use - 0.5) * 2.0),
        ("errors", 20.0, share(rates.errors, rates.transactions) * 10.0),
        ("logins", 10.0, share(rates.login_failures, rates.logins) * 2.0),
        ("pins", 10.0, *pins as f64 / backends),
    ];
    let mut parts = parts.map(|(why, weight, part)| (why, weight * part.clamp(0.0, 1.0)));
    parts.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let value: f64 = parts.iter().map(|(_, points)| points).sum();
    let why = parts.iter().filter(|(_, points)| *points >= WORTH_A_WORD).map(|(why, _)| *why).collect();
    Score { value: (value * 10.0).round() / 10.0, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calm(rates: &Rates) -> Suffering<'_> {
        Suffering {
            waiting: 0,
            longest_wait: Duration::ZERO,
            queue_timeout: Duration::from_secs(30),
            max_backends: 10,
            highest_use: 0.0,
            pins: 0,
            rates,
        }
    }

    #[test]
    fn a_busy_tenant_that_is_well_has_no_score() {
        let rates = Rates { queries: 5000.0, transactions: 5000.0, backend_seconds: 4.0, ..Rates::default() };
        assert_eq!(of(&Suffering { highest_use: 0.5, ..calm(&rates) }), Score::default());
    }

    #[test]
    fn each_part_counts_up_to_its_weight() {
        let none = Rates::default();
        let queue = of(&Suffering { waiting: 200, highest_use: 1.0, ..calm(&none) });
        assert_eq!((queue.value, &queue.why[..]), (60.0, &["queue", "quota"][..]));
        assert_eq!(of(&Suffering { longest_wait: Duration::from_secs(15), ..calm(&none) }).value, 17.5);
        assert_eq!(of(&Suffering { pins: 5, ..calm(&none) }).value, 5.0);
        let errors = Rates { transactions: 95.0, errors: 5.0, ..Rates::default() };
        assert_eq!(of(&calm(&errors)), Score { value: 10.0, why: vec!["errors"] });
        let guessing = Rates { login_failures: 50.0, logins: 1.0, ..Rates::default() };
        assert_eq!(of(&calm(&guessing)), Score { value: 10.0, why: vec!["logins"] });
        let waits = Rates { wait_seconds: 5.0, ..Rates::default() };
        assert_eq!(of(&calm(&waits)).value, 17.5);
    }
}
