//! The admin console: the databases `pgbouncer` and `pgtenant`, with PgBouncer's commands and answers.
//!
//! `command` reads what was asked, `reports` are the answers to SHOW, `act` carries out the other commands, `protocol`
//! talks to the client. Nothing of it is on a request's way: figures are read where they are.

mod act;
mod averages;
mod command;
mod protocol;
mod reports;
mod standing;
mod table;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

pub use protocol::{Operator, serve};

use crate::admin::survey::Survey;
use crate::auth::{Mock, ScramVerifier, Verifier, VerifierError};
use crate::config::{self, Access, Config};
use crate::drain::Drain;
use crate::listen::Hubs;
use crate::pool::Pools;
use crate::sessions::{ClientCap, Sessions};
use crate::tenant::Registry;
use averages::Averages;

/// Names that clients ask for as a database.
pub const DATABASES: [&str; 2] = ["pgbouncer", "pgtenant"];
/// Stands for the console where otherwise a tenant's id does; none begins like this.
pub const NAME: &str = "_console";
/// Clients of the console at a time, so that they cannot fill the process; they have no place under `limits.max_clients`.
const MAX_CLIENTS: usize = 64;

/// What the console shows and acts on; implemented where everything is known.
pub trait Proxy: Send + Sync + 'static {
    fn view(&self) -> View<'_>;
}

/// See [`Proxy`].
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub config: &'a ArcSwap<Config>,
    pub registry: &'a Registry,
    pub pools: &'a Pools,
    pub hubs: &'a Hubs,
    pub sessions: &'a Sessions,
    pub drain: &'a Drain,
    pub console: &'a Console,
    pub survey: &'a Survey,
}

/// What was wrong, if anything.
pub type Answer = oneshot::Sender<Result<(), String>>;

/// What only the process itself can do.
#[derive(Debug)]
pub enum Request {
    /// Read the configuration again.
    Reload(Answer),
    /// Lay a value over its files, by dotted key; or with none take it away again.
    Set {
        key: String,
        value: Option<String>,
        answer: Answer,
    },
    Shutdown(Shutdown),
}

/// How the process is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// At once.
    Now,
    /// When the transactions are over, as after SIGTERM.
    Transactions,
    /// When the clients have left of themselves.
    Clients,
}

/// The console's own state.
#[derive(Debug)]
pub struct Console {
    roles: ArcSwap<HashMap<String, Role>>,
    places: Arc<ClientCap>,
    averages: Mutex<Averages>,
    requests: mpsc::UnboundedSender<Request>,
}

/// A role of the console.
#[derive(Debug, Clone)]
pub struct Role {
    pub access: Access,
    pub verifier: Verifier,
}

impl Console {
    /// No roles yet; requests come out of the receiver.
    pub fn new() -> (Console, mpsc::UnboundedReceiver<Request>) {
        let (requests, received) = mpsc::unbounded_channel();
        let console = Console {
            roles: ArcSwap::default(),
            places: ClientCap::new(MAX_CLIENTS),
            averages: Mutex::default(),
            requests,
        };
        (console, received)
    }

    /// Takes over the configuration's roles. Passwords are turned into verifiers now, so that no login shows by its time
    /// which role has one.
    pub fn publish(&self, admin: &config::Admin, mock: &Mock) {
        let roles = admin.roles.iter().filter_map(|(name, written)| match Role::new(name, written, mock) {
            Ok(role) => Some((name.clone(), role?)),
            Err(error) => {
                tracing::error!(role = name, "no role of the console: {error}");
                None
            }
        });
        self.roles.store(Arc::new(roles.collect()));
    }

    /// Whether there is a console at all.
    pub fn is_on(&self) -> bool {
        !self.roles.load().is_empty()
    }

    pub fn role(&self, name: &str) -> Option<Role> {
        self.roles.load().get(name).cloned()
    }

    /// To be called about once a second: PgBouncer's averages are those of a period.
    pub fn tick(&self, registry: &Registry) {
        if self.is_on() {
            self.averages.lock().unwrap_or_else(PoisonError::into_inner).tick(registry);
        }
    }
}

impl Role {
    fn new(name: &str, written: &config::AdminRole, mock: &Mock) -> Result<Option<Role>, VerifierError> {
        let verifier = match (&written.verifier, &written.password) {
            (Some(text), _) => Verifier::parse(text.expose())?,
            (None, Some(password)) => {
                let mock = mock.verifier(NAME, name);
                Verifier::Scram(ScramVerifier::from_password(password.expose(), mock.salt(), mock.iterations()).0)
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Role { access: written.access, verifier }))
    }
}
