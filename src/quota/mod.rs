//! What a tenant uses of what it may: counts, rates, and who may begin a transaction. Without I/O; who waits, waits in the
//! session.
//!
//! A tenant's [`Gates`] say in one number what has to be looked at: none for a tenant without quotas.

pub mod bucket;
mod gates;
mod report;
mod short;

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use bucket::{Bucket, Rate};
pub use gates::{Gate, Gates};
pub use report::{QuotaLine, report};
pub use short::Short;

use crate::config::Quota;
use crate::metrics::{QuotaName, TenantStats};

const SECOND: u64 = 1_000_000_000;
/// Present rates are averages that forget at this pace.
const AVERAGE: Duration = Duration::from_secs(10);

/// One tenant's use. Lives as long as the tenant, across reloads and moves, as its figures do.
#[derive(Debug)]
pub struct Usage {
    begun: Instant,
    clients: AtomicU32,
    /// Transactions at work; counted only while there is a quota.
    running: AtomicU32,
    /// Of the clients, those that wait for another's transaction to end.
    waiting: AtomicU32,
    freed: Notify,
    changed: Notify,
    transactions: Bucket,
    bytes: Bucket,
    backend_time: Bucket,
    /// Present rates: transactions and bytes per second, backend seconds per minute; `f64` bits.
    rates: [AtomicU64; 3],
    /// What was counted when the rates were last looked at: those three, and the time in nanoseconds.
    counted: [AtomicU64; 4],
}

impl Default for Usage {
    fn default() -> Self {
        Usage {
            begun: Instant::now(),
            clients: AtomicU32::new(0),
            running: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            freed: Notify::new(),
            changed: Notify::new(),
            transactions: Bucket::default(),
            bytes: Bucket::default(),
            backend_time: Bucket::default(),
            rates: Default::default(),
            counted: Default::default(),
        }
    }
}

/// A client's place under `max_clients`.
#[derive(Debug)]
pub struct Client(Arc<Usage>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Relaxed);
    }
}

/// A transaction's place under `max_transactions`.
#[derive(Debug)]
pub struct Running(Arc<Usage>);

impl Drop for Running {
    fn drop(&mut self) {
        // In this order, as whoever queues looks at both the other way round.
        self.0.running.fetch_sub(1, SeqCst);
        if self.0.waiting.load(SeqCst) > 0 {
            self.0.freed.notify_one();
        }
    }
}

/// Who asks for a place under `max_transactions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    New,
    /// Has queued up, and asks once more before it waits: a place may have become free in between.
    Queued,
    /// [`Usage::freed`] has said so.
    Come,
}

/// Somebody who waits for a place under `max_transactions`: who comes later waits behind.
#[derive(Debug)]
pub struct Queued(Arc<Usage>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

impl Usage {
    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX)
    }

    /// A place for a client. All are counted, so that a quota that comes later is exact.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub fn enter(self: &Arc<Self>, quota: &Quota) -> Result<Client, Short> {
        let max = quota.max_clients.unwrap_or(u32::MAX);
        let taken = self.clients.fetch_update(Relaxed, Relaxed, |count| (count < max).then(|| count + 1));
        taken.map(|_| Client(self.clone())).map_err(|count| Short {
            quota: QuotaName::MaxClients,
            limit: max.into(),
            used: count.into(),
            wait: None,
        })
    }

    /// Reserves a transaction, to begin after the wait that is given, which is `most` at most.
    ///
    /// # Errors
    /// What was used already has to be waited for longer; nothing is taken then.
    pub fn reserve(&self, quota: &Quota, now: Instant, most: Duration) -> Result<Duration, Short> {
        let moment = self.nanos(now);
        for (name, rate, bucket) in self.paid_afterwards(quota) {
            let wait = rate.map_or(0, |rate| bucket.wait(rate, moment));
            if wait > 0 {
                return Err(self.short(quota, name, moment, wait));
            }
        }
        let Some(rate) = transactions(quota) else { return Ok(Duration::ZERO) };
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        let reserved = self.transactions.reserve(rate, 1, moment, most);
        reserved
            .map(Duration::from_nanos)
            .map_err(|wait| self.short(quota, QuotaName::TransactionsPerSecond, moment, wait))
    }

    /// A reserved transaction does not begin after all.
    pub fn give_back(&self, quota: &Quota) {
        if let Some(rate) = transactions(quota) {
            self.transactions.give_back(rate, 1);
        }
    }

    /// A place for a transaction; none are counted without a quota. Nobody overtakes those who wait.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub fn begin(self: &Arc<Self>, quota: &Quota, turn: Turn) -> Result<Option<Running>, Short> {
        let Some(max) = quota.max_transactions else { return Ok(None) };
        let waiting = || self.waiting.load(SeqCst);
        let free = match turn {
            Turn::New => waiting() == 0,
            Turn::Queued => waiting() == 1,
            Turn::Come => true,
        };
        let taken = self.running.fetch_update(SeqCst, SeqCst, |count| (free && count < max).then(|| count + 1));
        taken.map(|_| Some(Running(self.clone()))).map_err(|count| Short {
            quota: QuotaName::MaxTransactions,
            limit: max.into(),
            used: count.into(),
            wait: None,
        })
    }

    /// To be held while waiting for [`Usage::freed`].
    pub fn queue(self: &Arc<Self>) -> Queued {
        self.waiting.fetch_add(1, SeqCst);
        Queued(self.clone())
    }

    /// Until it is this waiter's turn, in the order in which they came, or the quotas have changed.
    pub async fn freed(&self) {
        tokio::select! {
            () = self.freed.notified() => {}
            () = self.changed.notified() => {}
        }
    }

    /// Until the quotas have changed.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A transaction is over, or a part of one: what it has used. The first one was reserved.
    pub fn charge(&self, quota: &Quota, now: Instant, further_transactions: u64, bytes: u64, busy: Duration) {
        let moment = self.nanos(now);
        if let Some(rate) = transactions(quota).filter(|_| further_transactions > 0) {
            self.transactions.charge(rate, further_transactions, moment);
        }
        if let Some(rate) = bytes_rate(quota) {
            self.bytes.charge(rate, bytes, moment);
        }
        if let Some(rate) = backend_rate(quota) {
            self.backend_time.charge(rate, u64::try_from(busy.as_micros()).unwrap_or(u64::MAX), moment);
        }
    }

    /// The quotas are others now: what is owed is owed under the new ones.
    pub fn adopt(&self, old: &Quota, new: &Quota, now: Instant) {
        let moment = self.nanos(now);
        let pairs = [
            (&self.transactions, transactions(old), transactions(new)),
            (&self.bytes, bytes_rate(old), bytes_rate(new)),
            (&self.backend_time, backend_rate(old), backend_rate(new)),
        ];
        for (bucket, old, new) in pairs {
            match (old, new) {
                (Some(old), Some(new)) if old != new => bucket.rescale(old, new, moment),
                (Some(_), None) => bucket.forget(),
                _ => {}
            }
        }
        self.changed.notify_waiters();
    }

    /// Looks at the present rates; to be called about once a second for tenants that have quotas.
    pub fn tick(&self, stats: &TenantStats, now: Instant) {
        let moment = self.nanos(now);
        let counts = [
            stats.transactions.load(Relaxed),
            stats.bytes_received.load(Relaxed).wrapping_add(stats.bytes_sent.load(Relaxed)),
            stats.query_micros.load(Relaxed),
        ];
        let before = self.counted[3].swap(moment, Relaxed);
        let seconds = moment.saturating_sub(before) as f64 / SECOND as f64;
        let share = 1.0 - (-seconds / AVERAGE.as_secs_f64()).exp();
        let units = [1.0, 1.0, 60.0 / 1e6];
        for ((count, unit), (counted, rate)) in counts.iter().zip(units).zip(self.counted.iter().zip(&self.rates)) {
            let added = count.wrapping_sub(counted.swap(*count, Relaxed)) as f64;
            // The first look has nothing to compare with.
            if before > 0 && seconds > 0.0 {
                let average = f64::from_bits(rate.load(Relaxed));
                rate.store((average + share * (added / seconds * unit - average)).to_bits(), Relaxed);
            }
        }
    }

    fn rate(&self, index: usize) -> f64 {
        f64::from_bits(self.rates[index].load(Relaxed))
    }

    fn paid_afterwards(&self, quota: &Quota) -> [(QuotaName, Option<Rate>, &Bucket); 2] {
        [
            (QuotaName::BytesPerSecond, bytes_rate(quota), &self.bytes),
            (QuotaName::BackendSeconds, backend_rate(quota), &self.backend_time),
        ]
    }

    /// Use is what has not been paid for yet: what the burst allows, or more.
    fn short(&self, quota: &Quota, name: QuotaName, moment: u64, wait: u64) -> Short {
        let owed = |bucket: &Bucket, rate: Option<Rate>| rate.map_or(0.0, |rate| bucket.owed(rate, moment));
        let (limit, used) = match name {
            QuotaName::BytesPerSecond => {
                (quota.bytes_per_second.unwrap_or_default() as f64, owed(&self.bytes, bytes_rate(quota)))
            }
            QuotaName::BackendSeconds => {
                let used = owed(&self.backend_time, backend_rate(quota)) / 1e6;
                (quota.backend_seconds_per_minute.unwrap_or_default().into(), used)
            }
            _ => {
                let used = owed(&self.transactions, transactions(quota));
                (quota.transactions_per_second.unwrap_or_default().into(), used)
            }
        };
        Short { quota: name, limit, used, wait: Some(Duration::from_nanos(wait)) }
    }
}

fn transactions(quota: &Quota) -> Option<Rate> {
    let units = quota.transactions_per_second?.into();
    Some(Rate { units, per: SECOND, burst: quota.transactions_burst.map_or(units, u64::from) })
}

fn bytes_rate(quota: &Quota) -> Option<Rate> {
    let units = quota.bytes_per_second?;
    Some(Rate { units, per: SECOND, burst: quota.bytes_burst.unwrap_or(units) })
}

/// In microseconds; a minute's worth may be used at once.
fn backend_rate(quota: &Quota) -> Option<Rate> {
    let units = u64::from(quota.backend_seconds_per_minute?) * 1_000_000;
    Some(Rate { units, per: 60 * SECOND, burst: units })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(change: impl FnOnce(&mut Quota)) -> Quota {
        let mut quota = Quota::default();
        change(&mut quota);
        quota
    }

    #[test]
    fn clients_and_transactions_have_their_places() {
        let usage = Arc::new(Usage::default());
        let one = quota(|quota| {
            quota.max_clients = Some(1);
            quota.max_transactions = Some(1);
        });
        let client = usage.enter(&one).unwrap();
        let short = usage.enter(&one).unwrap_err();
        assert_eq!((short.quota, short.limit, short.used), (QuotaName::MaxClients, 1.0, 1.0));
        drop(client);
        assert!(usage.enter(&one).is_ok());
        let running = usage.begin(&one, Turn::New).unwrap();
        assert_eq!(usage.begin(&one, Turn::Come).unwrap_err().quota, QuotaName::MaxTransactions);
        let queued = usage.queue();
        drop(running);
        assert!(usage.begin(&one, Turn::New).is_err(), "nobody overtakes");
        assert!(usage.begin(&one, Turn::Come).is_ok());
        drop(queued);
        assert!(usage.begin(&one, Turn::New).is_ok());
        assert!(usage.begin(&Quota::default(), Turn::New).unwrap().is_none(), "not counted");
    }

    #[test]
    fn a_transaction_is_reserved_and_paid_for() {
        let (usage, now) = (Usage::default(), Instant::now());
        let bounded = quota(|quota| {
            quota.transactions_per_second = Some(10);
            quota.transactions_burst = Some(1);
            quota.bytes_per_second = Some(1000);
            quota.backend_seconds_per_minute = Some(60);
        });
        assert_eq!(usage.reserve(&bounded, now, Duration::ZERO), Ok(Duration::ZERO));
        let short = usage.reserve(&bounded, now, Duration::ZERO).unwrap_err();
        assert_eq!((short.quota, short.wait), (QuotaName::TransactionsPerSecond, Some(Duration::from_millis(100))));
        assert_eq!(usage.reserve(&bounded, now, Duration::from_secs(1)), Ok(Duration::from_millis(100)));
        usage.give_back(&bounded);
        let later = now + Duration::from_secs(1);
        usage.charge(&bounded, later, 0, 3000, Duration::from_secs(61));
        assert_eq!(usage.reserve(&bounded, later, Duration::ZERO).unwrap_err().quota, QuotaName::BytesPerSecond);
        let free = quota(|quota| quota.backend_seconds_per_minute = Some(60));
        usage.adopt(&bounded, &free, later);
        let short = usage.reserve(&free, later, Duration::ZERO).unwrap_err();
        assert_eq!((short.quota, short.wait), (QuotaName::BackendSeconds, Some(Duration::from_secs(1))));
        assert_eq!(usage.reserve(&Quota::default(), later, Duration::ZERO), Ok(Duration::ZERO));
    }

    #[test]
    fn rates_are_averages_of_late() {
        let (usage, stats) = (Usage::default(), TenantStats::default());
        let begun = Instant::now();
        for second in 1..=60 {
            stats.transactions.fetch_add(7, Relaxed);
            stats.query_micros.fetch_add(500_000, Relaxed);
            usage.tick(&stats, begun + Duration::from_secs(second));
        }
        assert!(
            (usage.rate(0) - 7.0).abs() < 0.1 && (usage.rate(2) - 30.0).abs() < 0.5,
            "{} {}",
            usage.rate(0),
            usage.rate(2)
        );
    }
}
