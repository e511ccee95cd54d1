//! Backups of tenants: bundles on a shelf, made when they are due, proven by restoring them, removed when they are old.

pub mod prune;
pub mod run;
pub mod verify;
