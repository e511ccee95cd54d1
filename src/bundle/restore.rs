//! A bundle into a fresh database, and the look at what came out. Who gets the database, and whether it stays, is the
//! business of those who call: `import` and `backup::verify`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::archive::{self, Archive, Entry};
use super::contents::{self, Depth};
use super::manifest::{self, Contents, Database, Manifest};
use super::progress::Progress;
use super::sealing::{self, Identities};
use super::seat::Seat;
use super::{DUMP, MANIFEST, roles, sums, tools};
use crate::config::Config;
use crate::lifecycle::Failure;
use crate::lifecycle::instance::{Instance, Session};
use crate::lifecycle::quote::{identifier, literal};

const SCRATCH: &str = "pgtenant-scratch-";
const TOC: &str = "toc.dat";
const PUBLIC: &str = "public";
/// Only superusers have them, and they run with the rights of whoever changes the schema.
const EVENT_TRIGGER: &str = "EVENT TRIGGER";

/// A bundle that was found whole, with its table of contents, ready for pg_restore.
pub struct Opened {
    pub manifest: Manifest,
    pub archive: Archive,
    /// The dump in plain, gone on drop: links into a bundle that is not encrypted, or files of our own.
    scratch: Scratch,
}

/// The database that is filled.
pub struct Target<'a> {
    pub instance: &'a Instance,
    pub database: &'a str,
    pub owner: &'a str,
}

/// A private folder; a lock on it says that its maker lives.
struct Scratch {
    dir: TempDir,
    _lock: File,
}

impl Scratch {
    fn make(parent: &Path) -> Result<Scratch, Failure> {
        Scratch::sweep(parent);
        let dir = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(parent);
        let dir = dir.map_err(Failure::file("make a folder in", parent))?;
        let lock = File::open(dir.path()).map_err(Failure::file("open", dir.path()))?;
        lock.lock().map_err(Failure::file("lock", dir.path()))?;
        Ok(Scratch { dir, _lock: lock })
    }

    /// What killed runs could not remove: tenants' data in plain.
    fn sweep(parent: &Path) {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let is_ours = entry.file_name().to_string_lossy().starts_with(SCRATCH);
            let Some(folder) = is_ours.then(|| File::open(entry.path()).ok()).flatten() else { continue };
            if folder.try_lock().is_ok() {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Whether a key is needed to read the bundle.
pub fn is_encrypted(bundle: &Path) -> bool {
    bundle.join(format!("{MANIFEST}.{}", sealing::ENDING)).is_file()
}

/// Checks the sums of a bundle and reads its manifest; decrypts it where it is encrypted. Blocks: not for a thread that
/// others wait for.
///
/// # Errors
/// A byte of it is not what it was, a file is missing, or the key does not fit.
pub fn open(config: &Config, bundle: &Path, identities: Option<&Identities>) -> Result<Opened, Failure> {
    let damaged = |why: String| Failure::Bundle { path: bundle.to_owned(), why };
    if !bundle.is_dir() {
        return Err(Failure::Order(format!("there is no bundle {}", bundle.display())));
    }
    sums::check(bundle)?;
    let parent = &config.backup.scratch_dir;
    let scratch = Scratch::make(parent)?;
    let dump = scratch.dir.path().join(DUMP);
    std::fs::create_dir(&dump).map_err(Failure::file("make", &dump))?;
    let sealed = |name: &Path| bundle.join(format!("{}.{}", name.display(), sealing::ENDING));
    let identities = match (is_encrypted(bundle), identities) {
        (false, _) => None,
        (true, Some(identities)) => Some(identities),
        (true, None) => {
            return Err(Failure::Order(format!(
                "bundle {} is encrypted: give the file with the key, --age-identity",
                bundle.display()
            )));
        }
    };
    // In the scratch folder as it is in the bundle.
    let lay_open = |name: &Path| -> Result<PathBuf, Failure> {
        let to = scratch.dir.path().join(name);
        match identities {
            Some(identities) => sealing::open(&sealed(name), &to, identities)?,
            None => {
                let from = std::path::absolute(bundle.join(name)).map_err(Failure::file("find", bundle))?;
                std::os::unix::fs::symlink(&from, &to).map_err(Failure::file("link to", &from))?;
            }
        }
        Ok(to)
    };
    let manifest = manifest_of(&lay_open(Path::new(MANIFEST))?).map_err(damaged)?;
    let named: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    if !named.contains(&TOC) || named.iter().any(|name| name.contains('/') || name.starts_with('.')) {
        return Err(damaged("its manifest does not name the files of a dump".to_owned()));
    }
    for file in &manifest.files {
        let path = lay_open(&Path::new(DUMP).join(&file.name))?;
        let found = sums::of_file(&path).map_err(Failure::file("read", &path))?;
        if found != (file.sha256.clone(), file.bytes) {
            return Err(damaged(format!("{DUMP}/{} is not the file that the manifest tells of", file.name)));
        }
    }
    let archive = archive::load(&dump.join(TOC))?;
    Ok(Opened { manifest, archive, scratch })
}

fn manifest_of(path: &Path) -> Result<Manifest, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read its manifest: {error}"))?;
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| format!("its manifest is none: {error}"))?;
    match value["format"].as_u64() {
        Some(format) if format == u64::from(manifest::FORMAT) => {}
        Some(format) => return Err(format!("its format is {format}, and this pgtenant knows {}", manifest::FORMAT)),
        None => return Err("its manifest is none".to_owned()),
    }
    serde_json::from_value(value).map_err(|error| format!("its manifest is none: {error}"))
}

impl Opened {
    /// Gives what belongs to the dump's roles to others.
    pub fn give_to(&mut self, successors: &BTreeMap<String, String>) {
        self.archive.entries.retain(|entry| entry.kind.as_deref() != Some(EVENT_TRIGGER));
        roles::rename(&mut self.archive, successors);
        self.archive.order_rights();
    }

    /// For who looks at the rows only: everything is one role's, and rights and what is somebody's own are left out.
    pub fn give_all_to(&mut self, role: &str) {
        let successors = self.manifest.roles.iter().map(|old| (old.name.clone(), role.to_owned()));
        let left_out = ["ACL", "DEFAULT ACL", roles::USER_MAPPING];
        self.archive.entries.retain(|entry| !left_out.contains(&entry.kind.as_deref().unwrap_or_default()));
        self.give_to(&successors.collect());
    }

    /// What can be said before anything is made: whether the instance can take it.
    pub async fn fits(&self, instance: &Instance) -> Result<(), Failure> {
        let session = instance.session().await?;
        let source = &self.manifest.source;
        let major = server_major(instance, &session).await?;
        if major < source.pg_dump_major {
            let from = source.pg_dump_major;
            let name = instance.name();
            return Err(Failure::Order(format!(
                "instance {name} is PostgreSQL {major}: what {from} has dumped goes into {from} or later"
            )));
        }
        let sql = "SELECT name FROM pg_available_extensions";
        let available = instance.rows(&session, "list the extensions", sql).await?;
        let available: Vec<String> = available.into_iter().map(|row| contents::fields::<1>(row)[0].clone()).collect();
        let wanted = self.manifest.contents.extensions.iter().map(|extension| &extension.name);
        let missing: Vec<&str> = wanted.filter(|name| !available.contains(name)).map(String::as_str).collect();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(Failure::Order(format!(
                "instance {} has no extension {}: install it there first",
                instance.name(),
                missing.join(", ")
            ))),
        }
    }

    /// Fills the database, which is empty. The admin makes the extensions, and nothing else: already
    /// CREATE TABLE may run what a tenant has written. The rest comes by the seat, who has the tenant's rights and no others.
    pub async fn fill(
        &mut self,
        config: &Config,
        target: &Target<'_>,
        seat: &Seat,
        jobs: u32,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let Target { instance, database, owner } = *target;
        let major = server_major(instance, &*instance.session().await?).await?;
        let tool = tools::find(config, "pg_restore", major).await?;
        let inside = instance.look(database).await?;
        self.make_extensions(instance, &inside).await?;
        seat.may_fill(instance, &inside).await?;
        let mut guests = roles::guests(&self.archive);
        guests.retain(|(schema, role)| !(schema == PUBLIC && role == owner));
        self.let_in(instance, &inside, &guests).await?;
        let dump = self.scratch.dir.path().join(DUMP);
        let toc = dump.join(TOC);
        // The link goes, not what it leads to.
        std::fs::remove_file(&toc).map_err(Failure::file("remove", &toc))?;
        std::fs::write(&toc, self.archive.write()).map_err(Failure::file("write", &toc))?;
        let mut command = tool.command(instance, database, Some(seat.login()));
        command.args(["--exit-on-error", "--no-tablespaces", "--dbname", database]);
        command.args(["--jobs", &jobs.to_string()]).arg(&dump);
        tokio::select! {
            done = tool.run(command) => done?,
            never = progress.follow("restores", instance, database, &self.manifest.contents.tables) => match never {},
        }
        guests.retain(|(schema, role)| !roles::may_create(&self.archive, schema, role));
        let out: String = guests
            .iter()
            .map(|(schema, role)| format!("REVOKE CREATE ON SCHEMA {} FROM {};", identifier(schema), identifier(role)))
            .collect();
        instance.run(&inside, "take back what the restore needed", &out).await?;
        progress.step("gathers statistics");
        let (role, password) = seat.login();
        let by_seat = instance.connect_as(database, role, password).await?;
        instance.run(&by_seat, "gather statistics", "SET statement_timeout = 0; ANALYZE").await
    }

    /// Extensions take the admin's rights, some of them. Their schemas come first, and none of it is made twice.
    async fn make_extensions(&mut self, instance: &Instance, inside: &tokio_postgres::Client) -> Result<(), Failure> {
        let is = |entry: &Entry, kind: &str, tag: &str| {
            entry.kind.as_deref() == Some(kind) && entry.tag.as_deref() == Some(tag)
        };
        // In the order of the dump, where those that need another come after it.
        let names = self.archive.entries.iter().filter(|entry| entry.kind.as_deref() == Some("EXTENSION"));
        let names: Vec<String> = names.filter_map(|entry| entry.tag.clone()).collect();
        for name in names {
            let known = self.manifest.contents.extensions.iter().find(|extension| extension.name == name);
            let schema = known.map(|extension| extension.schema.clone()).unwrap_or_default();
            let own = self.archive.entries.iter().find(|entry| is(entry, "SCHEMA", &schema));
            let mut sql = String::new();
            if let Some(owner) = own.and_then(|entry| entry.owner.clone()) {
                let (schema, owner) = (identifier(&schema), identifier(&owner));
                sql += &format!("CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {owner};");
            }
            sql += &format!("CREATE EXTENSION IF NOT EXISTS {}", identifier(&name));
            // Others make a schema of their own.
            if own.is_some() || schema == PUBLIC {
                sql += &format!(" WITH SCHEMA {}", identifier(&schema));
            }
            instance.run(inside, &format!("create extension {name}"), &sql).await?;
            let comment = format!("EXTENSION {name}");
            self.archive.entries.retain(|entry| {
                !is(entry, "EXTENSION", &name) && !is(entry, "SCHEMA", &schema) && !is(entry, "COMMENT", &comment)
            });
        }
        Ok(())
    }

    /// Lets roles own what is in others' schemas: in those that are there now, and in those that the dump makes.
    async fn let_in(
        &mut self,
        instance: &Instance,
        inside: &tokio_postgres::Client,
        guests: &BTreeSet<(String, String)>,
    ) -> Result<(), Failure> {
        let mut now = String::new();
        for (schema, role) in guests {
            let grant = format!("GRANT CREATE ON SCHEMA {} TO {};\n", identifier(schema), identifier(role));
            let makes = |entry: &&mut Entry| {
                entry.kind.as_deref() == Some("SCHEMA") && entry.tag.as_ref() == Some(schema) && schema != PUBLIC
            };
            match self.archive.entries.iter_mut().find(makes).and_then(|entry| entry.definition.as_mut()) {
                Some(definition) => *definition += &grant,
                None => now += &grant,
            }
        }
        instance.run(inside, "prepare the schemas", &now).await
    }

    /// What came out, and how it differs from what went in. The seat reads the rows.
    pub async fn compare(
        &self,
        target: &Target<'_>,
        seat: &Seat,
        depth: Depth,
        jobs: u32,
        progress: &Progress,
    ) -> Result<Contents, Failure> {
        let Target { instance, database, .. } = *target;
        progress.step("compares");
        let readers = seat.sessions(instance, database, jobs).await?;
        let admin = instance.look(database).await?;
        contents::pin(instance, &admin).await?;
        let wanted = &self.manifest.contents;
        let tables = contents::tables(instance, &admin).await?;
        let found = Contents {
            tables: contents::measure(instance, &readers, tables, depth).await?,
            sequences: contents::sequences(instance, &admin, &wanted.sequences).await?,
            large_objects: in_transaction(instance, &admin, depth).await?,
            extensions: contents::extensions(instance, &admin).await?,
            objects: contents::objects(instance, &admin).await?,
        };
        match contents::differences(wanted, &found) {
            differences if differences.is_empty() => Ok(found),
            differences => Err(Failure::Differs {
                database: database.to_owned(),
                instance: instance.name().to_owned(),
                differences,
            }),
        }
    }
}

/// Large objects are open within a transaction only.
async fn in_transaction(
    instance: &Instance,
    client: &tokio_postgres::Client,
    depth: Depth,
) -> Result<manifest::LargeObjects, Failure> {
    instance.run(client, "begin a transaction", "BEGIN").await?;
    let found = contents::large_objects(instance, client, depth).await?;
    instance.run(client, "end it", "COMMIT").await.map(|()| found)
}

pub async fn server_major(instance: &Instance, client: &tokio_postgres::Client) -> Result<u32, Failure> {
    let sql = "SELECT current_setting('server_version_num')::int / 10000";
    let major = instance.value(client, "ask for its version", sql).await?;
    Ok(major.and_then(|major| major.parse().ok()).unwrap_or_default())
}

/// An empty database with the encoding and locale that the dumped one had.
pub async fn create(
    instance: &Instance,
    session: &Session<'_>,
    name: &str,
    owner: Option<&str>,
    of: &Database,
) -> Result<(), Failure> {
    let major = server_major(instance, session).await?;
    let mut sql = format!("CREATE DATABASE {} TEMPLATE template0", identifier(name));
    if let Some(owner) = owner {
        sql += &format!(" OWNER {}", identifier(owner));
    }
    let mut set = |key: &str, value: &str| sql += &format!(" {key} {}", literal(value));
    set("ENCODING", &of.encoding);
    set("LC_COLLATE", &of.collate);
    set("LC_CTYPE", &of.ctype);
    if major >= 15 {
        set("LOCALE_PROVIDER", &of.locale_provider);
        let locale = match of.locale_provider.as_str() {
            "icu" => Some("ICU_LOCALE"),
            "builtin" => Some("BUILTIN_LOCALE"),
            _ => None,
        };
        if let (Some(key), Some(locale)) = (locale, &of.locale) {
            set(key, locale);
        }
        if let Some(rules) = &of.icu_rules {
            set("ICU_RULES", rules);
        }
        sql += " STRATEGY wal_log";
    }
    instance.run(session, "create the database", &sql).await
}
