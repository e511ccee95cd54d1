//! `[migrate]`: how the commands that migrate go through the tenants, unless they are told otherwise.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::problem::Scope;
use super::resolve::positive;
use super::scalar::Period;

/// Defaults of `pgtenant migrate`, and what a new tenant begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct Migrate {
    /// Folder of the migrations; none: a new tenant has its template's schema.
    pub dir: Option<PathBuf>,
    /// See docs/MIGRATIONS.md; read when a command uses it. Default `canary:1,5%,25%,rest`.
    pub waves: String,
    /// Tenants at a time, in all and on one instance; default 8 and 2.
    pub parallel: u32,
    pub per_instance: u32,
    /// Failures that a run goes on with, a number or a share of the tenants; default `1%`.
    pub max_failures: String,
    /// How long a wave is watched before the next begins; default 30 s.
    pub bake: Duration,
    pub bake_limits: BakeLimits,
    /// How long a statement waits for a lock before it lets others pass; default 2 s.
    pub lock_timeout: Duration,
    /// Attempts after the first one; default 10.
    pub retries: u32,
    /// Migrate databases whose owner has others as well; default false.
    pub shared_owners: bool,
    /// HTTP endpoints of the proxies in front of the tenants; none: the one of this configuration.
    pub proxies: Vec<String>,
}

/// What a wave's tenants may do worse than before, while they are watched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BakeLimits {
    /// Share of queries that may fail beyond the share before; default 0.01.
    pub errors: f64,
    /// Fewer errors than these say nothing; default 5.
    pub min_errors: u32,
    /// A query may take so many times as long as before, and `slack` more; default 2 and 5 ms.
    pub slowdown: f64,
    pub slack: Duration,
    /// Of fewer queries than these, before or after, the time says nothing; default 20.
    pub min_queries: u32,
}

impl Default for BakeLimits {
    fn default() -> Self {
        BakeLimits { errors: 0.01, min_errors: 5, slowdown: 2.0, slack: Duration::from_millis(5), min_queries: 20 }
    }
}

/// As written.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Written {
    dir: Option<PathBuf>,
    waves: String,
    parallel: u32,
    per_instance: u32,
    max_failures: String,
    bake: Period,
    bake_errors: f64,
    bake_min_errors: u32,
    bake_slowdown: f64,
    bake_slack: Period,
    bake_min_queries: u32,
    lock_timeout: Period,
    retries: u32,
    shared_owners: bool,
    proxies: Vec<String>,
}

impl Default for Written {
    fn default() -> Self {
        let limits = BakeLimits::default();
        Written {
            dir: None,
            waves: "canary:1,5%,25%,rest".to_owned(),
            parallel: 8,
            per_instance: 2,
            max_failures: "1%".to_owned(),
            bake: Period(Duration::from_secs(30)),
            bake_errors: limits.errors,
            bake_min_errors: limits.min_errors,
            bake_slowdown: limits.slowdown,
            bake_slack: Period(limits.slack),
            bake_min_queries: limits.min_queries,
            lock_timeout: Period(Duration::from_secs(2)),
            retries: 10,
            shared_owners: false,
            proxies: Vec::new(),
        }
    }
}

pub(super) fn resolve(written: Written, mut scope: Scope<'_, '_>) -> Migrate {
    scope.require(written.parallel > 0, "parallel", "at least 1 is needed");
    scope.require(written.per_instance > 0, "per_instance", "at least 1 is needed");
    scope.require((0.0..=1.0).contains(&written.bake_errors), "bake_errors", "write a share from 0 to 1, such as 0.01");
    scope.require(written.bake_slowdown >= 1.0, "bake_slowdown", "at least 1 is needed, which is as long as before");
    Migrate {
        dir: written.dir.map(|dir| scope.path(&dir)),
        waves: written.waves,
        parallel: written.parallel,
        per_instance: written.per_instance,
        max_failures: written.max_failures,
        bake: written.bake.0,
        bake_limits: BakeLimits {
            errors: written.bake_errors,
            min_errors: written.bake_min_errors,
            slowdown: written.bake_slowdown,
            slack: written.bake_slack.0,
            min_queries: written.bake_min_queries,
        },
        lock_timeout: positive(&mut scope, "lock_timeout", written.lock_timeout),
        retries: written.retries,
        shared_owners: written.shared_owners,
        proxies: written.proxies,
    }
}
