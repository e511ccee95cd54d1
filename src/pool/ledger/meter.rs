//! Backend time by weight: how much of an instance a tenant has had, compared with the others.
//!
//! A tenant's meter runs with the number of backends that it holds divided by its weight, the instance's with all that are
//! held divided by the weight of all who hold some or wait: it is the mean. Who is behind it has had less than its share.

use std::time::Duration;

/// So much of what a tenant had beyond its share is remembered, in seconds of one backend for a weight of 1: when nobody
/// else wanted it, it is soon forgotten.
const DEBT: f64 = 10.0;

/// All times are in seconds since the ledger was made.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// In seconds of one backend for a weight of 1, up to `since`.
    time: f64,
    /// Backends that are held now.
    pub held: u32,
    since: f64,
}

impl Meter {
    /// The reading, where the weight was the same since the last call of `advance`.
    pub fn read(&self, weight: u32, now: f64) -> f64 {
        self.time + (now - self.since).max(0.0) * f64::from(self.held) / f64::from(weight.max(1))
    }

    pub fn advance(&mut self, weight: u32, now: f64) {
        self.time = self.read(weight, now);
        self.since = self.since.max(now);
    }

    /// Who did not use its share keeps no more than `credit` of it; who had more owes [`DEBT`] at most.
    pub fn stay_near(&mut self, mean: &Meter, credit: Duration) {
        self.time = self.time.max(mean.time - credit.as_secs_f64()).min(mean.time + DEBT);
    }
}
