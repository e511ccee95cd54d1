//! Why an act on a tenant was not done.

use std::io;
use std::path::{Path, PathBuf};

use super::audit::AuditError;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Order(String),
    #[error("tenant {tenant}: {what} exists already; nothing was changed")]
    Exists { tenant: String, what: String },
    #[error("no tenant {tenant:?}")]
    Unknown { tenant: String },
    #[error("tenant {tenant}: another run is at work on it; wait until it has ended")]
    Busy { tenant: String },
    #[error("no place for tenant {tenant}: {why}")]
    NoPlace { tenant: String, why: String },
    #[error("instance {instance} has no admin; write [instances.{instance}.admin] into proxy.toml")]
    NoAdmin { instance: String },
    #[error("instance {instance}: {why}")]
    Connect { instance: String, why: String },
    #[error("instance {instance}: cannot {what}: {why}")]
    Sql { instance: String, what: String, why: String, sqlstate: Option<String> },
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("journal {path}: {why}", path = path.display())]
    Journal { path: PathBuf, why: String },
    #[error("smoke test of tenant {tenant} through the proxy at {proxy}: {why}")]
    Smoke { tenant: String, proxy: String, why: String },
    #[error("the system gives no random numbers for a password")]
    NoRandomness,
    /// pg_dump or pg_restore, or a program of the operator's.
    #[error("{program}: {why}")]
    Tool { program: String, why: String },
    #[error("bundle {path}: {why}", path = path.display())]
    Bundle { path: PathBuf, why: String },
    /// What was restored is not what was dumped.
    #[error("{database} on instance {instance} differs from the bundle: {}", differences.join("; "))]
    Differs { database: String, instance: String, differences: Vec<String> },
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// What had been done was taken back, or could not be.
    #[error("{step}: {cause}; {after}")]
    Step { step: &'static str, cause: Box<Failure>, after: String, undone: bool },
    #[error("fault point {0}")]
    Fault(String),
}

impl Failure {
    /// Exit statuses of the commands, see docs/TENANTS.md.
    pub fn status(&self) -> u8 {
        match self {
            Failure::Order(_) | Failure::Unknown { .. } | Failure::NoPlace { .. } | Failure::NoAdmin { .. } => 2,
            Failure::Exists { .. } | Failure::Busy { .. } => 4,
            Failure::Step { undone: false, .. } => 5,
            _ => 1,
        }
    }

    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
        move |source| Failure::File { action, path: path.to_owned(), source }
    }
}
