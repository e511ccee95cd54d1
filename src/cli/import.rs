//! `pgtenant import`, and what `pgtenant restore` has in common with it.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::tenant::{SiteArgs, ended, on_runtime};
use crate::backup::verify;
use crate::bundle::import::{Import, Imported, Means, Step, Verify, import};
use crate::bundle::manifest::Manifest;
use crate::bundle::plan::{self, Wanted};
use crate::bundle::progress::Progress;
use crate::bundle::restore;
use crate::bundle::sealing::Identities;
use crate::lifecycle::copies::SUMS;
use crate::lifecycle::several;
use crate::lifecycle::smoke::Smoke;
use crate::lifecycle::{Failure, Site, credentials, hook, shelf};
use crate::reload;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant import acme.pgt/ --as acme2 --instance pg-eu-2
  pgtenant import acme.pgt/ --as acme2 --verify counts --jobs 4 --credentials /root/acme2.credentials
  pgtenant import acme.pgt/ --as acme --age-identity operators.age-key
  pgtenant import acme.pgt/ --as acme2 --dry-run

The bundle's bytes are checked first. The database is filled under another name, compared with what the manifest says, and
renamed into its place only then. Passwords are new. A run that was killed goes on when the same command is given again; a
step that fails takes back what was done before.

Exit status: 0 imported; 1 failed (a damaged bundle, a difference), nothing is left of it; 2 not possible as ordered;
4 exists already, or another run is at work on it; 5 unfinished, give the command again.")]
pub(super) struct ImportArgs {
    /// The bundle's folder.
    bundle: PathBuf,
    /// The new tenant's id; default: the id of the one that was exported.
    #[arg(long = "as", value_name = "TENANT")]
    new: Option<String>,
    #[command(flatten)]
    options: ImportOptions,
}

/// What import and restore share.
#[derive(Debug, Args)]
pub(super) struct ImportOptions {
    /// The instance; without it, the one with the most room in the tenant's region.
    #[arg(long)]
    instance: Option<String>,
    /// Where the tenant has to stay. One that was pinned stays where it was.
    #[arg(long)]
    region: Option<String>,
    /// What its instance must have; may be repeated.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// One of [tier.*]; default: the one that it had.
    #[arg(long)]
    tier: Option<String>,
    /// How the new database is compared with the bundle: checksums of all rows, counts of rows, or not.
    #[arg(long, value_enum, default_value = "full")]
    verify: Verify,
    /// The file with the private key, for an encrypted bundle; default: backup.age_identity.
    #[arg(long, value_name = "FILE")]
    age_identity: Option<PathBuf>,
    /// Who takes the place of a role of the old database: owner, app, ro, or a role of the instance; may be repeated.
    #[arg(long = "map-role", value_name = "OLD=NEW", value_parser = super::key_value)]
    map_roles: Vec<(String, String)>,
    /// Processes of pg_restore, and tables that are compared at a time; default: backup.jobs.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: Option<u32>,
    /// Write the passwords there, mode 0600, instead of giving them to the hook or showing them.
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// Check the bundle and say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, and no progress.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    site: SiteArgs,
}

impl ImportOptions {
    /// Where the backup is that somebody means, and the key of its tenant.
    pub(super) fn backup(&self, meant: &str) -> anyhow::Result<(PathBuf, Option<PathBuf>)> {
        let config = reload::load(&self.site.config.clone().source())?.config;
        // One that lies elsewhere is nobody's that we know.
        if Path::new(meant).join(SUMS).is_file() {
            return Ok((meant.into(), None));
        }
        let stored = shelf::find(&config, meant)?;
        let site = Site::new(Arc::new(config), None);
        Ok((stored.path.clone(), verify::identity(&site, &stored.tenant)))
    }

    pub(super) fn set_default_identity(&mut self, identity: Option<PathBuf>) {
        self.age_identity = self.age_identity.take().or(identity);
    }
}

pub(super) fn run(args: ImportArgs) -> ExitCode {
    ended(on_runtime(carry_out(args.bundle, args.new, args.options, "import")))
}

/// `what` is the command, for the audit log.
pub(super) async fn carry_out(
    bundle: PathBuf,
    tenant: Option<String>,
    options: ImportOptions,
    what: &str,
) -> anyhow::Result<ExitCode> {
    let bundle: PathBuf = std::path::absolute(bundle)?.components().collect();
    let wanted = Wanted {
        tenant,
        instance: options.instance,
        region: options.region,
        tags: options.tags,
        tier: options.tier,
        verify: options.verify,
        roles: options.map_roles.into_iter().collect(),
        credentials: options.credentials.map(std::path::absolute).transpose()?,
    };
    let (dry_run, as_json) = (options.dry_run, options.json);
    let site = options.site.site()?;
    let progress = Progress::new(
        !as_json && std::io::stderr().is_terminal(),
        &bundle.file_name().unwrap_or_default().to_string_lossy(),
    );
    progress.step("checks the bundle");
    let key = options.age_identity.or_else(|| site.config.backup.defaults.identity.clone());
    let key = key.filter(|_| restore::is_encrypted(&bundle)).map(|path| Identities::of_file(&path)).transpose()?;
    let opened = restore::open(&site.config, &bundle, key.as_ref())?;
    let placing = (!dry_run).then(|| site.placing()).transpose()?;
    let order = plan::plan(&site, &bundle, &opened.manifest, wanted)?;
    if dry_run {
        opened.fits(&*site.instance(&order.instance)?).await?;
        progress.end();
        return dry_run_of(&order, &opened.manifest, as_json);
    }
    let means = Means { jobs: options.jobs.unwrap_or(site.config.backup.jobs), progress: &progress, what };
    let manifest = opened.manifest.clone();
    let imported = import(&site, &order, opened, placing, &means).await?;
    progress.end();
    let given = given(&site, &imported).await?;
    hand_over(imported, &order, &manifest, given, as_json)?;
    Ok(ExitCode::SUCCESS)
}

fn dry_run_of(import: &Import, manifest: &Manifest, as_json: bool) -> anyhow::Result<ExitCode> {
    if as_json {
        println!("{}", serde_json::to_string_pretty(&json!({ "dry_run": true, "import": import }))?);
        return Ok(ExitCode::SUCCESS);
    }
    let order = &import.order;
    let (from, made) = (&manifest.source.server, &manifest.made);
    println!("the bundle is whole: tenant {} of PostgreSQL {from}, as it was at {made}", manifest.tenant.id);
    println!("would make tenant {} of it on instance {}:", order.tenant, order.instance);
    for step in Step::ALL {
        println!("  {:10} {}", step.text(), explained(step, import, manifest));
    }
    Ok(ExitCode::SUCCESS)
}

fn explained(step: Step, import: &Import, manifest: &Manifest) -> String {
    let order = &import.order;
    let roles = &order.roles;
    match step {
        Step::Reserve => "the names, on the instance and in the configuration".to_owned(),
        Step::Roles => format!("{}, {}, {}", roles.owner, roles.app, roles.read_only),
        Step::Database => format!("an empty one with encoding {}", manifest.database.encoding),
        Step::Restore => {
            let of = |(old, new): (&String, &String)| format!("{old} becomes {new}");
            let successors: Vec<String> = import.successors.iter().map(of).collect();
            let tables = several(manifest.contents.tables.len(), "table");
            format!("{tables}, {}; {}", several(manifest.rows(), "row"), successors.join(", "))
        }
        Step::Verify => match import.verify {
            Verify::Full => "checksums of all rows, sequences, large objects, objects by kind".to_owned(),
            Verify::Counts => "counts of rows, sequences, large objects, objects by kind".to_owned(),
            Verify::None => "left out".to_owned(),
        },
        Step::Rename => format!("to {}", order.database),
        Step::Grants if import.grant => "nobody else connects; the application reads and writes".to_owned(),
        Step::Grants => "nobody else connects; within it, as it was".to_owned(),
        Step::Settings => format!("{} of the database", order.settings.len()),
        Step::Record => format!("{}.toml in the folder of the tenants", order.tenant),
        Step::Smoke => "a login through the proxy, where one runs".to_owned(),
        Step::Active => match &order.credentials {
            Some(path) => format!("the passwords are in {}", path.display()),
            None => "the passwords are shown".to_owned(),
        },
    }
}

/// Gives the passwords to the hook, where there is one and no file has them; whether it did.
async fn given(site: &Site, imported: &Imported) -> Result<bool, Failure> {
    let order = &imported.order;
    let whose = hook::Whose {
        act: "import",
        tenant: &order.tenant,
        instance: &order.instance,
        region: order.region.as_deref(),
        database: &order.database,
        old_valid_until: None,
    };
    hook::give(site, whose, order.credentials.as_deref(), &imported.credentials).await
}

/// Shows what was made and what was found in it; the passwords only where neither a file nor the hook has them.
fn hand_over(
    imported: Imported,
    import: &Import,
    manifest: &Manifest,
    given: bool,
    as_json: bool,
) -> anyhow::Result<()> {
    let order = &imported.order;
    let smoke = match &imported.smoke {
        Smoke::Passed { proxy } => format!("logged in through the proxy at {proxy}"),
        Smoke::NotTested(why) => format!("not tested: {why}"),
    };
    let (tenant, instance) = (&order.tenant, &order.instance);
    let (contents, rows) = (&manifest.contents, manifest.rows());
    let verified = match (import.verify, &imported.found) {
        (Verify::None, _) => "not verified".to_owned(),
        (_, None) => "verified by the run before".to_owned(),
        (verify, Some(_)) => format!(
            "verified: {}, {}{}; {}, {}, {}, objects of {}",
            several(contents.tables.len(), "table"),
            several(rows, "row"),
            if verify == Verify::Full { " by their checksums" } else { "" },
            several(contents.sequences.len(), "sequence"),
            several(contents.large_objects.count, "large object"),
            several(contents.extensions.len(), "extension"),
            several(contents.objects.len(), "kind"),
        ),
    };
    if as_json {
        let mut told = json!({
            "tenant": tenant, "instance": instance, "database": order.database, "roles": order.roles,
            "region": order.region, "tier": order.tier, "smoke": smoke, "resumed": imported.resumed,
            "verify": import.verify, "verified": verified, "tables": contents.tables.len(), "rows": rows,
            "left_out": manifest.tenant.left_out, "credentials": order.credentials,
            "given_to_hook": given,
        });
        if order.credentials.is_none() && !given {
            let passwords = imported.credentials.iter();
            told["passwords"] = passwords.map(|(role, of)| (role.clone(), json!(of.password.expose()))).collect();
        }
        println!("{told}");
    } else {
        println!("tenant {tenant} is made of the bundle: database {} on instance {instance}; {smoke}", order.database);
        println!("{verified}");
        if !manifest.tenant.left_out.is_empty() {
            println!("not taken over from its record: {}", manifest.tenant.left_out.join(", "));
        }
        match &order.credentials {
            Some(path) => println!("its passwords are in {}", path.display()),
            None if given => println!("its passwords were given to the credentials hook"),
            None => println!(
                "its passwords, which are shown this once and kept nowhere:\n\n{}",
                *credentials::text(tenant, &order.database, &imported.credentials)
            ),
        }
    }
    Ok(imported.handed_over()?)
}
