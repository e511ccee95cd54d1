//! A rate with a burst, as one number: the generic cell rate algorithm. Pure: the time is an argument.
//!
//! The number is the moment at which everything that was taken is paid for (ITU-T I.371's theoretical arrival time). It
//! may lie in the future by as much as the burst is worth.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// So many units in a time, and so many at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At least 1, as the burst.
    pub units: u64,
    /// In nanoseconds, at least 1.
    pub per: u64,
    pub burst: u64,
}

impl Rate {
    /// The time that pays for units, in nanoseconds, rounded up: no rounding gives anything away.
    fn price(self, units: u64) -> u64 {
        let price = (u128::from(units) * u128::from(self.per)).div_ceil(u128::from(self.units));
        u64::try_from(price).unwrap_or(u64::MAX)
    }

    /// What the burst is worth, rounded down.
    fn credit(self) -> u64 {
        let credit = u128::from(self.burst) * u128::from(self.per) / u128::from(self.units);
        u64::try_from(credit).unwrap_or(u64::MAX)
    }
}

/// See the module. Moments are nanoseconds since a beginning of the caller's.
#[derive(Debug, Default)]
pub struct Bucket {
    paid: AtomicU64,
}

impl Bucket {
    /// Takes units that may be used after a wait, if that is `most` at most; gives the wait in nanoseconds, or the one that
    /// would be needed. Who reserves first goes first.
    pub fn reserve(&self, rate: Rate, units: u64, now: u64, most: u64) -> Result<u64, u64> {
        let price = rate.price(units);
        let mut wait = 0;
        let taken = self.paid.fetch_update(Relaxed, Relaxed, |paid| {
            let after = paid.max(now).saturating_add(price);
            wait = after.saturating_sub(now).saturating_sub(rate.credit());
            (wait <= most).then_some(after)
        });
        taken.map(|_| wait).map_err(|_| wait)
    }

    /// Takes units that were used already, however many.
    pub fn charge(&self, rate: Rate, units: u64, now: u64) {
        let price = rate.price(units);
        let _ = self.paid.fetch_update(Relaxed, Relaxed, |paid| Some(paid.max(now).saturating_add(price)));
    }

    /// Gives units back that were reserved and are not used.
    pub fn give_back(&self, rate: Rate, units: u64) {
        let price = rate.price(units);
        let _ = self.paid.fetch_update(Relaxed, Relaxed, |paid| Some(paid.saturating_sub(price)));
    }

    /// How long it takes, in nanoseconds, until what was taken is no more than the burst.
    pub fn wait(&self, rate: Rate, now: u64) -> u64 {
        self.paid.load(Relaxed).saturating_sub(now).saturating_sub(rate.credit())
    }

    /// Units that are not paid for yet, within the burst or beyond it.
    pub fn owed(&self, rate: Rate, now: u64) -> f64 {
        self.paid.load(Relaxed).saturating_sub(now) as f64 * rate.units as f64 / rate.per as f64
    }

    /// The rate has changed: what is owed stays the same number of units.
    pub fn rescale(&self, old: Rate, new: Rate, now: u64) {
        let _ = self.paid.fetch_update(Relaxed, Relaxed, |paid| {
            let owed = u128::from(paid.saturating_sub(now)) * u128::from(old.units) / u128::from(old.per);
            Some(now.saturating_add(new.price(u64::try_from(owed).unwrap_or(u64::MAX))))
        });
    }

    /// No rate any more: nothing is owed.
    pub fn forget(&self) {
        self.paid.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let (bucket, rate) = (Bucket::default(), Rate { units: 10, per: SECOND, burst: 3 });
        let now = 5 * SECOND;
        for _ in 0..3 {
            assert_eq!(bucket.reserve(rate, 1, now, 0), Ok(0));
        }
        assert_eq!(bucket.reserve(rate, 1, now, 0), Err(SECOND / 10));
        assert_eq!(bucket.reserve(rate, 1, now, SECOND), Ok(SECOND / 10), "reserved");
        assert_eq!(bucket.reserve(rate, 1, now, SECOND), Ok(SECOND / 5), "behind the first");
        bucket.give_back(rate, 1);
        assert_eq!(bucket.reserve(rate, 1, now, SECOND), Ok(SECOND / 5));
        assert_eq!(bucket.reserve(rate, 1, now + 10 * SECOND, 0), Ok(0));
    }

    #[test]
    fn what_was_used_is_waited_for_afterwards() {
        let (bucket, slow) = (Bucket::default(), Rate { units: 1000, per: SECOND, burst: 1000 });
        bucket.charge(slow, 10_000, 0);
        assert_eq!(bucket.wait(slow, 0), 9 * SECOND);
        assert_eq!(bucket.wait(slow, 9 * SECOND), 0);
        let fast = Rate { units: 10_000, per: SECOND, burst: 1000 };
        bucket.rescale(slow, fast, 0);
        assert_eq!(bucket.wait(fast, 0), SECOND * 9 / 10);
        bucket.forget();
        assert_eq!(bucket.wait(slow, 0), 0);
    }

    #[test]
    fn no_number_overflows() {
        let (bucket, rate) = (Bucket::default(), Rate { units: 1, per: u64::MAX, burst: u64::MAX });
        bucket.charge(rate, u64::MAX, u64::MAX);
        assert_eq!(bucket.wait(rate, 0), 0);
        bucket.rescale(rate, Rate { units: u64::MAX, per: 1, burst: 1 }, 0);
    }

    proptest! {
        #[test]
        fn never_more_than_rate_times_time_and_the_burst(
            units in 1..2_000_000_000_u64,
            burst in 1..1000_u64,
            steps in prop::collection::vec((0..SECOND, 1..5_u64, 0..2 * SECOND, 0..4_u8), 1..200),
        ) {
            let (bucket, rate) = (Bucket::default(), Rate { units, per: SECOND, burst });
            // When each was used, and how many.
            let mut used: Vec<(u64, u64)> = Vec::new();
            let mut now = SECOND;
            for (pause, wanted, most, given_back) in steps {
                now += pause;
                // More at once than the burst cannot be spread.
                let wanted = wanted.min(burst);
                if let Ok(wait) = bucket.reserve(rate, wanted, now, most) {
                    prop_assert!(wait <= most);
                    match given_back {
                        0 => bucket.give_back(rate, wanted),
                        _ => used.push((now + wait, wanted)),
                    }
                }
            }
            used.sort_unstable();
            for (first, (from, _)) in used.iter().enumerate() {
                let mut sum = 0_u128;
                for (at, count) in &used[first..] {
                    sum += u128::from(*count);
                    let allowed = u128::from(units) * u128::from(at - from) / u128::from(SECOND) + u128::from(burst);
                    prop_assert!(sum <= allowed + 1, "{sum} in {} ns, allowed {allowed}", at - from);
                }
            }
        }
    }
}
