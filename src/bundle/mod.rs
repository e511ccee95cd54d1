//! A tenant's database as a folder: exported, checked, imported elsewhere (docs/BACKUPS.md).
//!
//! A bundle is pg_dump's directory format (`dump/`) with a manifest that says what must come out when it is restored, and
//! SHA-256 sums of every file. With recipients, every file but the sums is encrypted by age.

pub mod archive;
pub mod contents;
pub mod export;
pub mod import;
pub mod manifest;
pub mod plan;
pub mod progress;
mod record;
pub mod restore;
pub mod roles;
pub mod sealing;
pub mod seat;
pub mod sums;
pub mod tools;

pub use manifest::Manifest;

/// The folder of pg_dump within a bundle.
pub const DUMP: &str = "dump";
/// See [`Manifest`].
pub const MANIFEST: &str = "manifest.json";
