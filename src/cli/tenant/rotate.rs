//! `pgtenant tenant rotate-credentials`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::SiteArgs;
use crate::config::Tenant;
use crate::lifecycle::rotate::{finish, former, roles, rotate};
use crate::lifecycle::{Failure, Site, credentials};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant tenant rotate-credentials acme --credentials /root/acme.credentials
  pgtenant tenant rotate-credentials acme --dry-run
  pgtenant tenant rotate-credentials acme --finish     # when every application has the new password

Old passwords stay good for lifecycle.grace, or until --finish. Meanwhile the new ones are in files beside the record
(<id>.<role>.present, mode 0600), for the backends of clients that come with the old ones; --finish removes them.

Exit status: 0 done; 2 not possible as ordered; 4 another run is at work on it; 5 unfinished, give the command again.")]
pub(super) struct RotateArgs {
    /// The tenant's id.
    tenant: String,
    /// Write the new passwords there, mode 0600, instead of giving them to the hook or showing them.
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// End the old passwords now.
    #[arg(long, conflicts_with = "credentials")]
    finish: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    site: SiteArgs,
}

pub(super) async fn run(args: RotateArgs) -> anyhow::Result<ExitCode> {
    let site = args.site.site()?;
    let unknown = || Failure::Unknown { tenant: args.tenant.clone() };
    let tenant = site.config.tenants.get(&args.tenant).ok_or_else(unknown)?.clone();
    if args.dry_run {
        return dry_run(&site, &tenant, args.finish, args.json);
    }
    if args.finish {
        let roles = finish(&site, &tenant)?;
        match args.json {
            true => println!("{}", json!({ "tenant": tenant.id, "finished": roles })),
            false if roles.is_empty() => println!("tenant {}: there was no old password", tenant.id),
            false => println!("tenant {}: the old passwords of {} are gone", tenant.id, roles.join(", ")),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let file = args.credentials.map(std::path::absolute).transpose()?;
    let rotated = rotate(&site, &tenant, site.config.lifecycle.grace, file.as_deref()).await?;
    let given = rotated.give(&site, &tenant, file.as_deref()).await?;
    let until = &rotated.valid_until;
    match (args.json, &file) {
        (true, file) => {
            let mut told = rotated.told(&tenant, file.as_deref(), given);
            if file.is_none() && !given {
                told["passwords"] = credentials::shown(&rotated.credentials);
            }
            println!("{told}");
        }
        (false, Some(file)) => {
            println!("the new passwords are in {}; the old ones are good until {until}", file.display())
        }
        (false, None) if given => {
            println!("the new passwords were given to the credentials hook; the old ones are good until {until}");
        }
        (false, None) => println!(
            "the new passwords, which are shown this once; the old ones are good until {until}:\n\n{}",
            *credentials::text(&tenant.id, &tenant.database, &rotated.credentials)
        ),
    }
    rotated.handed_over()?;
    Ok(ExitCode::SUCCESS)
}

fn dry_run(site: &Site, tenant: &Tenant, finish: bool, as_json: bool) -> anyhow::Result<ExitCode> {
    let (id, hours) = (&tenant.id, site.config.lifecycle.grace.as_secs_f64() / 3600.0);
    let roles = if finish { former(site, tenant)? } else { roles(site, tenant)? };
    let names = if roles.is_empty() { "none".to_owned() } else { roles.join(", ") };
    match (as_json, finish) {
        (true, _) => println!("{}", json!({ "dry_run": true, "tenant": id, "finish": finish, "roles": roles })),
        (false, true) => println!("tenant {id}: would end the old passwords of {names}"),
        (false, false) => {
            println!("tenant {id}: would give new passwords to {names}; the old ones would stay good for {hours} h");
        }
    }
    Ok(ExitCode::SUCCESS)
}
