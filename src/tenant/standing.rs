//! A tenant's state as it is in force, and why.

use std::time::SystemTime;

use crate::config::{self, TenantState};
use crate::quota::{Gate, Gates};
use crate::wire::{PgError, sqlstate};

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    pub state: TenantState,
    /// What clients that are kept out are told.
    pub reason: Option<String>,
    /// The operator who said so; none: the record.
    pub by: Option<String>,
    pub since: SystemTime,
    /// New clients are refused, whatever the state (DISABLE of the console).
    pub disabled: bool,
}

impl Standing {
    /// What the record says.
    pub fn of(record: &config::Tenant) -> Standing {
        let (state, reason) = (record.state, record.state_reason.clone());
        Standing { state, reason, by: None, since: SystemTime::now(), disabled: false }
    }

    /// What an operator says.
    pub fn by(operator: &str, state: TenantState, reason: Option<String>) -> Standing {
        Standing { state, reason, by: Some(operator.to_owned()), since: SystemTime::now(), disabled: false }
    }

    /// What holds once `new` has replaced `old`: a changed state wins over the operator's word. None: nothing has changed.
    pub(super) fn after(&self, old: &config::Tenant, new: &config::Tenant) -> Option<Standing> {
        let changed = old.state != new.state || old.state_reason != new.state_reason;
        changed.then(|| Standing { disabled: self.disabled, ..Standing::of(new) })
    }

    /// What a client is told that is kept out, or must go.
    pub fn refusal(&self, tenant: &str) -> PgError {
        let (text, hint) = match self.state {
            TenantState::Suspended => (format!("tenant \"{tenant}\" is suspended"), "Ask the operator."),
            TenantState::Maintenance => {
                (format!("tenant \"{tenant}\" is under maintenance"), "Try again when it is over.")
            }
            TenantState::Paused => (format!("tenant \"{tenant}\" is paused"), "Try again in a while."),
            TenantState::Active | TenantState::ReadOnly => {
                (format!("tenant \"{tenant}\" takes no new clients"), "Ask the operator.")
            }
        };
        let error = PgError::fatal(sqlstate::CANNOT_CONNECT_NOW, text).with_hint(hint);
        match &self.reason {
            Some(reason) => error.with_detail(reason.clone()),
            None => error,
        }
    }

    /// Whether this role may be in.
    pub fn admits(&self, role: &str, record: &config::Tenant) -> bool {
        match self.state {
            TenantState::Active | TenantState::ReadOnly | TenantState::Paused => true,
            TenantState::Suspended => false,
            TenantState::Maintenance => record.maintenance_roles.iter().any(|other| other == role),
        }
    }

    pub(super) fn gates(&self) -> Gates {
        match self.state {
            TenantState::Paused => Gate::Paused.into(),
            TenantState::ReadOnly => Gate::ReadOnly.into(),
            TenantState::Active | TenantState::Suspended | TenantState::Maintenance => Gates::NONE,
        }
    }
}
