//! A tenant's record as the API shows it: everything but secrets, which are told by their kind.

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;

use crate::config::{self, Databases};
use crate::tenant::Tenant;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub instance: String,
    pub tier: Option<String>,
    pub state: State,
    pub database: String,
    /// Further ones; `*` for all.
    pub databases: Vec<String>,
    pub roles: Vec<Role>,
    /// The role that verifiers are asked for with.
    pub auth_query_user: Option<String>,
    /// The role that backends log in as, where it is one for all.
    pub service_user: Option<String>,
    /// Networks that clients may come from; none: all.
    pub allow: Vec<String>,
    pub client_certificates: String,
    pub pool: Pool,
}

/// What a tenant is in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub state: String,
    /// What clients that are kept out are told.
    pub reason: Option<String>,
    /// The operator who said so; none: the record.
    pub by: Option<String>,
    pub seconds: u64,
    /// New clients are refused, whatever the state.
    pub disabled: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Role {
    pub name: String,
    /// `verifier`, `password`, `certificate`.
    pub login: Vec<String>,
    pub valid_until: Option<String>,
}

/// `[pool]` with the defaults filled in; times in seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pool {
    pub mode: String,
    pub max_backends: u32,
    pub max_backends_per_role: u32,
    pub min_backends: u32,
    pub queue_timeout: f64,
    pub idle_timeout: f64,
    pub lifetime: f64,
    pub max_pins: Option<u32>,
    pub max_pin_time: Option<f64>,
}

impl Record {
    pub(super) fn of(tenant: &Tenant, record: &config::Tenant) -> Self {
        let client_certificates = match (&record.client_ca, record.client_certificate_required) {
            (None, _) => "none",
            (Some(_), false) => "accepted",
            (Some(_), true) => "required",
        };
        let pool = &record.pool;
        Record {
            id: record.id.clone(),
            instance: record.instance.name.clone(),
            tier: record.tier.clone(),
            state: State::of(tenant),
            database: record.database.clone(),
            databases: match &record.databases {
                Databases::Named(names) => names.clone(),
                Databases::All => vec!["*".to_owned()],
            },
            roles: record.roles.iter().map(|(name, written)| role(name, written)).collect(),
            auth_query_user: record.auth_query.as_ref().map(|query| query.user.clone()),
            service_user: record.service.as_ref().map(|service| service.user.clone()),
            allow: record.allow.iter().map(ToString::to_string).collect(),
            client_certificates: client_certificates.to_owned(),
            pool: Pool {
                mode: pool.mode.text().to_owned(),
                max_backends: pool.max_backends,
                max_backends_per_role: pool.max_backends_per_role,
                min_backends: pool.min_backends,
                queue_timeout: pool.queue_timeout.as_secs_f64(),
                idle_timeout: pool.idle_timeout.as_secs_f64(),
                lifetime: pool.lifetime.as_secs_f64(),
                max_pins: pool.max_pins,
                max_pin_time: pool.max_pin_time.map(|time| time.as_secs_f64()),
            },
        }
    }
}

impl State {
    pub(crate) fn of(tenant: &Tenant) -> Self {
        let standing = tenant.state();
        State {
            state: standing.state.text().to_owned(),
            reason: standing.reason.clone(),
            by: standing.by.clone(),
            seconds: standing.since.elapsed().unwrap_or_default().as_secs(),
            disabled: standing.disabled,
        }
    }
}

fn role(name: &str, written: &config::Role) -> Role {
    let kinds = [
        ("verifier", written.verifier.is_some()),
        ("password", written.password.is_some()),
        ("certificate", written.certificate_cn.is_some()),
    ];
    Role {
        name: name.to_owned(),
        login: kinds.iter().filter(|(_, has)| *has).map(|(kind, _)| (*kind).to_owned()).collect(),
        valid_until: written.valid_until.and_then(|until| until.format(&Rfc3339).ok()),
    }
}
