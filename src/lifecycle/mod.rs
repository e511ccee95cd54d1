//! A tenant's whole life, from outside of the proxy: made, changed, erased; and the audit log of all of it.

pub mod audit;
mod files;
