//! `pgtenant route`: what `serve` would do with a connection's hints.

use clap::Args;

use super::ConfigArgs;
use crate::config;
use crate::tenant::explain::explain;
use crate::tenant::route::Hints;
use crate::wire::StartupOptions;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant route --sni acme.db.example.com --user app
  pgtenant route --user app --options '-c tenant=acme'

Exit status: 0 there is a route; 1 there is none, and why; 2 the arguments.")]
pub struct RouteArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The TLS server name, as in acme.db.example.com.
    #[arg(long)]
    sni: Option<String>,
    /// The user, as in app or app.acme.
    #[arg(long, default_value = "")]
    user: String,
    /// The database.
    #[arg(long)]
    database: Option<String>,
    /// The startup parameter options, as in "-c tenant=acme".
    #[arg(long, allow_hyphen_values = true)]
    options: Option<String>,
    /// The tenant whose CA vouches for the client's certificate.
    #[arg(long, value_name = "TENANT")]
    certificate: Option<String>,
}

/// Prints the route, or fails with the reason why there is none.
pub fn run(args: RouteArgs) -> anyhow::Result<()> {
    let source = args.config.source();
    let config = config::load(source.path.as_deref(), &source.overrides)?;
    let mut options = StartupOptions::parse(args.options.as_deref().unwrap_or_default());
    let hints = Hints {
        sni: args.sni,
        option: options.take("tenant"),
        user: args.user,
        database: args.database,
        certificate: args.certificate,
    };
    for (what, value) in explain(&hints, &options, &config)? {
        println!("{what:<9} {value}");
    }
    Ok(())
}
