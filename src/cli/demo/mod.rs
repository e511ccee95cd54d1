//! The demo: throwaway PostgreSQL instances, a development CA, tenants on them. The integration tests build on the same
//! blocks, so that what the demo shows is what the tests prove.
//!
//! - [`postgres`]: a throwaway instance, started, stopped, killed and restarted at will;
//! - [`certificates`]: the development CA;
//! - [`tenant`]: onboards a tenant on an instance and writes its record.

pub mod certificates;
pub mod postgres;
mod postmaster;
mod template;
pub mod tenant;

use clap::Args;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the proof, with exit status 0 or 1.
    #[arg(long)]
    once: bool,
}

/// Runs the demo.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    anyhow::bail!("not written yet: {args:?}")
}
