//! A tenant's database into a bundle: dumped and measured in the same snapshot, written beside its place, renamed into it.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::archive::{self, Archive};
use super::contents::{self, Depth, fields};
use super::manifest::{self, Contents, Database, Manifest, Part, Role, Sequence, Setting, Source};
use super::progress::Progress;
use super::sealing::{self, Recipients};
use super::seat::{self, Seat};
use super::tools::{self, Tool};
use super::{DUMP, MANIFEST, record, roles, sums};
use crate::config::{Databases, Tenant};
use crate::lifecycle::instance::Instance;
use crate::lifecycle::quote::literal;
use crate::lifecycle::{Failure, Site, audit, copies, faults};

const ACT: &str = "export";
/// pg_dump gives up rather than make others wait behind it for a table's lock.
const LOCK_WAIT: &str = "--lock-wait-timeout=5min";

/// What is to be exported, and where to.
pub struct Order {
    /// The bundle's folder; it must not exist.
    pub output: PathBuf,
    /// The region that the folder is in, where anybody has said so.
    pub region: Option<String>,
    pub jobs: u32,
    pub recipients: Recipients,
}

/// A bundle that is there.
#[derive(Debug)]
pub struct Exported {
    pub path: PathBuf,
    pub manifest: Manifest,
    pub bytes: u64,
    pub encrypted: bool,
    pub took: Duration,
    /// What whoever imports it may want to know.
    pub notes: Vec<String>,
}

/// Writes the bundle. `what` is the command, for the audit log.
///
/// # Errors
/// Nothing is left of the bundle. After a kill a hidden folder is, which the next run removes.
pub async fn export(
    site: &Site,
    tenant: &Tenant,
    order: &Order,
    what: &str,
    progress: &Progress,
) -> Result<Exported, Failure> {
    let begun = Instant::now();
    may_leave(tenant, order)?;
    one_database(tenant)?;
    if order.output.symlink_metadata().is_ok() {
        return Err(exists(tenant, &order.output));
    }
    let instance = site.instance(&tenant.instance.name)?;
    copies::note(site, &tenant.id, &order.output)?;
    let path = order.output.display().to_string();
    site.record(what, &tenant.id, "begun", &format!("to {path}"))?;
    let result = match Partial::make(tenant, &order.output) {
        Ok(partial) => {
            let written = write(tenant, &instance, order, &partial, site, progress).await;
            let left = Seat::leave(&instance, &seat_of(tenant), None).await;
            written.and_then(|written| left.map(|()| written))
        }
        Err(failure) => Err(failure),
    };
    if result.is_err() && order.output.symlink_metadata().is_err() {
        copies::forget(site, &tenant.id, std::slice::from_ref(&order.output))?;
    }
    let (manifest, notes, bytes) = site.recorded_with(what, &tenant.id, result, &format!("to {path}"))?;
    Ok(Exported {
        path: order.output.clone(),
        manifest,
        bytes,
        encrypted: !order.recipients.is_empty(),
        took: begun.elapsed(),
        notes,
    })
}

/// A tenant that is pinned to a region stays there, its copies included.
pub fn may_leave(tenant: &Tenant, order: &Order) -> Result<(), Failure> {
    let Some(pinned) = &tenant.region else { return Ok(()) };
    let id = &tenant.id;
    match &order.region {
        Some(region) if region == pinned => Ok(()),
        Some(region) => {
            Err(Failure::Order(format!("tenant {id} stays in {pinned}, and what is written here is in {region}")))
        }
        None => Err(Failure::Order(format!(
            "tenant {id} stays in {pinned}, and nobody has said where this folder is: write [backup] region = {pinned:?} \
             into proxy.toml if it is there"
        ))),
    }
}

/// A bundle holds one database, and nothing of a tenant may be left out unsaid.
fn one_database(tenant: &Tenant) -> Result<(), Failure> {
    let more = match &tenant.databases {
        Databases::Named(more) if more.is_empty() => return Ok(()),
        Databases::Named(more) => more.join(", "),
        Databases::All => "all of its instance's".to_owned(),
    };
    let id = &tenant.id;
    Err(Failure::Order(format!("tenant {id} has further databases ({more}): only tenants with one can be exported")))
}

fn exists(tenant: &Tenant, path: &Path) -> Failure {
    Failure::Exists { tenant: tenant.id.clone(), what: path.display().to_string() }
}

/// The folder that becomes the bundle. It is ours while this lives, and gone with it unless it was renamed.
struct Partial {
    path: PathBuf,
    _lock: File,
}

impl Partial {
    fn make(tenant: &Tenant, output: &Path) -> Result<Partial, Failure> {
        let path = copies::partial(output);
        let parent = output.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent).map_err(Failure::file("make", parent))?;
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(Failure::file("make", &path))?,
        }
        let lock = File::open(&path).map_err(Failure::file("open", &path))?;
        if lock.try_lock().is_err() {
            return Err(Failure::Busy { tenant: tenant.id.clone() });
        }
        // What a killed run has left.
        for entry in std::fs::read_dir(&path).map_err(Failure::file("read", &path))?.flatten() {
            let left = entry.path();
            let removed = if left.is_dir() { std::fs::remove_dir_all(&left) } else { std::fs::remove_file(&left) };
            removed.map_err(Failure::file("remove", &left))?;
        }
        Ok(Partial { path, _lock: lock })
    }

    /// Never over something else.
    fn put_in_place(&self, tenant: &Tenant, output: &Path) -> Result<(), Failure> {
        match rename_to_new(&self.path, output) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists(tenant, output)),
            renamed => renamed.map_err(Failure::file("make", output)),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename nothing of this name is there.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// `renameat2(2)` with RENAME_NOREPLACE: rename(2) would replace an empty folder.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    let c_string = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let (from_text, to_text) = (c_string(from)?, c_string(to)?);
    let here = libc::AT_FDCWD;
    // SAFETY: both are strings that live until the call returns.
    let done = unsafe { libc::renameat2(here, from_text.as_ptr(), here, to_text.as_ptr(), libc::RENAME_NOREPLACE) };
    if done != 0 {
        let error = io::Error::last_os_error();
        // A file system that does not know the flag.
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
        std::fs::create_dir(to)?;
        std::fs::rename(from, to)?;
    }
    File::open(to.parent().unwrap_or(Path::new("/")))?.sync_all()
}

type Written = (Manifest, Vec<String>, u64);

async fn write(
    tenant: &Tenant,
    instance: &Instance,
    order: &Order,
    partial: &Partial,
    site: &Site,
    progress: &Progress,
) -> Result<Written, Failure> {
    faults::point(ACT, "folder")?;
    let database = &tenant.database;
    let roles = seat::harmless(instance, tenant).await?;
    let roles: Vec<&str> = roles.iter().map(String::as_str).collect();
    let seat = Seat::take(instance, &seat_of(tenant), &roles).await?;
    faults::point(ACT, "seat")?;
    let snapshot = Snapshot::take(instance, database, &seat, order.jobs).await?;
    let made = audit::now();
    let client = &snapshot.admin;
    let facts = Facts::read(instance, client).await?;
    let tool = tools::find(&site.config, "pg_dump", facts.server_number / 10_000).await?;
    let tables = contents::tables(instance, client).await?;
    let dump = partial.path.join(DUMP);
    let run = tool.run(dump_command(&tool, instance, database, &snapshot, order, &facts, &dump));
    let of_superusers = contents::of_superusers(instance, client).await?;
    let (theirs, ours) = tables.iter().cloned().partition(|table| of_superusers.contains(&table.full_name()));
    let measure = contents::measure(instance, &snapshot.readers, ours, Depth::Checksums);
    let by_admin = contents::measure(instance, std::slice::from_ref(client), theirs, Depth::Checksums);
    let all = async { tokio::try_join!(run, measure, by_admin) };
    let (_, mut measured, more) = tokio::select! {
        done = all => done?,
        never = progress.follow("dumps", instance, database, &tables) => match never {},
    };
    measured.extend(more);
    faults::point(ACT, "dump")?;
    progress.step("looks at the rest");
    let archive = cleaned(&dump)?;
    let contents = Contents {
        tables: measured,
        sequences: sequences(&archive, &dump)?,
        large_objects: contents::large_objects(instance, client, Depth::Checksums).await?,
        extensions: contents::extensions(instance, client).await?,
        objects: contents::objects(instance, client).await?,
    };
    let roles = parts(instance, client, tenant, &archive, &facts.owner).await?;
    let manifest = Manifest {
        format: manifest::FORMAT,
        pgtenant: env!("CARGO_PKG_VERSION").to_owned(),
        made,
        tenant: record::of(tenant)?,
        source: facts.source(instance, &tool),
        roles,
        contents,
        files: Vec::new(),
        database: facts.database,
    };
    drop(snapshot);
    let mut notes = Vec::new();
    if tool.is_older_than(facts.server_number) {
        let (tool, server) = (&manifest.source.pg_dump, &manifest.source.server);
        notes.push(format!("pg_dump is {tool}, the server {server}: keep the programs as new as the servers"));
    }
    if !manifest.tenant.left_out.is_empty() {
        notes.push(format!("not in the bundle, of the record: {}", manifest.tenant.left_out.join(", ")));
    }
    progress.step(if order.recipients.is_empty() { "adds up" } else { "encrypts" });
    let (folder, recipients) = (partial.path.clone(), order.recipients.clone());
    let finished = tokio::task::spawn_blocking(move || finish(&folder, manifest, &recipients)).await;
    let (manifest, bytes) = finished.map_err(|error| Failure::Order(error.to_string()))??;
    faults::point(ACT, "sums")?;
    partial.put_in_place(tenant, &order.output)?;
    faults::point(ACT, "renamed")?;
    Ok((manifest, notes, bytes))
}

/// Sessions that see the database as it was at one moment.
struct Snapshot {
    id: String,
    /// Looks at the catalogues, and at large objects.
    admin: Client,
    /// Read the rows.
    readers: Vec<Client>,
}

impl Snapshot {
    async fn take(instance: &Instance, database: &str, seat: &Seat, readers: u32) -> Result<Snapshot, Failure> {
        const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let admin = instance.look(database).await?;
        contents::pin(instance, &admin).await?;
        instance.run(&admin, "begin a snapshot", BEGIN).await?;
        let id = instance.value(&admin, "export the snapshot", "SELECT pg_export_snapshot()").await?;
        let id = id.unwrap_or_default();
        let readers = seat.sessions(instance, database, readers).await?;
        for reader in &readers {
            let sql = format!("{BEGIN}; SET TRANSACTION SNAPSHOT {}", literal(&id));
            instance.run(reader, "share the snapshot", &sql).await?;
        }
        Ok(Snapshot { id, admin, readers })
    }
}

/// Another login than that of an import.
fn seat_of(tenant: &Tenant) -> String {
    format!("{}~export", tenant.id)
}

fn dump_command(
    tool: &Tool,
    instance: &Instance,
    database: &str,
    snapshot: &Snapshot,
    order: &Order,
    facts: &Facts,
    dump: &Path,
) -> tokio::process::Command {
    let mut command = tool.command(instance, database, None);
    command.args([
        "--format=directory",
        "--no-subscriptions",
        "--no-publications",
        LOCK_WAIT,
        "--snapshot",
        &snapshot.id,
    ]);
    command.args(["--jobs", &order.jobs.to_string()]).arg("--file").arg(dump);
    // So that the names in the table of contents are UTF-8; who does not know its encoding stays as it is.
    if facts.database.encoding != "SQL_ASCII" {
        command.arg("--encoding=UTF8");
    }
    command
}

/// What the server says of itself and of the database.
struct Facts {
    server: String,
    server_number: u32,
    system_identifier: Option<String>,
    owner: String,
    database: Database,
}

impl Facts {
    async fn read(instance: &Instance, client: &Client) -> Result<Facts, Failure> {
        let server = "SELECT current_setting('server_version'), current_setting('server_version_num'),
                             (SELECT system_identifier FROM pg_control_system())";
        let rows = instance.rows(client, "ask for its version", server).await?;
        let [server, number, identifier] = fields(rows.into_iter().next().unwrap_or_default());
        let server_number: u32 = number.parse().unwrap_or_default();
        // What the provider and its locale are called has changed with 15, 16 and 17.
        let (provider, locale, rules) = match server_number / 10_000 {
            ..15 => ("'c'::\"char\"", "NULL", "NULL"),
            15 => ("datlocprovider", "daticulocale", "NULL"),
            16 => ("datlocprovider", "daticulocale", "daticurules"),
            _ => ("datlocprovider", "datlocale", "daticurules"),
        };
        let sql = format!(
            "SELECT datname, pg_encoding_to_char(encoding), {provider}, datcollate, datctype, {locale}, {rules},
                    datcollversion, pg_get_userbyid(datdba)
               FROM pg_database WHERE datname = current_database()"
        );
        let sql = if server_number < 150_000 { sql.replace("datcollversion", "NULL") } else { sql };
        let rows = instance.rows(client, "look at the database", &sql).await?;
        let row = rows.into_iter().next().unwrap_or_default();
        let (locale, icu_rules, collation_version) = (text(&row, 5), text(&row, 6), text(&row, 7));
        let [name, encoding, provider, collate, ctype, _, _, _, owner] = fields(row);
        let locale_provider = match provider.as_str() {
            "i" => "icu",
            "b" => "builtin",
            _ => "libc",
        };
        let settings = settings(instance, client).await?;
        let locale_provider = locale_provider.to_owned();
        let database = Database {
            name,
            encoding,
            locale_provider,
            collate,
            ctype,
            locale,
            icu_rules,
            collation_version,
            settings,
        };
        let system_identifier = Some(identifier).filter(|identifier| !identifier.is_empty());
        Ok(Facts { server, server_number, system_identifier, owner, database })
    }

    fn source(&self, instance: &Instance, tool: &Tool) -> Source {
        Source {
            instance: instance.name().to_owned(),
            region: instance.host.instance.region.clone(),
            system_identifier: self.system_identifier.clone(),
            server: self.server.clone(),
            server_number: self.server_number,
            pg_dump: tool.version.clone(),
            pg_dump_major: tool.major,
        }
    }
}

fn text(row: &[Option<String>], at: usize) -> Option<String> {
    row.get(at).cloned().flatten()
}

/// `ALTER DATABASE … SET` and `ALTER ROLE … IN DATABASE … SET`, which pg_dump leaves to pg_dumpall.
async fn settings(instance: &Instance, client: &Client) -> Result<Vec<Setting>, Failure> {
    let sql = "SELECT CASE setrole WHEN 0 THEN NULL ELSE pg_get_userbyid(setrole) END,
                      split_part(setting, '=', 1), substr(setting, strpos(setting, '=') + 1)
                 FROM pg_db_role_setting, unnest(setconfig) AS setting
                WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
                ORDER BY 1 NULLS FIRST, 2";
    let rows = instance.rows(client, "look at the database's settings", sql).await?;
    let settings = rows.into_iter().map(|row| {
        let role = text(&row, 0);
        let [_, name, value] = fields(row);
        Setting { role, name, value }
    });
    Ok(settings.collect())
}

fn sequences(archive: &Archive, dump: &Path) -> Result<Vec<Sequence>, Failure> {
    let values = archive.sequences().map_err(|why| Failure::Bundle { path: dump.to_owned(), why })?;
    let sequence = |(schema, name, value, is_called)| Sequence { schema, name, value, is_called };
    Ok(values.into_iter().map(sequence).collect())
}

/// Which part the roles play that the dump names.
async fn parts(
    instance: &Instance,
    client: &Client,
    tenant: &Tenant,
    archive: &Archive,
    owner: &str,
) -> Result<Vec<Role>, Failure> {
    let ours = crate::lifecycle::Roles::of(&tenant.id);
    let sql = "SELECT rolname FROM pg_roles WHERE rolsuper";
    let of_instance = instance.rows(client, "look at the roles", sql).await?;
    let of_instance: Vec<String> = of_instance.into_iter().map(|row| fields::<1>(row)[0].clone()).collect();
    let mut names = roles::named(archive);
    names.insert(owner.to_owned());
    // PostgreSQL's own are the same everywhere.
    names.retain(|name| !name.starts_with("pg_"));
    let part = |name: &String| match name {
        name if of_instance.contains(name) => Part::Instance,
        name if *name == owner => Part::Owner,
        name if *name == ours.app => Part::App,
        name if *name == ours.read_only => Part::ReadOnly,
        _ => Part::Other,
    };
    Ok(names.into_iter().map(|name| Role { part: part(&name), name }).collect())
}

/// The dump's table of contents, as every major can take it.
fn cleaned(dump: &Path) -> Result<Archive, Failure> {
    let path = dump.join("toc.dat");
    let mut archive = archive::load(&path)?;
    archive.clean();
    std::fs::write(&path, archive.write()).map_err(Failure::file("write", &path))?;
    Ok(archive)
}

/// Manifest, encryption, sums. Gives the bundle's bytes.
fn finish(folder: &Path, mut manifest: Manifest, recipients: &Recipients) -> Result<(Manifest, u64), Failure> {
    let dump = folder.join(DUMP);
    for name in sums::files(&dump)? {
        let path = dump.join(&name);
        let (sha256, bytes) = sums::of_file(&path).map_err(Failure::file("read", &path))?;
        manifest.files.push(manifest::File { name: name.display().to_string(), bytes, sha256 });
    }
    let path = folder.join(MANIFEST);
    let text = serde_json::to_string_pretty(&manifest).map_err(|error| Failure::Order(error.to_string()))?;
    std::fs::write(&path, text + "\n").map_err(Failure::file("write", &path))?;
    if !recipients.is_empty() {
        for name in sums::files(folder)? {
            let plain = folder.join(&name);
            let sealed = folder.join(format!("{}.{}", name.display(), sealing::ENDING));
            sealing::seal(&plain, &sealed, recipients)?;
            std::fs::remove_file(&plain).map_err(Failure::file("remove", &plain))?;
        }
    }
    for name in sums::files(folder)? {
        let path = folder.join(&name);
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, private).map_err(Failure::file("chmod", &path))?;
    }
    sums::write(folder)?;
    let sizes = sums::files(folder)?.into_iter().map(|name| std::fs::metadata(folder.join(name)));
    let bytes = sizes.map(|size| size.map_or(0, |size| size.len())).sum();
    Ok((manifest, bytes))
}
