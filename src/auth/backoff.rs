//! Counts failed logins by address and tenant, and says how long the next one has to wait; remembers who has logged in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::RandomState;

use super::turns::Applicant;
use crate::config;

/// Pairs of address and tenant that are remembered at a time, at most (32 bytes each).
const MAX_ENTRIES: usize = 65_536;

/// Failed-login accounting.
///
/// Addresses are IPv4 addresses and IPv6 /64 networks. A pair is forgotten after a successful login, or when it was
/// quiet for `backoff_max` after its last wait; of more than 65,536 pairs those that failed longest ago go first.
pub struct Backoff {
    free_attempts: u32,
    first: Duration,
    max: Duration,
    hasher: RandomState,
    failures: Mutex<Generations<Failures>>,
    /// Pairs whose last login was right.
    known: Mutex<Generations<()>>,
}

#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

/// Two maps of half the bound: when the recent one is full it takes the place of the old one, whose entries go. So the
/// bound holds without ever searching for the oldest entry.
struct Generations<T> {
    recent: HashMap<u64, T>,
    old: HashMap<u64, T>,
}

impl<T> Default for Generations<T> {
    fn default() -> Self {
        Generations { recent: HashMap::new(), old: HashMap::new() }
    }
}

impl Backoff {
    pub fn new(settings: &config::Auth) -> Self {
        Self {
            free_attempts: settings.free_attempts,
            first: settings.backoff,
            max: settings.backoff_max.max(settings.backoff),
            hasher: RandomState::new(),
            failures: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// Whether a login may be tried now; otherwise how long to wait.
    ///
    /// Ask when the client's proof is there, not only when it connects: many connections opened at once would
    /// otherwise all have been let in before the first of them failed.
    pub fn check(&self, address: IpAddr, tenant: &str, now: Instant) -> Result<(), Duration> {
        let Some(failures) = lock(&self.failures).get(self.key(address, tenant)) else { return Ok(()) };
        let passed = now.saturating_duration_since(failures.last);
        match self.wait(failures.count).saturating_sub(passed) {
            Duration::ZERO => Ok(()),
            wait => Err(wait),
        }
    }

    pub fn failed(&self, address: IpAddr, tenant: &str, now: Instant) {
        let key = self.key(address, tenant);
        let mut failures = lock(&self.failures);
        let count = failures.get(key).filter(|known| !self.is_forgotten(known, now)).map_or(0, |known| known.count);
        failures.put(key, Failures { count: count.saturating_add(1), last: now });
        drop(failures);
        for key in [key, self.key(address, "")] {
            lock(&self.known).remove(key);
        }
    }

    pub fn succeeded(&self, address: IpAddr, tenant: &str) {
        let key = self.key(address, tenant);
        lock(&self.failures).remove(key);
        for key in [key, self.key(address, "")] {
            lock(&self.known).put(key, ());
        }
    }

    /// Whose turn it is to log in depends on this: by tenant, or by address where the tenant cannot be told yet.
    pub fn applicant(&self, address: IpAddr, tenant: Option<&str>) -> Applicant {
        let group = match tenant {
            Some(tenant) => self.hasher.hash_one(tenant),
            None => self.key(address, ""),
        };
        let known = lock(&self.known).get(self.key(address, tenant.unwrap_or_default())).is_some();
        Applicant { group, known }
    }

    /// Doubles from the first wait to the longest, once the free attempts are used up.
    fn wait(&self, count: u32) -> Duration {
        match count.checked_sub(self.free_attempts.max(1)) {
            None => Duration::ZERO,
            Some(doublings) => {
                let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
                self.first.saturating_mul(factor).min(self.max)
            }
        }
    }

    fn is_forgotten(&self, failures: &Failures, now: Instant) -> bool {
        now.saturating_duration_since(failures.last) >= self.wait(failures.count).saturating_add(self.max)
    }

    fn key(&self, address: IpAddr, tenant: &str) -> u64 {
        let network = match address.to_canonical() {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
        };
        self.hasher.hash_one((address.to_canonical().is_ipv4(), network, tenant))
    }
}

fn lock<T>(pairs: &Mutex<Generations<T>>) -> MutexGuard<'_, Generations<T>> {
    // Every change is a single map operation: a panic elsewhere leaves nothing half done.
    pairs.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Copy> Generations<T> {
    fn get(&self, key: u64) -> Option<T> {
        self.recent.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    fn put(&mut self, key: u64, value: T) {
        if self.recent.len() >= MAX_ENTRIES / 2 && !self.recent.contains_key(&key) {
            self.old = std::mem::take(&mut self.recent);
        }
        self.recent.insert(key, value);
    }

    fn remove(&mut self, key: u64) {
        self.recent.remove(&key);
        self.old.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn backoff() -> Backoff {
        Backoff::new(&config::Auth {
            login_timeout: SECOND,
            free_attempts: 3,
            backoff: SECOND,
            backoff_max: 10 * SECOND,
            verifier_ttl: SECOND,
            cleartext: false,
            mock_iterations: 4096,
        })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let (backoff, peer, mut now) = (backoff(), address("192.0.2.1"), Instant::now());
        let waits: Vec<u64> = (0..8)
            .map(|_| {
                backoff.failed(peer, "acme", now);
                let wait = backoff.check(peer, "acme", now).err().unwrap_or_default();
                now += wait;
                assert_eq!(backoff.check(peer, "acme", now), Ok(()));
                wait.as_secs()
            })
            .collect();
        assert_eq!(waits, [0, 0, 1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn counts_by_address_and_tenant() {
        let (backoff, now) = (backoff(), Instant::now());
        for _ in 0..3 {
            backoff.failed(address("2001:db8::1"), "acme", now);
            backoff.failed(address("192.0.2.1"), "acme", now);
        }
        assert!(backoff.check(address("2001:db8::ffff:1"), "acme", now).is_err(), "the same /64");
        assert!(backoff.check(address("::ffff:192.0.2.1"), "acme", now).is_err(), "IPv4 seen through an IPv6 socket");
        for (peer, tenant) in [("2001:db8:0:1::1", "acme"), ("192.0.2.2", "acme"), ("192.0.2.1", "globex")] {
            assert_eq!(backoff.check(address(peer), tenant, now), Ok(()), "{peer} {tenant}");
        }
    }

    #[test]
    fn success_and_quiet_forget() {
        let (backoff, peer, now) = (backoff(), address("192.0.2.1"), Instant::now());
        for _ in 0..5 {
            backoff.failed(peer, "acme", now);
        }
        backoff.succeeded(peer, "acme");
        backoff.failed(peer, "acme", now);
        assert_eq!(backoff.check(peer, "acme", now), Ok(()));
        for _ in 0..5 {
            backoff.failed(peer, "acme", now);
        }
        let later = now + 60 * SECOND;
        backoff.failed(peer, "acme", later);
        assert_eq!(backoff.check(peer, "acme", later), Ok(()), "one failure after a quiet minute");
    }

    #[test]
    fn who_has_logged_in_is_known_until_a_login_fails() {
        let (backoff, peer, now) = (backoff(), address("192.0.2.1"), Instant::now());
        let known = |tenant| backoff.applicant(peer, tenant).known;
        assert!(!known(Some("acme")) && !known(None));
        backoff.succeeded(peer, "acme");
        assert!(known(Some("acme")) && known(None) && !known(Some("globex")));
        backoff.failed(peer, "acme", now);
        assert!(!known(Some("acme")) && !known(None));
        let group = |tenant| backoff.applicant(peer, tenant).group;
        assert!(group(Some("acme")) != group(Some("globex")) && group(None) != group(Some("acme")));
    }

    #[test]
    fn entries_are_bounded_and_the_latest_stay() {
        let (backoff, now) = (backoff(), Instant::now());
        for i in 0..100_000u32 {
            for _ in 0..3 {
                backoff.failed(IpAddr::V4(i.into()), "acme", now);
            }
        }
        let failures = lock(&backoff.failures);
        assert!(failures.recent.len() + failures.old.len() <= MAX_ENTRIES);
        drop(failures);
        assert!(backoff.check(IpAddr::V4(99_999u32.into()), "acme", now).is_err());
        assert_eq!(backoff.check(IpAddr::V4(1u32.into()), "acme", now), Ok(()));
    }

    #[test]
    fn extreme_settings_do_not_overflow() {
        let mut backoff = backoff();
        (backoff.free_attempts, backoff.first, backoff.max) = (0, Duration::MAX, Duration::MAX);
        assert_eq!(backoff.wait(u32::MAX), Duration::MAX);
        backoff.failed(address("::1"), "acme", Instant::now());
        assert!(backoff.check(address("::1"), "acme", Instant::now()).is_err());
        backoff.free_attempts = u32::MAX;
        assert_eq!(backoff.wait(3), Duration::ZERO);
    }
}
