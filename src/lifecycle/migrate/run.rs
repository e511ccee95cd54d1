//! A run: a look at every tenant, then wave by wave, with rules for stopping, and who came meanwhile at the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::{Failure, Site, faults};
use super::bake::{Sample, Verdict, Watch};
use super::run_journal::{Earlier, RunJournal};
use super::state::{Column, Report, Row, State};
use super::waves::{Assigned, MaxFailures, Waves};
use super::work::{self, Job, Note, Survey};
use super::{ACT, Target};
use crate::config::{Config, Tenant};

/// How often somebody is looked for who wants it to end.
const POLL: Duration = Duration::from_millis(100);

/// How the run goes through its tenants.
#[derive(Debug, Clone)]
pub struct Pace {
    pub waves: Waves,
    /// Tenants at a time, in all and on one instance.
    pub parallel: usize,
    pub per_instance: usize,
    pub max_failures: MaxFailures,
    /// Zero: the next wave begins at once.
    pub bake: Duration,
}

/// What is told while it goes on.
#[derive(Debug)]
pub enum Event<'a> {
    Looks { tenants: usize },
    Looked,
    Wave { number: usize, of: usize, wave: &'a Assigned },
    Note { tenant: &'a str, note: Note },
    Became { tenant: &'a str, row: &'a Row },
    Bakes { wave: &'a Assigned, time: Duration },
    Baked { wave: &'a Assigned, verdict: &'a Verdict },
    Remark(String),
}

/// Who is told.
pub type Listener = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// Which tenants are meant, asked again at the end of a run: some may be new.
pub type Selection = Box<dyn Fn() -> Result<(Arc<Config>, Vec<Arc<Tenant>>), Failure> + Send + Sync>;

/// See the module.
pub struct Run {
    pub site: Arc<Site>,
    pub job: Arc<Job>,
    pub pace: Pace,
    pub watch: Watch,
    pub listener: Listener,
    pub selection: Selection,
    /// Somebody wants it to end.
    pub interrupted: Arc<AtomicBool>,
}

/// What the tasks of a run share.
struct Shared {
    site: Arc<Site>,
    job: Arc<Job>,
    all: Semaphore,
    by_instance: BTreeMap<String, Semaphore>,
    /// Instances that could not be reached, and why: their other tenants are not tried.
    down: Mutex<HashMap<String, String>>,
    stop: AtomicBool,
    interrupted: Arc<AtomicBool>,
    listener: Listener,
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.interrupted.load(Ordering::Relaxed)
    }

    fn down(&self, instance: &str) -> Option<String> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).get(instance).cloned()
    }

    fn noticed(&self, instance: &str, failure: &Failure) {
        if let Failure::Connect { .. } = failure {
            let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
            down.entry(instance.to_owned()).or_insert_with(|| failure.to_string());
        }
    }
}

impl Run {
    /// A look at these tenants, without touching any.
    pub async fn look(&self, tenants: &[Arc<Tenant>]) -> Report {
        let begun = Instant::now();
        let shared = self.shared();
        let mut report = Report::default();
        self.look_at(&shared, tenants, &mut report).await;
        report.seconds = begun.elapsed().as_secs_f64();
        report
    }

    /// Goes through the waves; `earlier` is the run that this one goes on with.
    ///
    /// # Errors
    /// Journal or audit log cannot be written. What became of tenants is in the report.
    pub async fn go(
        &self,
        tenants: &[Arc<Tenant>],
        earlier: Option<Earlier>,
        journal: &mut RunJournal,
    ) -> Result<Report, Failure> {
        let begun = Instant::now();
        let shared = self.shared();
        let mut report = Report::default();
        self.look_at(&shared, tenants, &mut report).await;
        for (tenant, row) in report.tenants.iter().filter(|(_, row)| is_trouble(&row.state)) {
            (self.listener)(&Event::Became { tenant, row });
        }
        let pending = Self::pending(&report, tenants);
        let waves = match &earlier {
            None => self.pace.waves.assign(&pending, &self.site.config),
            Some(earlier) => again(&earlier.waves, &pending),
        };
        journal.waves(&waves)?;
        if self.failed_too_often(&report, &[]) {
            report.stopped = Some(self.too_many(&report));
        } else if let Some(earlier) = earlier.filter(|_| !waves.is_empty()) {
            self.bake_again(&earlier, journal, &mut report).await?;
        }
        if report.stopped.is_none() {
            self.all_waves(&shared, &waves, tenants, journal, &mut report).await?;
            self.newcomers(&shared, journal, &mut report).await?;
        }
        for row in report.tenants.values_mut().filter(|row| matches!(row.state, State::Pending { .. })) {
            row.state = State::NotReached;
        }
        report.seconds = begun.elapsed().as_secs_f64();
        faults::point(ACT, "ended")?;
        let unfinished = report.tenants.values().any(|row| !row.state.is_there());
        match (&report.stopped, unfinished) {
            (Some(why), _) => journal.ended(why)?,
            (None, true) => journal.ended("some tenants are not there")?,
            (None, false) => journal.clear()?,
        }
        Ok(report)
    }

    fn shared(&self) -> Arc<Shared> {
        let hosts = self.site.config.lifecycle.hosts.keys();
        Arc::new(Shared {
            site: self.site.clone(),
            job: self.job.clone(),
            all: Semaphore::new(self.pace.parallel),
            by_instance: hosts.map(|name| (name.clone(), Semaphore::new(self.pace.per_instance))).collect(),
            down: Mutex::default(),
            stop: AtomicBool::new(false),
            interrupted: self.interrupted.clone(),
            listener: self.listener.clone(),
        })
    }

    fn pending(report: &Report, tenants: &[Arc<Tenant>]) -> Vec<Arc<Tenant>> {
        let pending = |tenant: &&Arc<Tenant>| matches!(report.tenants[&tenant.id].state, State::Pending { .. });
        tenants.iter().filter(pending).cloned().collect()
    }

    async fn look_at(&self, shared: &Arc<Shared>, tenants: &[Arc<Tenant>], report: &mut Report) {
        (self.listener)(&Event::Looks { tenants: tenants.len() });
        let mut looks = JoinSet::new();
        for tenant in tenants {
            let (shared, tenant) = (shared.clone(), tenant.clone());
            looks.spawn(async move {
                let row = look(&shared, &tenant).await;
                (shared.listener)(&Event::Looked);
                (tenant.id.clone(), row)
            });
        }
        while let Some(looked) = looks.join_next().await {
            let (tenant, row) = looked.expect("a look neither panics nor is cancelled");
            report.tenants.insert(tenant, row);
        }
    }

    async fn all_waves(
        &self,
        shared: &Arc<Shared>,
        waves: &[Assigned],
        tenants: &[Arc<Tenant>],
        journal: &mut RunJournal,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let by_id: HashMap<&str, &Arc<Tenant>> = tenants.iter().map(|tenant| (tenant.id.as_str(), tenant)).collect();
        for (place, wave) in waves.iter().enumerate() {
            let is_last = place + 1 == waves.len();
            report.waves.push(wave.label.clone());
            (self.listener)(&Event::Wave { number: place + 1, of: waves.len(), wave });
            let before = match is_last || self.pace.bake.is_zero() {
                true => None,
                false => Some(self.watch.sample(&wave.tenants).await),
            };
            let members: Vec<Arc<Tenant>> =
                wave.tenants.iter().filter_map(|id| by_id.get(id.as_str())).map(|tenant| (*tenant).clone()).collect();
            self.one_wave(shared, wave, &members, journal, report).await?;
            faults::point(ACT, "wave")?;
            if self.interrupted.load(Ordering::Relaxed) {
                report.stopped = Some("interrupted".to_owned());
            } else if self.failed_too_often(report, &wave.tenants) {
                report.stopped = Some(self.too_many(report));
            } else if let Some(before) = before {
                report.stopped = self.bake(wave, before, journal).await?;
            }
            if report.stopped.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Watches a wave; gives why the next one must not begin.
    async fn bake(
        &self,
        wave: &Assigned,
        before: Result<Sample, String>,
        journal: &mut RunJournal,
    ) -> Result<Option<String>, Failure> {
        (self.listener)(&Event::Bakes { wave, time: self.pace.bake });
        let verdict = tokio::select! {
            verdict = self.watch.bake(&wave.tenants, before, self.pace.bake) => verdict,
            () = self.interruption() => return Ok(Some(format!("after wave {}: interrupted", wave.label))),
        };
        (self.listener)(&Event::Baked { wave, verdict: &verdict });
        journal.baked(&wave.label, &format!("{verdict:?}"))?;
        Ok(match verdict {
            Verdict::Bad(why) => Some(format!("after wave {}: {why}", wave.label)),
            _ => None,
        })
    }

    /// The last wave that an earlier run has gone through, where it was cut off before that was watched.
    async fn bake_again(
        &self,
        earlier: &Earlier,
        journal: &mut RunJournal,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let is_there = |tenant: &String| report.tenants.get(tenant).is_some_and(|row| row.state.is_there());
        let through = earlier.waves.iter().rfind(|wave| {
            wave.tenants.iter().all(is_there) && wave.tenants.iter().any(|tenant| earlier.states.contains_key(tenant))
        });
        if let Some(wave) = through.filter(|wave| !earlier.baked.contains(&wave.label) && !self.pace.bake.is_zero()) {
            let before = self.watch.sample(&wave.tenants).await;
            report.stopped = self.bake(wave, before, journal).await?;
        }
        Ok(())
    }

    async fn interruption(&self) {
        while !self.interrupted.load(Ordering::Relaxed) {
            tokio::time::sleep(POLL).await;
        }
    }

    async fn one_wave(
        &self,
        shared: &Arc<Shared>,
        wave: &Assigned,
        members: &[Arc<Tenant>],
        journal: &mut RunJournal,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let mut work = JoinSet::new();
        for tenant in members.iter().cloned() {
            let shared = shared.clone();
            work.spawn(async move { (tenant.id.clone(), one_tenant(&shared, &tenant).await) });
        }
        let mut told = true;
        while let Some(done) = work.join_next().await {
            let (tenant, state) = done.expect("a migration neither panics nor is cancelled");
            let state = state?;
            journal.tenant(&tenant, &state)?;
            faults::point(ACT, "tenant")?;
            if matches!(state, State::Migrated { .. }) && told {
                told = self.tell_proxies(&tenant).await;
            }
            let row = report.tenants.get_mut(&tenant).expect("it was looked at");
            (row.wave, row.state) = (Some(wave.label.clone()), state);
            (self.listener)(&Event::Became { tenant: &tenant, row });
            if report.count(Column::Failed) > self.pace.max_failures.of(report.tenants.len()) {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Says it once where that does not work.
    async fn tell_proxies(&self, tenant: &str) -> bool {
        let Err(why) = self.watch.schema_changed(tenant).await else { return true };
        let what = "the proxy was not told of the changed schemas; clients prepare anew what its pools remember when they \
                    come again, or with RECONNECT on the console";
        (self.listener)(&Event::Remark(format!("{what} ({why})")));
        false
    }

    /// Too many in all, too many of this wave, or all of this wave.
    fn failed_too_often(&self, report: &Report, wave: &[String]) -> bool {
        let failed =
            |tenant: &&String| report.tenants.get(*tenant).is_some_and(|row| row.state.column() == Column::Failed);
        let in_wave = wave.iter().filter(failed).count();
        let most = self.pace.max_failures;
        let share_of_wave = match most {
            MaxFailures::Percent(_) => in_wave > most.of(wave.len()),
            MaxFailures::Count(_) => in_wave == wave.len(),
        };
        report.count(Column::Failed) > most.of(report.tenants.len()) || (in_wave > 0 && share_of_wave)
    }

    fn too_many(&self, report: &Report) -> String {
        let failed = report.count(Column::Failed);
        format!("{failed} failed, at most {} of all and of each wave may", self.pace.max_failures)
    }

    /// Whoever has been made, or has come to be meant, since the run began.
    async fn newcomers(
        &self,
        shared: &Arc<Shared>,
        journal: &mut RunJournal,
        report: &mut Report,
    ) -> Result<(), Failure> {
        while report.stopped.is_none() {
            let (_, tenants) = match (self.selection)() {
                Ok(selected) => selected,
                Err(failure) => {
                    (self.listener)(&Event::Remark(format!("new tenants were not looked for: {failure}")));
                    break;
                }
            };
            let new: Vec<Arc<Tenant>> =
                tenants.into_iter().filter(|tenant| !report.tenants.contains_key(&tenant.id)).collect();
            if new.is_empty() {
                break;
            }
            self.look_at(shared, &new, report).await;
            let pending = Self::pending(report, &new);
            let wave = Assigned { label: "new".to_owned(), tenants: pending.iter().map(|it| it.id.clone()).collect() };
            if !pending.is_empty() {
                journal.waves(std::slice::from_ref(&wave))?;
                self.all_waves(shared, &[wave], &pending, journal, report).await?;
            }
        }
        Ok(())
    }
}

/// The waves of a run that goes on: those of before with whoever is still to come, and a last one for everybody else.
fn again(waves: &[Assigned], pending: &[Arc<Tenant>]) -> Vec<Assigned> {
    let mut left: BTreeSet<String> = pending.iter().map(|tenant| tenant.id.clone()).collect();
    let mut assigned = Vec::new();
    for wave in waves {
        let tenants: Vec<String> = wave.tenants.iter().filter_map(|tenant| left.take(tenant)).collect();
        if !tenants.is_empty() {
            assigned.push(Assigned { label: wave.label.clone(), tenants });
        }
    }
    if !left.is_empty() {
        assigned.push(Assigned { label: "rest".to_owned(), tenants: left.into_iter().collect() });
    }
    assigned
}

fn is_trouble(state: &State) -> bool {
    !matches!(state, State::UpToDate | State::Pending { .. })
}

async fn look(shared: &Shared, tenant: &Tenant) -> Row {
    let name = &tenant.instance.name;
    let looked = async {
        let instance = shared.site.instance(name)?;
        let _turn = shared.by_instance[name].acquire().await.expect("never closed");
        let _place = shared.all.acquire().await.expect("never closed");
        if let Some(why) = shared.down(name) {
            return Ok(Err(why));
        }
        work::survey(&shared.job, &instance, &target(tenant)).await.map(Ok)
    };
    let looked: Result<Result<Survey, String>, Failure> = looked.await;
    let (version, state) = match looked.inspect_err(|failure| shared.noticed(name, failure)) {
        Err(failure) => (None, State::failed(&failure)),
        Ok(Err(why)) => (None, State::Failed { why, versions: Vec::new() }),
        Ok(Ok(Survey { plan: Err(drift), version })) => (version, State::drift(&drift)),
        Ok(Ok(Survey { plan: Ok(plan), version })) if plan.is_empty() => (version, State::UpToDate),
        Ok(Ok(Survey { plan: Ok(versions), version })) => (version, State::Pending { versions }),
    };
    Row { instance: name.clone(), wave: None, version, state }
}

async fn one_tenant(shared: &Shared, tenant: &Tenant) -> Result<State, Failure> {
    let name = &tenant.instance.name;
    let instance = shared.site.instance(name)?;
    let _turn = shared.by_instance[name].acquire().await.expect("never closed");
    let _place = shared.all.acquire().await.expect("never closed");
    if shared.is_stopped() {
        return Ok(State::NotReached);
    }
    if let Some(why) = shared.down(name) {
        return Ok(State::Failed { why, versions: Vec::new() });
    }
    let what = format!("migrate {}", shared.job.goal.way().text());
    shared.site.record(&what, &tenant.id, "begun", "")?;
    let begun = Instant::now();
    let tell = |note: Note| (shared.listener)(&Event::Note { tenant: &tenant.id, note });
    let result = work::migrate(&shared.job, &instance, &target(tenant), &tell).await;
    match &result {
        Err(work::Hindrance::Failed { why, .. }) => shared.noticed(name, why),
        Ok(work::Done { left: Some(left), .. }) => (shared.listener)(&Event::Remark(format!("{}: {left}", tenant.id))),
        _ => {}
    }
    let state = State::of(result, begun.elapsed().as_secs_f64());
    let detail = serde_json::to_string(&state).unwrap_or_default();
    shared.site.record(&what, &tenant.id, if state.is_there() { "ok" } else { "failed" }, &detail)?;
    Ok(state)
}

fn target(tenant: &Tenant) -> Target<'_> {
    Target { tenant: &tenant.id, database: &tenant.database }
}
