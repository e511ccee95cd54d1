//! The integration tests: one binary, real PostgreSQL, free ports, nothing left behind.

mod building_blocks;
mod cancel;
mod copy;
mod harness;
mod main_job;
mod pooling;
mod prepared;
mod relay;
mod state;
mod tidy;
