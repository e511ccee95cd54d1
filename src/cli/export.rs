//! `pgtenant export`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::ConfigArgs;
use super::tenant::{ended, on_runtime};
use crate::bundle::export::{Exported, Order, export, may_leave};
use crate::bundle::progress::Progress;
use crate::bundle::sealing::Recipients;
use crate::config::Config;
use crate::lifecycle::several;
use crate::lifecycle::{Failure, Site};
use crate::reload;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant export acme -o /backup/acme.pgt/
  pgtenant export acme -o acme.pgt/ --jobs 4 --age-recipient age1zepjt9u3tq9pynjj77mufpy3e3gvckzh9tclj0tpe389q0hsuvxqmtv5zl
  pgtenant export acme -o acme.pgt/ --age-recipients-file operators.txt --region eu

The tenant goes on working meanwhile: rows and checksums are of the moment when the export began. It needs pg_dump of the
instance's major. A killed run leaves a hidden folder .acme.pgt.partial, which the next one removes.

Exit status: 0 written; 1 failed, and nothing is left of it; 2 not possible as ordered; 4 the folder exists already, or
another run is at work on it.")]
pub(super) struct ExportArgs {
    /// The tenant's id.
    tenant: String,
    /// The bundle's folder; it must not exist.
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
    /// Tables that are dumped, and tables that are measured, at a time; default: backup.jobs.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: Option<u32>,
    /// Encrypt for this public key of age; may be repeated.
    #[arg(long, value_name = "KEY")]
    age_recipient: Vec<String>,
    /// Encrypt for the public keys in this file, one a line.
    #[arg(long, value_name = "FILE")]
    age_recipients_file: Option<PathBuf>,
    /// The region that the folder is in; default: backup.region. Pinned tenants are exported to no other than theirs.
    #[arg(long)]
    region: Option<String>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, and no progress.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: ExportArgs) -> ExitCode {
    ended(on_runtime(carry_out(args)))
}

async fn carry_out(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let config = reload::load(&args.config.clone().source())?.config;
    let site = Site::new(std::sync::Arc::new(config), None);
    let order = order(&args, &site.config)?;
    let unknown = || Failure::Unknown { tenant: args.tenant.clone() };
    let tenant = site.config.tenants.get(&args.tenant).ok_or_else(unknown)?.clone();
    if args.dry_run {
        may_leave(&tenant, &order)?;
        let (instance, output) = (&tenant.instance.name, order.output.display().to_string());
        let (database, encrypted) = (&tenant.database, !order.recipients.is_empty());
        match args.json {
            true => println!(
                "{}",
                json!({ "dry_run": true, "tenant": tenant.id, "instance": instance, "database": database,
                        "output": output, "encrypted": encrypted, "jobs": order.jobs })
            ),
            false => println!(
                "would export database {database} of tenant {} on instance {instance} to {output}{}",
                tenant.id,
                if encrypted { ", encrypted" } else { "" }
            ),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let progress = Progress::new(!args.json && std::io::stderr().is_terminal(), &tenant.id);
    let exported = export(&site, &tenant, &order, "export", &progress).await?;
    progress.end();
    println!("{}", told(&exported, args.json));
    Ok(ExitCode::SUCCESS)
}

fn order(args: &ExportArgs, config: &Config) -> anyhow::Result<Order> {
    let mut recipients = Recipients::parse(args.age_recipient.iter().map(String::as_str))?;
    if let Some(file) = &args.age_recipients_file {
        recipients = recipients.and(Recipients::of_file(file)?);
    }
    Ok(Order {
        // Without the slash that shells add.
        output: std::path::absolute(&args.output)?.components().collect(),
        region: args.region.clone().or_else(|| config.backup.region.clone()),
        jobs: args.jobs.unwrap_or(config.backup.jobs),
        recipients,
    })
}

/// What was written, for people or programs.
pub(super) fn told(exported: &Exported, as_json: bool) -> String {
    let Exported { manifest, bytes, encrypted, took, notes, .. } = exported;
    let (tables, rows) = (manifest.contents.tables.len(), manifest.rows());
    let (id, path, seconds) = (&manifest.tenant.id, exported.path.display(), took.as_secs_f64());
    if as_json {
        return json!({
            "tenant": id, "bundle": exported.path, "made": manifest.made, "bytes": bytes, "encrypted": encrypted,
            "tables": tables, "rows": rows, "sequences": manifest.contents.sequences.len(),
            "large_objects": manifest.contents.large_objects.count, "server": manifest.source.server,
            "pg_dump": manifest.source.pg_dump, "seconds": seconds, "notes": notes,
        })
        .to_string();
    }
    let mut text = format!(
        "tenant {id} is in {path}: {}, {}, {bytes} bytes{}, in {seconds:.1} s",
        several(tables, "table"),
        several(rows, "row"),
        if *encrypted { ", encrypted" } else { "" }
    );
    for note in notes {
        text += &format!("\nnote: {note}");
    }
    text
}
