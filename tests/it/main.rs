//! The integration tests: one binary, real PostgreSQL, free ports, nothing left behind.

mod auth_query;
mod backend_login;
mod bad_input;
mod building_blocks;
mod cancel;
mod client_certificates;
mod commands;
mod copy;
mod demo;
mod drain;
mod drivers;
mod encryption;
mod failures;
mod harness;
mod isolation;
mod login;
mod main_job;
mod pooling;
mod prepared;
mod relay;
mod reload;
mod routing;
mod startup;
mod state;
mod tidy;
