//! The command line: one file per command.

mod audit;
mod backup;
mod check;
mod completions;
pub mod demo;
mod migrate;
mod export;
mod import;
mod restore;
mod query;
mod route;
mod serve;
mod tenant;
mod top;
mod verifier;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::admin::ask::{Endpoint, Files};
use crate::admin::health;
use crate::config::Secret;
use crate::reload::Source;

/// One Postgres endpoint for all tenants; every tenant its own database.
#[derive(Debug, Parser)]
#[command(name = "pgtenant", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy until SIGTERM; SIGHUP reads the configuration again.
    #[command(after_help = "Examples:
  pgtenant serve --config /etc/pgtenant/proxy.toml
  pgtenant serve --set listen.addresses=127.0.0.1:6432

Exit status: 0 drained and ended; 1 it could not begin, and standard error says why.")]
    Serve(ConfigArgs),
    /// Check the configuration and reach every instance; exit status 1 when something is wrong.
    #[command(after_help = "Example:
  pgtenant check --config /etc/pgtenant/proxy.toml

Exit status: 0 all is well; 1 something is wrong, and is named; 2 the arguments.")]
    Check(ConfigArgs),
    /// Show which tenant, pool and instance a connection with these hints would get, and why.
    Route(route::RouteArgs),
    /// Make a SCRAM-SHA-256 verifier for a tenant's record from a password on standard input.
    #[command(after_help = "Example:
  pgtenant verifier < password-file > tenants.d/acme-app.verifier

Exit status: 0 made; 1 no password on standard input, or one that cannot be used.")]
    Verifier,
    /// Ask a running proxy whether it is ready; exit status 1 when not.
    #[command(after_help = "Examples:
  pgtenant health
  pgtenant health --url https://10.0.0.5:9930 --ca ca.crt

Exit status: 0 it is ready for new clients; 1 it is not, or does not answer; 2 the arguments.")]
    Health {
        /// The proxy's http.address, where it speaks plain HTTP.
        #[arg(long)]
        address: Option<SocketAddr>,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
    /// Watch a running proxy's tenants, those that hurt first; --once, or without a terminal, prints them.
    Top(top::TopArgs),
    /// Make, show, change, pause and erase tenants.
    Tenant(tenant::TenantArgs),
    /// Apply, take back and compare migrations, in all tenants or some.
    Migrate(migrate::MigrateArgs),
    /// Write a tenant's database into a bundle: a folder that can be checked, kept and imported.
    Export(export::ExportArgs),
    /// Make a tenant of a bundle, and prove that nothing was lost on the way.
    Import(import::ImportArgs),
    /// Make, prove, list and remove backups of tenants.
    Backup(backup::BackupArgs),
    /// Make a new tenant of a backup.
    Restore(restore::RestoreArgs),
    /// Ask many tenants the same, by a role that only reads.
    Query(query::QueryArgs),
    /// The log of what was done to tenants.
    Audit(audit::AuditArgs),
    /// Print what makes a shell complete this program's options.
    Completions(completions::CompletionsArgs),
    /// Show it all on throwaway PostgreSQL instances: three tenants, the proof, and psql lines to try.
    Demo(demo::DemoArgs),
}

/// Where a running proxy's HTTP endpoint is, and what opens its API.
#[derive(Debug, Args)]
struct EndpointArgs {
    /// The proxy's HTTP endpoint, http:// or https://.
    #[arg(long, default_value = "http://127.0.0.1:9930")]
    url: String,
    /// CA certificates (PEM) that vouch for the proxy's, for https.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A client certificate (PEM) that the proxy's http.client_ca signed.
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// A file with the proxy's http.token; without it the environment's PGTENANT_HTTP_TOKEN is taken.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl EndpointArgs {
    fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let token = match &self.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Some(Secret::new(text.trim()))
            }
            None => std::env::var("PGTENANT_HTTP_TOKEN").ok().map(Secret::new),
        };
        let certificate = self.certificate.as_deref().zip(self.key.as_deref());
        Endpoint::new(&self.url, Files { ca: self.ca.as_deref(), certificate }, token)
    }
}

/// Where the configuration is.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// The configuration file; default: proxy.toml in the current folder.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override a key, as in --set pool.mode=session; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    overrides: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("write key=value, as in pool.mode=session".to_owned()),
    }
}

impl ConfigArgs {
    fn source(self) -> Source {
        Source { path: self.config, overrides: self.overrides }
    }
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let result = match parsed().command {
        Command::Serve(args) => serve::run(args.source()),
        Command::Check(args) => check::run(&args.source()),
        Command::Route(args) => route::run(args),
        Command::Verifier => verifier::run(),
        Command::Health { address, endpoint } => match address {
            Some(address) => health::health(&Endpoint::at(address)),
            None => endpoint.endpoint().and_then(|endpoint| health::health(&endpoint)),
        },
        Command::Top(args) => top::run(&args),
        Command::Tenant(args) => return tenant::run(args),
        Command::Migrate(args) => return migrate::run(args),
        Command::Export(args) => return export::run(args),
        Command::Import(args) => return import::run(args),
        Command::Backup(args) => return backup::run(args),
        Command::Restore(args) => return restore::run(args),
        Command::Query(args) => return query::run(args),
        Command::Audit(args) => audit::run(args),
        Command::Completions(args) => completions::run(&args),
        Command::Demo(args) => demo::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pgtenant: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// As clap does it, but for what `migrate` says by its exit status 2.
fn parsed() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        let of_migrate = std::env::args_os().nth(1).is_some_and(|command| command == "migrate");
        if of_migrate && error.use_stderr() {
            let _ = error.print();
            std::process::exit(i32::from(migrate::NOT_BEGUN));
        }
        error.exit()
    })
}

/// The error with its causes, those left out that it names in its own words.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_told_twice() {
        let cause = || std::io::Error::other("in use");
        let listen = crate::listener::ListenError::Tcp { address: "127.0.0.1:1".parse().unwrap(), source: cause() };
        assert_eq!(told(&listen.into()), "cannot listen on 127.0.0.1:1: in use (listen.addresses)");
        let bare = Err::<(), _>(cause()).context("no answer").unwrap_err();
        assert_eq!(told(&bare), "no answer: in use");
    }
}
