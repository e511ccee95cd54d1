//! What has to be done from time to time: closing what was idle or lived too long, and restoring minimums.

use std::time::Instant;

use super::{Effects, Ledger, PoolKey};

impl<B, W, E: Clone> Ledger<B, W, E> {
    /// Closes what was idle or lived too long or is beyond a lowered bound, restores minimums, and tries again what had to
    /// wait. Call it about once a second.
    pub fn reap(&mut self, now: Instant, effects: &mut Effects<B, W, E>) {
        let keys: Vec<PoolKey> = self.pools.keys().collect();
        for key in keys {
            let staying = self.roles[self.pools[key].role].usage.staying();
            let pool = self.pool(key);
            let mut spare = staying.saturating_sub(pool.settings.min);
            let mut expired = Vec::new();
            let mut index = 0;
            while index < pool.idle.len() {
                let slot = &pool.idle[index];
                let idle_too_long = spare > 0 && now.duration_since(slot.idle_since) >= pool.settings.idle_timeout;
                if idle_too_long || now.duration_since(slot.opened) >= pool.settings.lifetime {
                    spare = spare.saturating_sub(1);
                    expired.push(pool.idle.remove(index).backend);
                } else {
                    index += 1;
                }
            }
            for backend in expired {
                self.close(key, backend, effects);
            }
            while !self.pools[key].idle.is_empty() && self.over_bound(key) {
                let longest_idle = self.pool(key).idle.remove(0);
                self.close(key, longest_idle.backend, effects);
            }
            while self.wants_minimum(key) && self.may_open(key, now) {
                self.open(key, effects);
            }
        }
        if let Some(longest) = self.longest_wait(now) {
            self.watch_queue(longest, now, effects);
        }
        self.pump(now, effects);
    }

    fn wants_minimum(&self, key: PoolKey) -> bool {
        let pool = &self.pools[key];
        pool.lasting && pool.used && self.roles[pool.role].usage.staying() < pool.settings.min
    }
}
