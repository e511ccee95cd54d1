//! pgtenant: one Postgres endpoint for all tenants; every tenant its own database.
//!
//! The modules in reading order; each uses only those above it. A client's connection goes straight down:
//!
//! ```text
//! listener ▶ session: encrypt ▶ startup ▶ resolve ▶ authenticate ▶ welcome ▶ serve
//!                                            │            │                    │
//!                                         tenant        auth           pool ▶ backend ▶ PostgreSQL
//!                                       (registry,   (SCRAM, md5)     (ledger)   │
//!                                        verifiers)                            relay
//! ```

// What goes over the wire, and what is written in it, without I/O.
pub mod wire;
pub mod sql;

// Shared handles: figures, the signal to finish.
pub mod metrics;
pub mod drain;

// What the operator wrote.
pub mod config;
pub mod select;
pub mod logging;

// Towards peers: sockets, TLS, the threads that carry them, who somebody is.
pub mod net;
pub mod trace;
pub mod workers;
pub mod auth;

// Tenants and their backends.
pub mod quota;
pub mod tenant;
pub mod backend;
pub mod pool;
pub mod listen;

// One client and one backend.
pub mod relay;
pub mod sessions;
pub mod admin;
pub mod session;
pub mod listener;

// What commands do to tenants.
pub mod lifecycle;
pub mod bundle;
pub mod backup;

// The process.
pub mod reload;
pub mod operations;
pub mod app;
pub mod cli;
