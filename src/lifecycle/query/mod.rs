//! One query, asked of many tenants: as a role that reads and nothing else, in a transaction that only reads, within bounds of
//! time and rows; and what came of it, told for each (docs/QUERY.md).

pub mod format;
mod login;
mod merge;
mod parquet;
mod read;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub use table::{Column, Kind, Table};

use super::{Failure, Site};
use crate::config::{Query, Tenant};
use crate::lifecycle::several;

/// What is asked, and within which bounds.
#[derive(Debug, Clone)]
pub struct Ask {
    pub sql: String,
    /// Asked of the answers, as the table `all_tenants`.
    pub merge: Option<String>,
    /// For one tenant, and for the merge.
    pub timeout: Duration,
    /// Of one tenant, and of the merge.
    pub max_rows: u64,
    /// Where this command runs.
    pub region: Option<String>,
    pub scratch_instance: Option<String>,
    /// As the operator wrote it, for the audit log.
    pub selector: String,
}

/// What came of one tenant.
#[derive(Debug)]
pub enum Outcome {
    /// How many rows it gave, and whether there were more.
    Answered {
        rows: usize,
        cut: bool,
    },
    Failed(String),
    /// It was not asked.
    Skipped(String),
}

/// What came of it all.
#[derive(Debug)]
pub struct Result {
    pub table: Table,
    pub outcomes: BTreeMap<String, Outcome>,
    /// The merge gave more rows than were taken.
    pub merge_cut: bool,
}

/// Tenants, and why some of them are not asked.
pub struct Plan {
    pub asked: Vec<Arc<Tenant>>,
    pub skipped: BTreeMap<String, String>,
    /// The instance where answers are merged.
    pub scratch: Option<String>,
}

/// Who is asked, and where the answers go. A tenant that is pinned to a region is asked from there only, and its answer is
/// merged there only.
///
/// # Errors
/// There is no instance to merge on.
pub fn plan(site: &Site, tenants: Vec<Arc<Tenant>>, ask: &Ask) -> std::result::Result<Plan, Failure> {
    let stays_away = |tenant: &Arc<Tenant>| {
        let pinned = tenant.region.as_ref()?;
        match &ask.region {
            Some(here) if here == pinned => None,
            Some(here) => Some(format!("it is pinned to region {pinned:?}, and this is {here:?}")),
            None => {
                Some(format!("it is pinned to region {pinned:?}; say with --region or query.region that this is there"))
            }
        }
    };
    let mut plan = Plan { asked: Vec::new(), skipped: BTreeMap::new(), scratch: None };
    for tenant in tenants {
        match stays_away(&tenant) {
            Some(why) => _ = plan.skipped.insert(tenant.id.clone(), why),
            None => plan.asked.push(tenant),
        }
    }
    if ask.merge.is_some() && !plan.asked.is_empty() {
        plan.scratch = Some(merge::place(site, &plan.asked, ask.scratch_instance.as_deref())?);
    }
    Ok(plan)
}

/// Asks them all, and merges what they answered. Each answer is written into the audit log; `answered` hears of each.
///
/// # Errors
/// The audit log cannot be written, nobody answered, the answers cannot be put together, or the merge failed.
pub async fn run(
    site: &Arc<Site>,
    plan: Plan,
    ask: Ask,
    answered: &dyn Fn(&str),
) -> std::result::Result<Result, Failure> {
    let what = format!("--select {:?}: {}", ask.selector, ask.sql);
    let what = ask.merge.as_ref().map_or(what.clone(), |merge| format!("{what}; merged by: {merge}"));
    site.record_of_many("query", "begun", &what)?;
    let ask = Arc::new(ask);
    let answers = ask_all(site, &plan.asked, &ask, answered).await?;
    let mut outcomes: BTreeMap<String, Outcome> =
        plan.skipped.into_iter().map(|(tenant, why)| (tenant, Outcome::Skipped(why))).collect();
    let mut table = table::together(answers, &mut outcomes)?;
    let mut merge_cut = false;
    let all = &outcomes;
    if let (Some(sql), Some(place)) = (&ask.merge, &plan.scratch)
        && all.values().any(|outcome| matches!(outcome, Outcome::Answered { .. }))
    {
        let merged = merge::merge(&*site.instance(place)?, &table, sql, &ask).await;
        (table, merge_cut) = site_result(site, merged)?;
    }
    let result = Result { table, outcomes, merge_cut };
    site.record_of_many("query", "ok", &result.summary(ask.max_rows))?;
    Ok(result)
}

fn site_result<T>(site: &Site, merged: std::result::Result<T, Failure>) -> std::result::Result<T, Failure> {
    merged.inspect_err(|failure| {
        // The failure is what counts; where it cannot be written down, the begin stands there without an end.
        let _ = site.record_of_many("query", "failed", &failure.to_string());
    })
}

type Answers = BTreeMap<String, std::result::Result<read::Answer, String>>;

async fn ask_all(
    site: &Arc<Site>,
    tenants: &[Arc<Tenant>],
    ask: &Arc<Ask>,
    answered: &dyn Fn(&str),
) -> std::result::Result<Answers, Failure> {
    let Query { parallel, per_instance, max_size, .. } = site.config.query;
    let everywhere = Arc::new(Semaphore::new(parallel as usize));
    let mut on_instance: BTreeMap<&str, Arc<Semaphore>> = BTreeMap::new();
    let left = Arc::new(AtomicU64::new(max_size));
    let mut asking = JoinSet::new();
    for tenant in tenants {
        let here = on_instance.entry(&tenant.instance.name);
        let here = here.or_insert_with(|| Arc::new(Semaphore::new(per_instance as usize))).clone();
        let (site, tenant, ask) = (site.clone(), tenant.clone(), ask.clone());
        let (everywhere, left) = (everywhere.clone(), left.clone());
        asking.spawn(async move {
            // The instance's turn first: who waits for it takes nobody's place elsewhere. Both live as long as this.
            let _turns = (here.acquire().await, everywhere.acquire().await);
            let answer = read::ask(&site, &tenant, &ask, &left).await;
            (tenant.id.clone(), answer)
        });
    }
    let mut answers = Answers::new();
    while let Some(done) = asking.join_next().await {
        let (tenant, answer) = done.map_err(|error| Failure::Order(format!("a tenant's task ended: {error}")))?;
        answered(&tenant);
        let detail = answer.as_ref().map(|answer| several(answer.rows.len(), "row")).unwrap_or_default();
        let answer = site.recorded_with("query", &tenant, answer, &detail);
        match answer {
            Err(failure @ Failure::Audit(_)) => return Err(failure),
            answer => _ = answers.insert(tenant, answer.map_err(|failure| failure.to_string())),
        }
    }
    Ok(answers)
}

impl Result {
    /// The last line: who answered and who did not, and what the answers are not.
    pub fn summary(&self, max_rows: u64) -> String {
        let count = |is: fn(&Outcome) -> bool| self.outcomes.values().filter(|outcome| is(outcome)).count();
        let answered = count(|outcome| matches!(outcome, Outcome::Answered { .. }));
        let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
        let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
        let cut = count(|outcome| matches!(outcome, Outcome::Answered { cut: true, .. }));
        let mut text = format!("{answered} ok, {failed} failed, {skipped} skipped");
        if cut > 0 {
            text += &format!("; {cut} cut off at {max_rows} rows");
        }
        if self.merge_cut {
            text += &format!("; the merge cut off at {max_rows} rows");
        }
        text + "; not one consistent snapshot"
    }

    /// Exit status: 0 all there is, 1 something is missing, 2 nobody answered.
    pub fn status(&self) -> u8 {
        let whole = |outcome: &Outcome| matches!(outcome, Outcome::Answered { cut: false, .. });
        let answered = |outcome: &Outcome| matches!(outcome, Outcome::Answered { .. });
        match () {
            () if !self.outcomes.values().any(answered) => 2,
            () if self.merge_cut || !self.outcomes.values().all(whole) => 1,
            () => 0,
        }
    }
}
