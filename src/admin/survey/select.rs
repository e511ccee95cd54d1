//! Which tenants, in which order, and how many of them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::Look;
use super::figures::{Backends, Client, Detail, Instance, Instances, Pinned, PoolFigures, Tenants, Totals};
use super::line::Line;
use super::record::Record;
use crate::admin::console::View;
use crate::drain::Phase;
use crate::metrics::Label;
use crate::pool::{Counts, Pool};
use crate::sessions::{Activity, Session};

/// Tenants in one answer.
pub const MOST: usize = 1000;
/// Clients of a tenant that are shown one by one.
const CLIENTS: usize = 100;

/// What is sorted by; numbers the highest first, names from a to z.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// Who hurts.
    #[default]
    Score,
    Id,
    Instance,
    Clients,
    Waiting,
    /// Time that clients waited.
    Wait,
    Backends,
    /// The quota closest to its limit.
    Use,
    Queries,
    Errors,
    Pins,
    /// Time that backends were busy.
    Busy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    Asc,
    Desc,
}

/// The query part of `/api/v1/tenants`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    pub sort: Sort,
    /// None: the sort's own.
    pub order: Option<Order>,
    /// Words that must all stand in id, instance, region, tier, state or the reasons of the score.
    pub filter: String,
    pub limit: usize,
    pub offset: usize,
}

impl Default for Selection {
    fn default() -> Self {
        Selection { sort: Sort::Score, order: None, filter: String::new(), limit: 50, offset: 0 }
    }
}

impl Selection {
    /// `words` are the filter's, in lower case.
    fn picks(words: &[String], line: &Line) -> bool {
        if words.is_empty() {
            return true;
        }
        let (record, state) = (&line.record, line.state());
        let holds = |word: &String| {
            [record.id.as_str(), record.instance.name.as_str(), state]
                .into_iter()
                .chain(record.instance.region.as_deref())
                .chain(record.tier.as_deref())
                .chain(line.score.why.iter().copied())
                .any(|text| text.to_ascii_lowercase().contains(word.as_str()))
        };
        words.iter().all(holds)
    }

    fn compare(&self, a: &Line, b: &Line) -> Ordering {
        let number = |line: &Line| match self.sort {
            Sort::Score => line.score.value,
            Sort::Clients => line.clients as f64,
            Sort::Waiting => line.waiting as f64,
            Sort::Wait => line.rates.wait_seconds,
            Sort::Backends => f64::from(line.counts.active + line.counts.connecting),
            Sort::Use => line.highest_use,
            Sort::Queries => line.rates.queries,
            Sort::Errors => line.rates.errors,
            Sort::Pins => line.pins as f64,
            Sort::Busy => line.rates.backend_seconds,
            Sort::Id | Sort::Instance => 0.0,
        };
        let by_name = self.sort == Sort::Instance;
        let names = |line: &Line| if by_name { line.record.instance.name.clone() } else { String::new() };
        let falling = !matches!(self.sort, Sort::Id | Sort::Instance);
        let own = match (falling, by_name) {
            (true, _) => number(b).total_cmp(&number(a)),
            (false, true) => names(a).cmp(&names(b)),
            (false, false) => a.record.id.cmp(&b.record.id),
        };
        let turned = match (self.order, falling) {
            (Some(Order::Asc), true) | (Some(Order::Desc), false) => own.reverse(),
            _ => own,
        };
        // Those alike by this are told apart by what they do, and at last by their names, so that rows do not dance.
        turned
            .then_with(|| b.rates.queries.round().total_cmp(&a.rates.queries.round()))
            .then_with(|| b.clients.cmp(&a.clients))
            .then_with(|| a.record.id.cmp(&b.record.id))
    }
}

fn backends(counts: Counts) -> Backends {
    Backends { active: counts.active.into(), idle: counts.idle.into(), connecting: counts.connecting.into() }
}

fn add(sum: &mut Backends, counts: Counts) {
    sum.active += u64::from(counts.active);
    sum.idle += u64::from(counts.idle);
    sum.connecting += u64::from(counts.connecting);
}

impl Look {
    /// The tenants that `selection` picks, in its order, from its offset to its limit.
    pub fn tenants(&self, selection: &Selection, view: View<'_>) -> Tenants {
        let words: Vec<String> = selection.filter.split_whitespace().map(str::to_ascii_lowercase).collect();
        let mut picked: Vec<&Line> = self.lines.iter().filter(|line| Selection::picks(&words, line)).collect();
        let matched = picked.len();
        let wanted = selection.offset.saturating_add(selection.limit.min(MOST));
        if wanted < picked.len() && wanted > 0 {
            // Most of thousands are not asked for: they need not be in order.
            picked.select_nth_unstable_by(wanted - 1, |a, b| selection.compare(a, b));
        }
        picked.truncate(wanted);
        picked.sort_by(|a, b| selection.compare(a, b));
        Tenants {
            window_seconds: self.window.as_secs_f64(),
            draining: view.drain.phase() != Phase::Running,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            total: self.lines.len(),
            matched,
            totals: self.totals(),
            tenants: picked.iter().skip(selection.offset).map(|line| line.figures()).collect(),
        }
    }

    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for line in &self.lines {
            totals.clients += line.clients;
            totals.waiting += line.waiting;
            totals.pins += line.pins;
            add(&mut totals.backends, line.counts);
            totals.rates.add(&line.rates);
            totals.hurting += usize::from(line.score.value > 0.0);
        }
        totals
    }

    /// The instances of the configuration, those with the least headroom first.
    pub fn instances(&self, view: View<'_>) -> Instances {
        let config = view.config.load();
        let empty = |instance: &std::sync::Arc<crate::config::Instance>| Instance {
            name: instance.name.clone(),
            address: instance.address.to_string(),
            region: instance.region.clone(),
            tenants: 0,
            clients: 0,
            waiting: 0,
            backends: Backends::default(),
            max_backends: instance.max_backends.into(),
            headroom: 0,
            rates: Default::default(),
        };
        let mut sums: BTreeMap<&str, Instance> =
            config.instances.iter().map(|(name, instance)| (name.as_str(), empty(instance))).collect();
        for line in &self.lines {
            let Some(sum) = sums.get_mut(line.record.instance.name.as_str()) else { continue };
            sum.tenants += 1;
            sum.clients += line.clients;
            sum.waiting += line.waiting;
            add(&mut sum.backends, line.counts);
            sum.rates.add(&line.rates);
        }
        let mut instances: Vec<Instance> = sums.into_values().collect();
        for instance in &mut instances {
            let taken = instance.backends.active + instance.backends.connecting;
            instance.headroom = instance.max_backends.saturating_sub(taken);
        }
        let free = |instance: &Instance| instance.headroom as f64 / instance.max_backends.max(1) as f64;
        instances.sort_by(|a, b| free(a).total_cmp(&free(b)).then_with(|| a.name.cmp(&b.name)));
        Instances { instances }
    }

    /// All about one tenant; none where there is no such one.
    pub fn detail(&self, id: &str, view: View<'_>) -> Option<Detail> {
        let line = self.lines.iter().find(|line| line.record.id == id)?;
        let now = Instant::now();
        let pool = |pool: &Pool| {
            let waited = pool.waits_since().map(|since| now.saturating_duration_since(since)).unwrap_or_default();
            let counts = pool.counts();
            PoolFigures {
                database: pool.name.database.clone(),
                role: pool.name.role.clone(),
                backends: backends(counts),
                waiting: counts.waiting.into(),
                longest_wait_seconds: waited.as_secs_f64(),
            }
        };
        let sessions: Vec<_> =
            view.sessions.all().into_iter().filter(|session| session.tenant.id.as_str() == id).collect();
        Some(Detail {
            tenant: line.detailed(),
            record: Record::of(&line.tenant, &line.record),
            pools: view.pools.pools(&line.tenant).iter().map(|it| pool(it)).collect(),
            clients: sessions.iter().take(CLIENTS).map(|session| client(session)).collect(),
            pinned: sessions.iter().filter_map(|session| pinned(session, now)).take(CLIENTS).collect(),
        })
    }
}

fn client(session: &Session) -> Client {
    let about = &session.about;
    let state = match session.activity() {
        Activity::Idle => "idle",
        Activity::Waiting => "waiting",
        Activity::Active(_) => "active",
    };
    Client {
        id: session.id,
        role: about.role.clone(),
        database: about.pool.name.database.clone(),
        state: state.to_owned(),
        address: about.address.map(|address| address.to_string()),
        tls: about.tls.is_some(),
        application_name: about.application_name.to_string(),
        connected_seconds: SystemTime::now().duration_since(about.since).unwrap_or_default().as_secs(),
    }
}

fn pinned(session: &Session, now: Instant) -> Option<Pinned> {
    let pinned = session.pinned()?;
    Some(Pinned {
        client: session.id,
        reasons: pinned.pins.iter().map(|pin| pin.text().to_owned()).collect(),
        seconds: now.saturating_duration_since(pinned.since).as_secs(),
    })
}
