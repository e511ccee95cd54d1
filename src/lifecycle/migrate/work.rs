//! Runs the migrations of one tenant: each with its entry in the history in one transaction, or, without a transaction,
//! statement by statement with a note behind each.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, SimpleQueryMessage};

use super::super::instance::Instance;
use super::super::quote::{identifier, literal};
use super::super::{Failure, faults};
use super::folder::{Folder, Migration};
use super::history::{self, Change, Took};
use super::plan::{self, Drift, Goal, Plan, Unfinished, Way};
use super::script::{Group, Kind, Script, Statement};
use super::seat::Seat;
use super::{ACT, Patience, Target};

/// What is done to every tenant of a run.
#[derive(Debug)]
pub struct Job {
    pub folder: Folder,
    pub goal: Goal,
    pub patience: Patience,
    pub shared_owners: bool,
    /// Who is told in the history.
    pub who: String,
}

/// What a look at a tenant has told.
#[derive(Debug)]
pub struct Survey {
    pub plan: Result<Plan, Vec<Drift>>,
    /// The newest that is applied.
    pub version: Option<i64>,
}

/// What was done to a tenant.
#[derive(Debug, Default)]
pub struct Done {
    pub versions: Vec<i64>,
    /// Attempts that ended because of somebody's lock.
    pub retries: u32,
    /// What could not be tidied up.
    pub left: Option<String>,
}

/// Why a tenant is not where it should be.
#[derive(Debug)]
pub enum Hindrance {
    Drift(Vec<Drift>),
    /// After so many migrations that are done.
    Failed {
        why: Failure,
        done: Done,
    },
}

impl From<Failure> for Hindrance {
    fn from(why: Failure) -> Hindrance {
        Hindrance::Failed { why, done: Done::default() }
    }
}

/// What is told while the work goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    Runs {
        version: i64,
    },
    /// Somebody's lock is in the way: the next attempt comes after the pause.
    Waits {
        version: i64,
        attempt: u32,
        pause: Duration,
    },
}

/// A look, without touching anything: one query where there is nothing to do.
pub async fn survey(job: &Job, instance: &Instance, target: &Target<'_>) -> Result<Survey, Failure> {
    let admin = instance.look(target.database).await?;
    if let Goal::Up { to, .. } = job.goal {
        let hash = history::hash(instance, &admin).await?;
        if hash.is_some_and(|hash| hash == job.folder.hash(to)) {
            let last = job.folder.migrations.iter().rfind(|it| to.is_none_or(|to| it.version <= to));
            return Ok(Survey { plan: Ok(Plan::new()), version: last.map(|it| it.version) });
        }
    }
    let entries = history::entries(instance, &admin).await?;
    let version = entries.iter().filter(|entry| entry.unfinished.is_none()).map(|entry| entry.version).max();
    Ok(Survey { plan: plan::plan(&job.folder, &entries, &job.goal), version })
}

/// Does what is to be done; what is done stays, also when something behind it fails.
///
/// # Errors
/// See [`Hindrance`].
pub async fn migrate(
    job: &Job,
    instance: &Instance,
    target: &Target<'_>,
    tell: &(dyn Fn(Note) + Send + Sync),
) -> Result<Done, Hindrance> {
    let admin = instance.look(target.database).await?;
    let entries = history::entries(instance, &admin).await?;
    if plan::plan(&job.folder, &entries, &job.goal).map_err(Hindrance::Drift)?.is_empty() {
        return Ok(Done::default());
    }
    let seat = Seat::take(instance, admin, target, job.shared_owners, job.patience.lock_timeout).await?;
    let mut run = Run { job, instance, target, seat, tell, done: Done::default() };
    // Another run may have been here before the lock was ours.
    let result = match plan::plan(&job.folder, &run.seat.history, &job.goal) {
        Ok(plan) => run.all(&plan).await.map_err(Some),
        Err(drift) => {
            let _ = run.seat.leave().await;
            return Err(Hindrance::Drift(drift));
        }
    };
    let Run { seat, mut done, .. } = run;
    let left = seat.leave().await;
    match (result, left) {
        (Err(why), _) => Err(Hindrance::Failed { why: why.expect("a failure"), done }),
        (Ok(()), left) => {
            done.left = left.err().map(|failure| failure.to_string());
            Ok(done)
        }
    }
}

struct Run<'a> {
    job: &'a Job,
    instance: &'a Instance,
    target: &'a Target<'a>,
    seat: Seat<'a>,
    tell: &'a (dyn Fn(Note) + Send + Sync),
    done: Done,
}

/// Why a statement did not run.
struct Trouble {
    error: tokio_postgres::Error,
    line: Option<usize>,
}

impl Trouble {
    fn is(&self, codes: &[&str]) -> bool {
        self.error.code().is_some_and(|code| codes.contains(&code.code()))
    }
}

fn at_no_line(error: tokio_postgres::Error) -> Trouble {
    Trouble { error, line: None }
}

/// Somebody's lock was in the way, or two waited for each other (PostgreSQL manual, appendix A).
const LOCKED: [&str; 3] = ["55P03", "40P01", "40001"];
/// "cannot run inside a transaction block", and COMMIT in a procedure or DO block.
const NOT_IN_A_TRANSACTION: [&str; 2] = ["25001", "2D000"];
const UNDEFINED_OBJECT: &str = "42704";

impl Run<'_> {
    async fn all(&mut self, plan: &Plan) -> Result<(), Failure> {
        for &version in plan {
            let migration = self.job.folder.get(version).expect("a plan has versions of the folder");
            (self.tell)(Note::Runs { version });
            let way = self.job.goal.way();
            let script = match way {
                Way::Up => &migration.up,
                Way::Down => migration.down.as_ref().expect("a plan without a way down is drift"),
            };
            match script.transaction {
                true => self.in_one_transaction(migration, script).await?,
                false => self.group_by_group(migration, script, way).await?,
            }
            self.done.versions.push(version);
            self.seat.tidy(self.target.tenant, self.job.patience.lock_timeout).await?;
        }
        Ok(())
    }

    async fn in_one_transaction(&mut self, migration: &Migration, script: &Script) -> Result<(), Failure> {
        let nothing = Group::default();
        let group = script.groups.first().unwrap_or(&nothing);
        let mut history = self.seat.history.clone();
        let change = match self.job.goal.way() {
            Way::Up => Change::applied(migration, &self.job.who, Took::InTransaction),
            Way::Down => Change::removed(migration),
        };
        let record = change.sql(&mut history);
        self.patiently(migration, group, &record, false).await?;
        self.seat.history = history;
        faults::point(ACT, "applied")
    }

    /// Tries again as long as it is somebody's lock that is in the way. False: it has to run alone, and `may_be_alone`.
    async fn patiently(
        &mut self,
        migration: &Migration,
        group: &Group,
        record: &str,
        may_be_alone: bool,
    ) -> Result<bool, Failure> {
        let mut tried = 0;
        loop {
            let trouble = match together(&self.seat.work, group, record).await {
                Ok(()) => return Ok(true),
                Err(trouble) if may_be_alone && trouble.is(&NOT_IN_A_TRANSACTION) => return Ok(false),
                Err(trouble) => trouble,
            };
            self.wait_or_fail(migration, &trouble, &mut tried).await?;
        }
    }

    /// Waits where it was somebody's lock, and there are attempts left.
    async fn wait_or_fail(&mut self, migration: &Migration, trouble: &Trouble, tried: &mut u32) -> Result<(), Failure> {
        if !trouble.is(&LOCKED) || *tried == self.job.patience.retries {
            return Err(self.failed(migration, trouble, *tried));
        }
        *tried += 1;
        self.done.retries += 1;
        let pause = self.job.patience.pause(*tried, getrandom::u32().unwrap_or_default());
        (self.tell)(Note::Waits { version: migration.version, attempt: *tried, pause });
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn failed(&self, migration: &Migration, trouble: &Trouble, tried: u32) -> Failure {
        let line = trouble.line.map(|line| format!(", line {line}")).unwrap_or_default();
        let tried = match tried {
            0 => String::new(),
            tried => format!(" (attempt {} of {})", tried + 1, self.job.patience.retries + 1),
        };
        self.instance.failed(&format!("run {migration}{line}{tried}"), &trouble.error)
    }

    async fn group_by_group(&mut self, migration: &Migration, script: &Script, way: Way) -> Result<(), Failure> {
        let before = self.seat.history.iter().find(|entry| entry.version == migration.version);
        let before = before.and_then(|entry| entry.unfinished.clone());
        let begun = Instant::now();
        let start = before.as_ref().map_or(0, |unfinished| unfinished.done);
        for (place, group) in script.groups.iter().enumerate().skip(start) {
            let tried_before = before.as_ref().filter(|_| place == start);
            let cut_off = tried_before.is_some_and(|unfinished| unfinished.running);
            let is_last = place + 1 == script.groups.len();
            let seconds = begun.elapsed().as_secs_f64();
            let after = |who| match (is_last, way) {
                (true, Way::Up) => Change::applied(migration, who, Took::Seconds(seconds)),
                (true, Way::Down) => Change::removed(migration),
                (false, _) => Change::unfinished(migration, Unfinished { way, done: place + 1, running: false }, who),
            };
            let mut alone =
                cut_off || (group.begin.is_none() && group.statements.iter().any(|it| it.kind.runs_alone()));
            if !alone {
                let mut history = self.seat.history.clone();
                let record = after(&self.job.who).sql(&mut history);
                let tried = self.patiently(migration, group, &record, group.begin.is_none()).await?;
                alone = !tried;
                if tried {
                    self.seat.history = history;
                }
            }
            if alone {
                let statement = group.statements.first().expect("a group has statements");
                let begun = Unfinished { way, done: place, running: true };
                self.alone(migration, statement, begun, tried_before.map(|_| cut_off)).await?;
                faults::point(ACT, "alone")?;
                let record = after(&self.job.who).sql(&mut self.seat.history);
                self.note(&record).await?;
            }
            faults::point(ACT, "group")?;
        }
        if script.groups.is_empty() {
            let change = match way {
                Way::Up => Change::applied(migration, &self.job.who, Took::InTransaction),
                Way::Down => Change::removed(migration),
            };
            let record = change.sql(&mut self.seat.history);
            self.note(&record).await?;
        }
        Ok(())
    }

    async fn note(&self, record: &str) -> Result<(), Failure> {
        let sql = format!("BEGIN;{record}COMMIT");
        self.seat.work.batch_execute(&sql).await.map_err(|error| self.instance.failed("write the history", &error))
    }

    /// A statement outside of any transaction: before it a note that it is begun, since afterwards nobody can tell.
    /// `before`: an earlier run has tried it, and was cut off in it or not.
    async fn alone(
        &mut self,
        migration: &Migration,
        statement: &Statement,
        begun: Unfinished,
        before: Option<bool>,
    ) -> Result<(), Failure> {
        let cut_off = before == Some(true);
        let name = match &statement.kind {
            Kind::ConcurrentIndex(Some(name)) => Some(name.as_str()),
            Kind::ConcurrentIndex(None) if cut_off => {
                return nobody_knows(migration, statement, "it was cut off, and its index has no name to look for");
            }
            Kind::Ordinary | Kind::MayCommit if cut_off => {
                return nobody_knows(migration, statement, "it was cut off, and it may have run or not");
            }
            _ => None,
        };
        if let (true, Some(name)) = (cut_off, name)
            && self.index(name).await? == Some(true)
        {
            return Ok(());
        }
        let record = Change::unfinished(migration, begun.clone(), &self.job.who).sql(&mut self.seat.history);
        self.note(&record).await?;
        faults::point(ACT, "begun")?;
        let mut tried = 0;
        loop {
            let ours = name.filter(|_| before.is_some() || tried > 0);
            let Err(trouble) = self.attempt(statement, ours).await else { return Ok(()) };
            if cut_off && trouble.is(&[UNDEFINED_OBJECT]) && statement.kind == Kind::Alone {
                // It drops an index, and had done so.
                return Ok(());
            }
            // Without a name each attempt would leave another index behind; what has committed must not run again.
            let result = match statement.kind {
                Kind::ConcurrentIndex(None) | Kind::MayCommit => Err(self.failed(migration, &trouble, tried)),
                _ => self.wait_or_fail(migration, &trouble, &mut tried).await,
            };
            if let Err(failure) = result {
                if let Some(name) = name {
                    let _ = self.drop_invalid(name).await;
                }
                if statement.kind != Kind::MayCommit {
                    self.not_run(migration, &begun).await;
                }
                return Err(failure);
            }
        }
    }

    /// `ours`: an index that an earlier attempt may have left half built, and that is in the way.
    async fn attempt(&self, statement: &Statement, ours: Option<&str>) -> Result<(), Trouble> {
        if let Some(name) = ours {
            self.drop_invalid(name).await?;
        }
        let run = self.seat.work.batch_execute(&statement.sql).await;
        run.map_err(|error| Trouble { error, line: Some(statement.line) })
    }

    /// A statement has failed, and is known not to have run. Where the connection is lost, nothing is known, and the note
    /// cannot be written either.
    async fn not_run(&mut self, migration: &Migration, begun: &Unfinished) {
        let change = match begun.done {
            // As if it had never been begun: its file may be corrected.
            0 if begun.way == Way::Up => Change::removed(migration),
            0 => Change::applied(migration, &self.job.who, Took::Unknown),
            _ => Change::unfinished(migration, Unfinished { running: false, ..begun.clone() }, &self.job.who),
        };
        let record = change.sql(&mut self.seat.history);
        let _ = self.note(&record).await;
    }

    /// Whether an index of this name is valid; none: there is none.
    async fn index(&self, name: &str) -> Result<Option<bool>, Failure> {
        let found = self.seat.work.simple_query(&index_sql(name)).await;
        found.map(|rows| is_valid(&rows)).map_err(|error| self.instance.failed("look for the index", &error))
    }

    async fn drop_invalid(&self, name: &str) -> Result<(), Trouble> {
        let found = self.seat.work.simple_query(&index_sql(name)).await.map_err(at_no_line)?;
        if is_valid(&found) != Some(false) {
            return Ok(());
        }
        let sql = format!("DROP INDEX CONCURRENTLY IF EXISTS {}", identifier(name));
        self.seat.work.batch_execute(&sql).await.map_err(at_no_line)
    }
}

fn index_sql(name: &str) -> String {
    format!(
        "SELECT indisvalid FROM pg_catalog.pg_index JOIN pg_catalog.pg_class c ON c.oid = indexrelid
          WHERE relname = {} AND pg_catalog.pg_table_is_visible(c.oid)",
        literal(name)
    )
}

fn is_valid(rows: &[SimpleQueryMessage]) -> Option<bool> {
    rows.iter().find_map(|row| match row {
        SimpleQueryMessage::Row(row) => Some(row.get(0) == Some("t")),
        _ => None,
    })
}

fn nobody_knows(migration: &Migration, statement: &Statement, what: &str) -> Result<(), Failure> {
    Err(Failure::Order(format!(
        "{migration}, line {}: {what}; look at the database, then say pgtenant migrate repair --retry {version} to run it \
         again, or --mark-applied {version} when all of it is done",
        statement.line,
        version = migration.version
    )))
}

/// All in one transaction, or nothing.
async fn together(work: &Client, group: &Group, record: &str) -> Result<(), Trouble> {
    let tried = async {
        work.batch_execute(group.begin.as_deref().unwrap_or("BEGIN")).await.map_err(at_no_line)?;
        for statement in &group.statements {
            let run = work.batch_execute(&statement.sql).await;
            run.map_err(|error| Trouble { error, line: Some(statement.line) })?;
        }
        work.batch_execute(record).await.map_err(at_no_line)?;
        struck(work).await?;
        work.batch_execute("COMMIT").await.map_err(at_no_line)
    };
    let result = tried.await;
    if result.is_err() && !work.is_closed() {
        work.batch_execute("ROLLBACK").await.map_err(at_no_line)?;
    }
    result
}

/// Where tests end the program before a COMMIT.
async fn struck(work: &Client) -> Result<(), Trouble> {
    match faults::point(ACT, "before-commit") {
        Ok(()) => Ok(()),
        Err(_) => work.batch_execute("SELECT 1/0").await.map_err(at_no_line),
    }
}
