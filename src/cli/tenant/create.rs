//! `pgtenant tenant create`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::SiteArgs;
use crate::lifecycle::apply::{self, Foreseen, Wanted};
use crate::lifecycle::create::{Created, Step, create};
use crate::lifecycle::edit::Edit;
use crate::lifecycle::migrate::folder::Folder;
use crate::lifecycle::{Failure, Order, Site, credentials, provisioner};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant tenant create acme --region eu --tier gold
  pgtenant tenant create acme --instance pg-eu-1 --template app_v42 --credentials /root/acme.credentials
  pgtenant tenant create acme --extension pgcrypto --setting statement_timeout=30s --set-key pool.max_backends=5
  pgtenant tenant create acme --region eu --provisioner cloud
  pgtenant tenant create acme --region eu --dry-run

A run that was killed goes on when the same command is given again. A step that fails takes back what was done before.

Exit status: 0 made; 1 failed, nothing is left of it; 2 not possible as ordered; 4 exists already, or another run is at
work on it; 5 unfinished, give the command again.")]
pub(super) struct CreateArgs {
    /// The tenant's id.
    tenant: String,
    /// The instance; without it, the one with the most room in the region.
    #[arg(long)]
    instance: Option<String>,
    /// Where the tenant has to stay.
    #[arg(long)]
    region: Option<String>,
    /// What its instance must have; may be repeated.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// What makes an instance where none has room, one of [provisioner.*]; sql, the default, is what there is.
    #[arg(long, value_name = "NAME", conflicts_with = "instance")]
    provisioner: Option<String>,
    /// One of [tier.*].
    #[arg(long)]
    tier: Option<String>,
    /// The database on the instance that the tenant's begins as a copy of; default: template1.
    #[arg(long, value_name = "DATABASE")]
    template: Option<String>,
    /// An extension to create; may be repeated.
    #[arg(long = "extension", value_name = "NAME")]
    extensions: Vec<String>,
    /// A setting of the database, as in statement_timeout=30s; may be repeated.
    #[arg(long = "setting", value_name = "NAME=VALUE", value_parser = super::super::key_value)]
    settings: Vec<(String, String)>,
    /// The folder of the migrations that it begins with; default: `[migrate]` dir.
    #[arg(long, value_name = "DIR")]
    migrations: Option<PathBuf>,
    /// A further key of the record, as in pool.max_backends=5; may be repeated.
    #[arg(long = "set-key", value_name = "KEY=VALUE", value_parser = Edit::parse)]
    record: Vec<Edit>,
    /// Write the passwords there, mode 0600, instead of giving them to the hook or showing them.
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    site: SiteArgs,
}

pub(super) async fn run(args: CreateArgs) -> anyhow::Result<ExitCode> {
    let record = crate::lifecycle::edit::edited("", &args.record).map_err(Failure::Order)?;
    let wanted = Wanted {
        instance: args.instance,
        region: args.region,
        tier: args.tier,
        tags: args.tags,
        provisioner: args.provisioner,
        template: args.template,
        extensions: args.extensions,
        settings: args.settings.into_iter().collect(),
        migrations: args.migrations.map(std::path::absolute).transpose()?,
        record: record.parse()?,
    };
    let credentials = args.credentials.map(std::path::absolute).transpose()?;
    let site = Arc::new(args.site.site()?);
    if let Some(name) = wanted.provisioner() {
        provisioner::named(&site, name)?;
    }
    if args.dry_run {
        let foreseen = apply::foreseen(&site, &args.tenant, &wanted, credentials.as_deref(), &mut site.taken())?;
        let migrations = foreseen.migrations()?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&foreseen.told(&args.tenant))?);
            return Ok(ExitCode::SUCCESS);
        }
        match foreseen {
            Foreseen::Order(order) => dry_run(&order, migrations.as_ref()),
            Foreseen::Provision { provisioner, why } => {
                println!(
                    "would make tenant {} on an instance that provisioner {provisioner} makes ({why})",
                    args.tenant
                );
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (site, order, placing) = apply::placed(site, &args.tenant, &wanted, credentials.as_deref()).await?;
    let created = create(&site, &order, Some(placing)).await?;
    hand_over(&site, created, args.json).await?;
    Ok(ExitCode::SUCCESS)
}

fn dry_run(order: &Order, migrations: Option<&Folder>) {
    println!("would make tenant {} on instance {}:", order.tenant, order.instance);
    for step in Step::ALL {
        println!("  {:10} {}", step.text(), what(step, order, migrations));
    }
}

fn what(step: Step, order: &Order, migrations: Option<&Folder>) -> String {
    let Order { tenant, database, roles, template, .. } = order;
    match step {
        Step::Reserve => "the names, on the instance and in the configuration".to_owned(),
        Step::Roles => {
            format!("{} (owner, no login), {} (application), {} (reads)", roles.owner, roles.app, roles.read_only)
        }
        Step::Database => format!("{database}, a copy of {template}"),
        Step::Grants => "nobody else connects; the application reads and writes".to_owned(),
        Step::Extensions if order.extensions.is_empty() => "none".to_owned(),
        Step::Extensions => order.extensions.join(", "),
        Step::Settings if order.settings.is_empty() => "none".to_owned(),
        Step::Settings => {
            order.settings.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ")
        }
        Step::Migrations => migrations
            .map_or("none".to_owned(), |folder| format!("{} of {}", folder.migrations.len(), folder.path.display())),
        Step::Record => format!("{tenant}.toml in the folder of the tenants"),
        Step::Smoke => "a login through the proxy, where one runs".to_owned(),
        Step::Active => match &order.credentials {
            Some(path) => format!("the passwords are in {}", path.display()),
            None => "the passwords are shown".to_owned(),
        },
    }
}

/// Shows what was made; the passwords only where neither a file nor the hook has them.
pub(super) async fn hand_over(site: &Site, created: Created, as_json: bool) -> Result<(), Failure> {
    let given = created.give(site).await?;
    let order = &created.order;
    if as_json {
        let mut told = created.told(given);
        if order.credentials.is_none() && !given {
            told["passwords"] = credentials::shown(&created.credentials);
        }
        println!("{told}");
    } else {
        println!(
            "tenant {} is made: database {} on instance {}; {}",
            order.tenant, order.database, order.instance, created.smoke
        );
        match &order.credentials {
            Some(path) => println!("its passwords are in {}", path.display()),
            None if given => println!("its passwords were given to the credentials hook"),
            None => println!(
                "its passwords, which are shown this once and kept nowhere:\n\n{}",
                *credentials::text(&order.tenant, &order.database, &created.credentials)
            ),
        }
    }
    created.handed_over()
}
