//! Why a backend could not be had.

use std::io;

use thiserror::Error;

use crate::auth::ScramClientError;
use crate::net::DialError;
use crate::wire::{PgError, ReadFault, sqlstate};

/// Tells whose fault it is, where, and what the client may hear of it.
#[derive(Debug, Error)]
pub enum ConnectError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("instance {instance}: {source}")]
    Io { instance: String, source: io::Error },
    #[error("instance {instance}: no logged-in backend within {seconds} s")]
    Timeout { instance: String, seconds: u64 },
    #[error("instance {instance}: refused role \"{role}\" at database \"{database}\": {error}")]
    Refused {
        instance: String,
        role: String,
        database: String,
        error: PgError,
        /// The ErrorResponse's payload as the instance wrote it, where that is a client's business.
        words: Option<Vec<u8>>,
    },
    #[error("instance {instance}: role \"{role}\": {source}")]
    Scram { instance: String, role: String, source: ScramClientError },
    #[error("instance {instance}: role \"{role}\": {reason}")]
    Login { instance: String, role: String, reason: &'static str },
    #[error("instance {instance}: {source}")]
    Protocol { instance: String, source: ReadFault },
    #[error("instance {instance}: is not what the record says: {what} is {found}, expected {expected}")]
    Identity { instance: String, what: &'static str, found: String, expected: String },
}

impl ConnectError {
    /// What a client is told: the instance's own words about its database or its limits; of our own configuration only
    /// that it is at fault.
    pub fn to_client(&self) -> PgError {
        match self {
            // 28xxx: the role as we log in with it, which is not the client's business.
            ConnectError::Refused { error, .. } if !error.code.starts_with("28") => error.clone(),
            ConnectError::Refused { .. } | ConnectError::Scram { .. } | ConnectError::Login { .. } => {
                PgError::error(sqlstate::CONNECTION_FAILURE, "could not log in to the tenant's database")
                    .with_hint("The operator finds the reason in the proxy's log.")
            }
            ConnectError::Identity { .. } => {
                PgError::error(sqlstate::CONNECTION_FAILURE, "the tenant's database is not where it should be")
                    .with_hint("The operator finds the reason in the proxy's log.")
            }
            _ => PgError::error(sqlstate::CONNECTION_FAILURE, "could not connect to the tenant's database"),
        }
    }

    /// The instance's own ErrorResponse, payload only, for a client that was to have the backend to itself.
    pub fn words(&self) -> Option<&[u8]> {
        match self {
            ConnectError::Refused { words, .. } => words.as_deref(),
            _ => None,
        }
    }
}
