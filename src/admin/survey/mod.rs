//! What tenants and instances do now, and how fast: what the page, the API and `pgtenant top` show.
//!
//! Counters are where the data path leaves them; here they are read every few seconds, so that there are rates. One
//! look is taken at most once a second, however many ask.

mod figures;
mod line;
mod quotas;
mod record;
mod score;
mod select;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use figures::{
    Backends, Client, Detail, Instance, Instances, Pinned, PoolFigures, Quota, Rates, TenantFigures, Tenants, Totals,
};
pub use quotas::{highest_use, quotas};
pub use record::{Record, State};
pub use select::{Order, Selection, Sort};

use crate::admin::console::View;
use crate::tenant::{Registry, TenantId};
use line::{Counted, Line};

/// Rates are those of the last one to two of these.
const PERIOD: Duration = Duration::from_secs(5);
/// Answers may be as old as this.
const FRESH: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub struct Survey {
    past: Mutex<Past>,
    latest: Mutex<Option<Arc<Look>>>,
}

/// The counters as they were, at the last two readings.
#[derive(Debug, Default)]
struct Past {
    earlier: Option<Reading>,
    last: Option<Reading>,
}

#[derive(Debug, Clone)]
struct Reading {
    at: Instant,
    tenants: Arc<HashMap<TenantId, Counted, ahash::RandomState>>,
}

/// All tenants at one time.
#[derive(Debug)]
pub struct Look {
    at: Instant,
    /// What the rates are of.
    window: Duration,
    lines: Vec<Line>,
}

impl Survey {
    /// To be called about once a second.
    pub fn tick(&self, registry: &Registry) {
        let now = Instant::now();
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.last.as_ref().is_some_and(|last| now.duration_since(last.at) < PERIOD) {
            return;
        }
        let tenants = registry.all().iter().map(|tenant| (tenant.id.clone(), Counted::of(&tenant.stats))).collect();
        past.earlier = past.last.replace(Reading { at: now, tenants: Arc::new(tenants) });
    }

    /// What there is to see. Takes some milliseconds where there are thousands of tenants: not on a thread that serves
    /// clients.
    pub fn look(&self, view: View<'_>) -> Arc<Look> {
        // Whoever asks meanwhile waits for this one's.
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = latest.as_ref().filter(|look| look.at.elapsed() < FRESH) {
            return look.clone();
        }
        let look = Arc::new(self.take(view));
        *latest = Some(look.clone());
        look
    }

    fn take(&self, view: View<'_>) -> Look {
        let base = {
            let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
            past.earlier.as_ref().or(past.last.as_ref()).cloned()
        };
        let at = Instant::now();
        let window = base.as_ref().map_or(Duration::ZERO, |base| at.duration_since(base.at));
        let lines = view.registry.all().into_iter().map(|tenant| {
            let before = base.as_ref().and_then(|base| base.tenants.get(&tenant.id));
            Line::of(tenant, before, window, at, view)
        });
        Look { at, window, lines: lines.collect() }
    }
}
