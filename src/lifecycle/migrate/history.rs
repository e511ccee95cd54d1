//! The history of a tenant's migrations: two tables in schema `pgtenant` of its database, which belong to its owner.
//!
//! It is read by COPY alone: that reads plain tables and nothing else, so that a view or rule in their place, which would
//! run with the reader's rights, is an error.

use std::pin::pin;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::super::Failure;
use super::super::instance::Instance;
use super::super::quote::literal;
use super::folder::{Migration, set_hash};
use super::plan::{Entry, Unfinished, Way};

/// Made by the owner; from then on nobody else may write. Default privileges may have given others more.
const TABLES: &str = "BEGIN;
CREATE SCHEMA IF NOT EXISTS pgtenant;
CREATE TABLE IF NOT EXISTS pgtenant.migrations (
  version bigint PRIMARY KEY,
  name text NOT NULL,
  checksum text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now(),
  applied_by text NOT NULL,
  seconds double precision,
  unfinished text CHECK (unfinished IN ('up', 'down')),
  done integer NOT NULL DEFAULT 0,
  running boolean NOT NULL DEFAULT false);
COMMENT ON TABLE pgtenant.migrations IS
  'Migrations of this database; pgtenant migrate repair changes what is wrong here';
CREATE TABLE IF NOT EXISTS pgtenant.migration_set (
  id integer PRIMARY KEY DEFAULT 1 CHECK (id = 1),
  hash text NOT NULL);
COMMENT ON TABLE pgtenant.migration_set IS
  'SHA-256 of versions and checksums of pgtenant.migrations; empty while one is unfinished';
DO $do$ DECLARE command text; BEGIN
  FOR command IN
    WITH granted AS (
      SELECT DISTINCT 'SCHEMA pgtenant' AS object, grantee
        FROM pg_catalog.pg_namespace, pg_catalog.aclexplode(nspacl)
       WHERE nspname = 'pgtenant' AND grantee <> nspowner AND privilege_type = 'CREATE'
      UNION ALL
      SELECT DISTINCT c.oid::pg_catalog.regclass::text, grantee
        FROM pg_catalog.pg_class c, pg_catalog.aclexplode(relacl)
       WHERE relnamespace = 'pgtenant'::pg_catalog.regnamespace AND relname IN ('migrations', 'migration_set')
         AND grantee <> relowner AND privilege_type <> 'SELECT')
    SELECT pg_catalog.format(
      CASE object WHEN 'SCHEMA pgtenant' THEN 'REVOKE CREATE ON %s FROM %s'
      ELSE 'REVOKE INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON %s FROM %s' END,
      object, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::pg_catalog.regrole::text END) FROM granted
  LOOP EXECUTE command; END LOOP;
END $do$;
COMMIT";

/// Makes the tables where there are none.
pub async fn prepare(instance: &Instance, client: &Client) -> Result<(), Failure> {
    let there = "SELECT pg_catalog.to_regclass('pgtenant.migration_set') IS NOT NULL";
    if instance.value(client, "look for the history", there).await?.as_deref() == Some("t") {
        return Ok(());
    }
    client.batch_execute(TABLES).await.map_err(|error| instance.failed("make the history", &error))
}

/// What one query tells: the hash of what is applied; none where there is no history.
pub async fn hash(instance: &Instance, client: &Client) -> Result<Option<String>, Failure> {
    let rows = copied(instance, client, "COPY pgtenant.migration_set (hash) TO STDOUT").await?;
    Ok(rows.and_then(|rows| rows.into_iter().next()?.into_iter().next()))
}

/// All entries, in the order of versions.
pub async fn entries(instance: &Instance, client: &Client) -> Result<Vec<Entry>, Failure> {
    let sql = "COPY pgtenant.migrations (version, name, checksum, unfinished, done, running) TO STDOUT";
    let rows = copied(instance, client, sql).await?.unwrap_or_default();
    let strange = || Failure::Sql {
        instance: instance.name().to_owned(),
        what: "read the history".to_owned(),
        why: "pgtenant.migrations is not the table that it should be".to_owned(),
        sqlstate: None,
    };
    let mut entries = rows.iter().map(|row| entry(row).ok_or_else(strange)).collect::<Result<Vec<Entry>, _>>()?;
    entries.sort_by_key(|entry| entry.version);
    Ok(entries)
}

fn entry(row: &[String]) -> Option<Entry> {
    let [version, name, checksum, unfinished, done, running] = row else { return None };
    let way = match unfinished.as_str() {
        "\\N" => None,
        "up" => Some(Way::Up),
        "down" => Some(Way::Down),
        _ => return None,
    };
    let done = done.parse().ok()?;
    let unfinished = way.map(|way| Unfinished { way, done, running: running == "t" });
    Some(Entry { version: version.parse().ok()?, name: unescaped(name), checksum: unescaped(checksum), unfinished })
}

/// Fields as COPY writes them, in text; none where there is no such table.
async fn copied(instance: &Instance, client: &Client, sql: &str) -> Result<Option<Vec<Vec<String>>>, Failure> {
    let failed = |error: tokio_postgres::Error| instance.failed("read the history", &error);
    let stream = match client.copy_out(sql).await {
        Err(error) if is_absent(&error) => return Ok(None),
        stream => stream.map_err(failed)?,
    };
    let (mut stream, mut text) = (pin!(stream), Vec::new());
    while let Some(piece) =
        std::future::poll_fn(|context| futures_core::Stream::poll_next(stream.as_mut(), context)).await
    {
        text.extend_from_slice(&piece.map_err(failed)?);
    }
    let text = String::from_utf8_lossy(&text);
    Ok(Some(text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()))
}

fn is_absent(error: &tokio_postgres::Error) -> bool {
    [&SqlState::UNDEFINED_TABLE, &SqlState::INVALID_SCHEMA_NAME].iter().any(|code| error.code() == Some(code))
}

/// COPY's escapes (PostgreSQL manual, COPY, text format), those that our values can have.
fn unescaped(field: &str) -> String {
    field.replace("\\t", "\t").replace("\\n", "\n").replace("\\\\", "\\")
}

/// What has changed, as SQL that runs in the transaction of the change itself.
#[derive(Debug)]
pub struct Change<'a> {
    pub entry: Entry,
    /// Gone rather than there.
    pub removed: bool,
    pub who: &'a str,
    pub took: Took,
}

/// How long it took.
#[derive(Debug, Clone, Copy)]
pub enum Took {
    /// As long as the transaction that this is written in.
    InTransaction,
    Seconds(f64),
    /// It was not run.
    Unknown,
}

impl<'a> Change<'a> {
    pub fn applied(migration: &Migration, who: &'a str, took: Took) -> Change<'a> {
        Change { entry: of(migration, None), removed: false, who, took }
    }

    pub fn removed(migration: &Migration) -> Change<'static> {
        Change { entry: of(migration, None), removed: true, who: "", took: Took::Unknown }
    }

    pub fn unfinished(migration: &Migration, unfinished: Unfinished, who: &'a str) -> Change<'a> {
        Change { entry: of(migration, Some(unfinished)), removed: false, who, took: Took::Unknown }
    }

    /// Makes the change in `history`, and gives the SQL that makes it in the database.
    pub fn sql(self, history: &mut Vec<Entry>) -> String {
        let version = self.entry.version;
        history.retain(|entry| entry.version != version);
        let mut sql = match self.removed {
            true => format!("DELETE FROM pgtenant.migrations WHERE version = {version};"),
            false => self.upsert(),
        };
        if !self.removed {
            history.push(self.entry);
            history.sort_by_key(|entry| entry.version);
        }
        sql += &set_sql(history);
        sql
    }

    fn upsert(&self) -> String {
        let Entry { version, name, checksum, unfinished } = &self.entry;
        let (way, done, running) = match unfinished {
            None => ("NULL".to_owned(), 0, false),
            Some(unfinished) => (literal(unfinished.way.text()), unfinished.done, unfinished.running),
        };
        let (name, checksum, who) = (literal(name), literal(checksum), literal(self.who));
        let seconds = match self.took {
            Took::Unknown => "NULL".to_owned(),
            Took::Seconds(seconds) => format!("{seconds:.3}"),
            Took::InTransaction => {
                "EXTRACT(EPOCH FROM pg_catalog.clock_timestamp() - pg_catalog.transaction_timestamp())".to_owned()
            }
        };
        format!(
            "INSERT INTO pgtenant.migrations (version, name, checksum, applied_by, seconds, unfinished, done, running)
             VALUES ({version}, {name}, {checksum}, {who}, {seconds}, {way}, {done}, {running})
             ON CONFLICT (version) DO UPDATE SET name = EXCLUDED.name, checksum = EXCLUDED.checksum,
               applied_at = pg_catalog.now(), applied_by = EXCLUDED.applied_by, seconds = EXCLUDED.seconds,
               unfinished = EXCLUDED.unfinished, done = EXCLUDED.done, running = EXCLUDED.running;"
        )
    }
}

/// The hash that belongs to a history.
pub fn hash_of(history: &[Entry]) -> String {
    match history.iter().any(|entry| entry.unfinished.is_some()) {
        true => String::new(),
        false => set_hash(history.iter().map(|entry| (entry.version, entry.checksum.as_str()))),
    }
}

/// Writes the hash of a history.
pub fn set_sql(history: &[Entry]) -> String {
    format!(
        "INSERT INTO pgtenant.migration_set (id, hash) VALUES (1, '{}')
         ON CONFLICT (id) DO UPDATE SET hash = EXCLUDED.hash;",
        hash_of(history)
    )
}

fn of(migration: &Migration, unfinished: Option<Unfinished>) -> Entry {
    Entry { version: migration.version, name: migration.name.clone(), checksum: migration.checksum.clone(), unfinished }
}
