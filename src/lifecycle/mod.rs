//! A tenant's whole life, from outside of the proxy: made, changed, erased; and the audit log of all of it.
//!
//! Acts are sagas: steps that may each run again, a journal to go on from, a way back. Nothing here is on the path of
//! traffic; a proxy that runs learns of it by the tenants' records.

pub mod apply;
pub mod audit;
pub mod copies;
pub mod create;
pub mod credentials;
pub mod destroy;
pub mod edit;
pub mod erase;
mod failure;
pub(crate) mod faults;
pub(crate) mod files;
pub mod hook;
pub mod instance;
pub(crate) mod journal;
pub mod migrate;
pub mod order;
pub mod placement;
pub(crate) mod program;
pub mod provision;
pub mod provisioner;
pub mod query;
pub mod quote;
pub mod record;
pub mod rotate;
pub mod shelf;
pub mod site;
pub mod smoke;

/// `1 table`, `2 tables`.
pub fn several<N: std::fmt::Display + PartialEq + From<u8>>(count: N, one: &str) -> String {
    format!("{count} {one}{}", if count == N::from(1) { "" } else { "s" })
}

pub use failure::Failure;
pub use order::{Order, Roles};
pub use site::Site;
