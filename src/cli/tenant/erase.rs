//! `pgtenant tenant erase`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::SiteArgs;
use crate::lifecycle::Failure;
use crate::lifecycle::erase::{Estate, erase, estate};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant tenant erase acme --dry-run
  pgtenant tenant erase acme --confirm acme --receipt /root/acme-erased.json

The route is closed first, then sessions are ended, the database and the roles dropped; then record, credentials, files of
secrets, bundles, backups and keys are removed.
There is no way back; a run that was killed or failed goes on when the same command is given again.

Exit status: 0 erased; 2 not possible as ordered; 4 another run is at work on it; 5 unfinished, give the command again.")]
pub(super) struct EraseArgs {
    /// The tenant's id.
    tenant: String,
    /// The tenant's id once more.
    #[arg(long, value_name = "TENANT", required_unless_present = "dry_run")]
    confirm: Option<String>,
    /// Where the receipt goes: what was removed, when, and what remains elsewhere.
    #[arg(long, value_name = "FILE", required_unless_present = "dry_run")]
    receipt: Option<PathBuf>,
    /// Say what would be erased, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the receipt.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    site: SiteArgs,
}

pub(super) async fn run(args: EraseArgs) -> anyhow::Result<ExitCode> {
    let site = args.site.site()?;
    let estate = estate(&site, &args.tenant).await?;
    let (Some(confirm), Some(receipt), false) = (args.confirm, args.receipt, args.dry_run) else {
        return dry_run(&estate, args.json);
    };
    if confirm != args.tenant {
        let why = format!("--confirm says {confirm:?}, but the tenant is {:?}; nothing was changed", args.tenant);
        return Err(Failure::Order(why).into());
    }
    let receipt = std::path::absolute(receipt)?;
    let done = erase(&site, &estate, &receipt).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&done)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("tenant {} is erased:", done.tenant);
    for removed in &done.removed {
        println!("  {:18} {}", removed.what, removed.name);
    }
    println!("what remains elsewhere:");
    for remains in &done.remains {
        let until = remains.until.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
        println!("  {}{until}: {}", remains.what, remains.note);
    }
    println!("the receipt is in {}", receipt.display());
    Ok(ExitCode::SUCCESS)
}

fn dry_run(estate: &Estate, as_json: bool) -> anyhow::Result<ExitCode> {
    if as_json {
        println!("{}", json!({ "dry_run": true, "would_erase": estate }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("would erase tenant {} on instance {}:", estate.tenant, estate.instance);
    println!("  databases    {}", estate.databases.join(", "));
    println!("  roles        {}", estate.roles.join(", "));
    println!("  record       {}", estate.record.display());
    if let Some(path) = &estate.credentials {
        println!("  credentials  {}", path.display());
    }
    let copies = &estate.copies;
    for path in copies.secrets.iter().chain(&copies.keys) {
        println!("  secret       {}", path.display());
    }
    for path in &copies.bundles {
        println!("  bundle       {}", path.display());
    }
    if let Some((folder, names)) = &copies.backups {
        println!("  backups      {} in {}", names.len(), folder.display());
    }
    for kept in &estate.kept {
        println!("  stays        {kept}");
    }
    Ok(ExitCode::SUCCESS)
}
