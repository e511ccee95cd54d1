//! An instance as its admin sees it: connections with a deadline, and SQL that says what it was for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::Failure;
use crate::config::{Host, InstanceAdmin, Secret};
use crate::net::{ControlConnections, ControlError, ControlPool, Place, control, with_sources};

/// From the attempt to connect to a logged-in session.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts at what fails because somebody else is at it at the same moment.
const ATTEMPTS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug, Clone)]
pub struct Instance {
    pub host: Host,
    admin: InstanceAdmin,
    pool: ControlPool,
    place: Arc<Place>,
    /// Tenants that are worked on at a time.
    pub turns: Arc<Semaphore>,
}

/// A session in the admin's own database.
pub type Session<'a> = bb8::PooledConnection<'a, ControlConnections>;

impl Instance {
    /// # Errors
    /// The instance has no admin, or its CA cannot be read.
    pub fn new(host: &Host, per_instance: u32) -> Result<Instance, Failure> {
        let name = || host.instance.name.clone();
        let admin = host.admin.clone().ok_or_else(|| Failure::NoAdmin { instance: name() })?;
        let place = || {
            let failed =
                |error: crate::net::InstanceTlsError| Failure::Connect { instance: name(), why: error.to_string() };
            Place::new(host.instance.clone()).map_err(failed)
        };
        let pool = ControlPool::new(place()?, login(&admin, &admin.database), per_instance, CONNECT_TIMEOUT);
        let turns = Arc::new(Semaphore::new(per_instance as usize));
        Ok(Instance { host: host.clone(), pool, place: Arc::new(place()?), turns, admin })
    }

    pub fn name(&self) -> &str {
        &self.host.instance.name
    }

    /// Who we are there.
    pub fn admin(&self) -> &InstanceAdmin {
        &self.admin
    }

    /// A session in the admin's database, on the instance that it should be.
    pub async fn session(&self) -> Result<Session<'_>, Failure> {
        let session = self.pool.get().await.map_err(|why| self.unreachable(why))?;
        self.identify(&session).await?;
        Ok(session)
    }

    /// A connection to a tenant's database; ends when it is dropped.
    pub async fn connect(&self, database: &str) -> Result<Client, Failure> {
        let connected =
            tokio::time::timeout(CONNECT_TIMEOUT, control(&self.place, &login(&self.admin, database))).await;
        let client =
            connected.map_err(|_| self.unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))?;
        client.map_err(|error| self.unreachable(error.to_string()))
    }

    /// A connection for looking into a tenant's database: what its owner has set for sessions in it changes nothing of
    /// what our own SQL means.
    pub async fn look(&self, database: &str) -> Result<Client, Failure> {
        let mut login = login(&self.admin, database);
        login.options("-c search_path=pg_catalog -c row_security=off -c default_transaction_read_only=off");
        let client = self.open(&login, &self.admin.user).await?;
        self.identify(&client).await?;
        Ok(client)
    }

    /// A connection as another role.
    pub async fn connect_as(&self, database: &str, role: &str, password: &Secret) -> Result<Client, Failure> {
        let mut login = tokio_postgres::Config::new();
        login.user(role).password(password.expose()).dbname(database).application_name("pgtenant migrate");
        self.open(&login, role).await
    }

    async fn open(&self, login: &tokio_postgres::Config, role: &str) -> Result<Client, Failure> {
        let unreachable = |why: String| {
            let why = self.told_once(&why).to_owned();
            Failure::Connect { instance: self.name().to_owned(), why }
        };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, control(&self.place, login)).await;
        let client = connected.map_err(|_| unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))?;
        client.map_err(|error| match error {
            ControlError::Postgres(error) => self.failed(&format!("log in as {role:?}"), &error),
            error => unreachable(error.to_string()),
        })
    }

    fn unreachable(&self, why: String) -> Failure {
        let why = format!("admin {:?}: {}", self.admin.user, self.told_once(&why));
        Failure::Connect { instance: self.name().to_owned(), why }
    }

    /// Without the instance's name, which the failure has already.
    fn told_once<'a>(&self, why: &'a str) -> &'a str {
        why.strip_prefix(&format!("instance {}: ", self.name())).unwrap_or(why)
    }

    /// A reused address must not get another's tenants, and even less lose them.
    async fn identify(&self, client: &Client) -> Result<(), Failure> {
        let Some(wanted) = self.host.instance.system_identifier else { return Ok(()) };
        let found =
            self.value(client, "ask for its identity", "SELECT system_identifier FROM pg_control_system()").await?;
        match found.as_deref() == Some(wanted.to_string().as_str()) {
            true => Ok(()),
            false => Err(self.unreachable(format!(
                "it is another cluster: system_identifier {} instead of {wanted}",
                found.unwrap_or_default()
            ))),
        }
    }

    /// Runs SQL, all of it in one transaction, again where somebody else was at the same thing at the same moment.
    pub async fn run(&self, client: &Client, what: &str, sql: &str) -> Result<(), Failure> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..ATTEMPTS {
            match client.batch_execute(sql).await {
                Err(error) if passes(&error) => {
                    // Half of it at random, so that those who met do not meet again.
                    let jitter = getrandom::u32().unwrap_or_default() % 1000;
                    tokio::time::sleep(pause / 2 + pause.mul_f64(f64::from(jitter) / 2000.0)).await;
                    pause *= 2;
                }
                result => return result.map_err(|error| self.failed(what, &error)),
            }
        }
        client.batch_execute(sql).await.map_err(|error| self.failed(what, &error))
    }

    /// Rows as text.
    pub async fn rows(&self, client: &Client, what: &str, sql: &str) -> Result<Vec<Vec<Option<String>>>, Failure> {
        let messages = client.simple_query(sql).await.map_err(|error| self.failed(what, &error))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The first column of the first row.
    pub async fn value(&self, client: &Client, what: &str, sql: &str) -> Result<Option<String>, Failure> {
        let rows = self.rows(client, what, sql).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    pub(super) fn failed(&self, what: &str, error: &tokio_postgres::Error) -> Failure {
        let why = error.as_db_error().map_or_else(
            || with_sources(error),
            |error| {
                let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
                format!("{} [{}]{hint}", error.message(), error.code().code())
            },
        );
        let sqlstate = error.code().map(|code| code.code().to_owned());
        Failure::Sql { instance: self.name().to_owned(), what: what.to_owned(), why, sqlstate }
    }
}

/// A template that is just being copied or looked at (55006), a catalogue row that another session has just changed
/// ("tuple concurrently updated", an internal error), a deadlock.
fn passes(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| match error.code().code() {
        "55006" | "40P01" | "40001" => true,
        "XX000" => error.message().contains("concurrently"),
        _ => false,
    })
}

fn login(admin: &InstanceAdmin, database: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.user(&admin.user).dbname(database).application_name("pgtenant lifecycle");
    if let Some(password) = &admin.password {
        config.password(password.expose());
    }
    config
}
