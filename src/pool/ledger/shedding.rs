//! Who is turned away when the queue for an instance stands: CoDel (RFC 8289) on the time that requests have waited.

use std::time::{Duration, Instant};

use super::{Effect, Effects, Ledger, PoolKey, Shed};

/// CoDel's state.
#[derive(Debug, Default)]
pub(super) struct Shedding {
    /// When the queue will have stood for an interval.
    stands_at: Option<Instant>,
    /// When the next one is turned away, while some are.
    next: Option<Instant>,
    /// Turned away since then.
    count: u32,
}

impl Shedding {
    /// Whether somebody is to be turned away, now that a request has waited so long.
    fn observe(&mut self, waited: Duration, now: Instant, shed: Shed) -> bool {
        if waited < shed.target {
            self.stands_at = None;
            if self.next.is_some_and(|next| now > next + shed.interval) {
                self.count = 0;
            }
            self.next = None;
            return false;
        }
        let stands_at = *self.stands_at.get_or_insert(now + shed.interval);
        if now < stands_at || self.next.is_some_and(|next| now < next) {
            return false;
        }
        self.count += 1;
        // The longer it lasts, the more often (RFC 8289, 3.3).
        self.next = Some(self.next.unwrap_or(now) + shed.interval.div_f64(f64::from(self.count).sqrt()));
        true
    }
}

impl<B, W, E: Clone> Ledger<B, W, E> {
    /// Somebody was served, or still waits, after so long. Only a queue for the instance as a whole hurts others.
    pub(super) fn watch_queue(&mut self, waited: Duration, now: Instant, effects: &mut Effects<B, W, E>) {
        let Some(shed) = self.fairness.shed else { return };
        if self.usage.open >= self.bound.max
            && self.shedding.observe(waited, now, shed)
            && let Some(key) = self.most_over_its_share(shed, now)
            && let Some((_, waiting)) = self.pool(key).waiters.pop_first()
        {
            self.each_usage(key, |usage| usage.waiting -= 1);
            effects.push(Effect::Shed(waiting.waiter));
        }
    }

    /// The queue whose tenant has had most, where somebody has waited longer than the target.
    fn most_over_its_share(&self, shed: Shed, now: Instant) -> Option<PoolKey> {
        let late = self.queued.iter().filter_map(|&key| {
            let pool = &self.pools[key];
            let (ticket, first) = pool.waiters.first_key_value()?;
            let waited = now.saturating_duration_since(first.since);
            (waited >= shed.target).then(|| (self.time_of(pool.tenant, now), *ticket, key))
        });
        let most = late.max_by(|(time, ticket, _), (other, later, _)| time.total_cmp(other).then(later.cmp(ticket)));
        most.map(|(.., key)| key)
    }

    /// The longest that anybody waits now.
    pub(super) fn longest_wait(&self, now: Instant) -> Option<Duration> {
        let first = self.queued.iter().filter_map(|&key| self.waits_since(key)).min();
        first.map(|since| now.saturating_duration_since(since))
    }
}
