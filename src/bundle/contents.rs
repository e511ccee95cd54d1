//! What is in a database: rows and checksums of its tables, large objects, extensions, objects by kind.
//!
//! The same on every major from 14 on. A row's hash is taken over its text, so everything that texts depend on is pinned
//! ([`pin`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_postgres::Client;

use super::manifest::{Checksum, Contents, Extension, LargeObjects, Sequence, Table};
use crate::lifecycle::Failure;
use crate::lifecycle::instance::Instance;
use crate::lifecycle::quote::{identifier, literal};

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Rows are counted.
    Counts,
    /// And hashed.
    Checksums,
}

/// Texts do not depend on who asks; nothing takes too long; row-level security hides nothing: it is an error where it
/// would; and a view that somebody puts in a table's place is not read, where the server is new enough to refuse
/// (CVE-2024-7348).
const PIN: &str = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres';
    SET extra_float_digits = 1; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET xmlbinary = 'base64';
    SET search_path = ''; SET row_security = off;
    SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings
     WHERE name = 'restrict_nonsystem_relation_kind';
    SELECT set_config(name, '0', false) FROM pg_settings
     WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')";

/// User's schemas.
const OURS: &str = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";

/// Sees to it that the session's texts are the same everywhere.
pub async fn pin(instance: &Instance, client: &Client) -> Result<(), Failure> {
    instance.run(client, "set up its session", PIN).await
}

/// The tables that pg_dump dumps rows of, largest first, without their rows: ordinary ones and partitions, none of
/// extensions.
pub async fn tables(instance: &Instance, client: &Client) -> Result<Vec<Table>, Failure> {
    let sql = format!(
        "SELECT n.nspname, c.relname, pg_table_size(c.oid)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {OURS}
            AND NOT EXISTS (SELECT FROM pg_depend d
                             WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
          ORDER BY 3 DESC, 1, 2"
    );
    let rows = instance.rows(client, "list the tables", &sql).await?;
    let tables = rows.into_iter().map(|row| {
        let [schema, name, bytes] = fields(row);
        Table { schema, name, bytes: bytes.parse().unwrap_or_default(), rows: 0, checksum: None }
    });
    Ok(tables.collect())
}

/// Those of the tables that superusers own, by full name: nobody else can have put anything on them that runs.
pub async fn of_superusers(instance: &Instance, client: &Client) -> Result<BTreeSet<String>, Failure> {
    let sql = format!(
        "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_roles r ON r.oid = c.relowner WHERE c.relkind = 'r' AND {OURS} AND r.rolsuper"
    );
    let rows = instance.rows(client, "look at the tables' owners", &sql).await?;
    Ok(rows.into_iter().map(|row| fields::<1>(row)[0].clone()).collect())
}

/// Counts the rows of all tables, several at a time: each client works until no table is left.
pub async fn measure(
    instance: &Instance,
    clients: &[Client],
    tables: Vec<Table>,
    depth: Depth,
) -> Result<Vec<Table>, Failure> {
    let queue = Arc::new(Mutex::new(VecDeque::from(tables)));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = clients.iter().map(|client| async {
        let mut done = Vec::new();
        while let Some(table) = next() {
            done.push(one(instance, client, table, depth).await?);
        }
        Ok::<_, Failure>(done)
    });
    let mut tables: Vec<Table> = futures_util::future::try_join_all(work).await?.into_iter().flatten().collect();
    tables.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    Ok(tables)
}

async fn one(instance: &Instance, client: &Client, mut table: Table, depth: Depth) -> Result<Table, Failure> {
    let what = format!("{}.{}", identifier(&table.schema), identifier(&table.name));
    let hash = match depth {
        Depth::Counts => "NULL::bigint",
        // Not a cast to text: the tenant may have made one for its table, and it would run with the admin's rights.
        Depth::Checksums => "hashtextextended(format('%s', pgtenant_row.*) COLLATE \"C\", 0)",
    };
    let from = format!("SELECT {hash} AS h FROM ONLY {what} AS pgtenant_row OFFSET 0");
    let (rows, checksum) = sum(instance, client, &format!("read table {}", table.full_name()), &from).await?;
    table.rows = rows;
    table.checksum = checksum;
    Ok(table)
}

/// Adds up the hashes `h` of a query.
async fn sum(
    instance: &Instance,
    client: &Client,
    what: &str,
    hashes: &str,
) -> Result<(u64, Option<Checksum>), Failure> {
    let sql = format!("SELECT count(*), count(h), bit_xor(h), sum(h::numeric) FROM ({hashes}) AS hashes");
    let rows = instance.rows(client, what, &sql).await?;
    let [rows, hashed, xor, sum] = fields(rows.into_iter().next().unwrap_or_default());
    let rows = rows.parse().unwrap_or_default();
    let checksum = (hashed != "0").then_some(Checksum { xor, sum });
    Ok((rows, checksum))
}

/// All of them, read in portions that fit into memory. The descriptors are closed one by one.
pub async fn large_objects(instance: &Instance, client: &Client, depth: Depth) -> Result<LargeObjects, Failure> {
    const PORTION: u32 = 16 << 20;
    let hashes = match depth {
        Depth::Counts => "SELECT NULL::bigint AS h FROM pg_largeobject_metadata".to_owned(),
        // 262144 is INV_READ, 2 SEEK_END (PostgreSQL manual, section 33.3).
        Depth::Checksums => format!(
            "SELECT hashtextextended(o.oid::text || string_agg(
                        encode(sha256(lo_get(o.oid, portion * {PORTION}, {PORTION})), 'hex'), ',' ORDER BY portion), 0) AS h
               FROM (SELECT oid, size, lo_close(fd) AS closed
                       FROM (SELECT oid, fd, lo_lseek64(fd, 0, 2) AS size
                               FROM (SELECT oid, lo_open(oid, 262144) AS fd FROM pg_largeobject_metadata OFFSET 0) a
                             OFFSET 0) b
                     OFFSET 0) o,
                    LATERAL generate_series(0, size / {PORTION}) AS portion
              WHERE closed = 0
              GROUP BY o.oid"
        ),
    };
    let (count, checksum) = sum(instance, client, "read the large objects", &hashes).await?;
    Ok(LargeObjects { count, checksum })
}

pub async fn extensions(instance: &Instance, client: &Client) -> Result<Vec<Extension>, Failure> {
    let sql = "SELECT extname, extversion, nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY 1";
    let rows = instance.rows(client, "list the extensions", sql).await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let [name, version, schema] = fields(row);
            Extension { name, version, schema }
        })
        .collect())
}

/// Values of the sequences that are there, of those that are named.
pub async fn sequences(instance: &Instance, client: &Client, wanted: &[Sequence]) -> Result<Vec<Sequence>, Failure> {
    const AT_A_TIME: usize = 500;
    let mut found = Vec::new();
    for some in wanted.chunks(AT_A_TIME) {
        let names = some.iter().map(|sequence| {
            let (schema, name) = (&sequence.schema, &sequence.name);
            format!("({}, {})", literal(schema), literal(name))
        });
        let there = format!(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind = 'S' AND (n.nspname, c.relname) IN ({})",
            names.collect::<Vec<_>>().join(", ")
        );
        let there = instance.rows(client, "list the sequences", &there).await?;
        let selects = there.into_iter().map(|row| {
            let [schema, name] = fields(row);
            format!(
                "SELECT {}, {}, last_value, is_called FROM {}.{}",
                literal(&schema),
                literal(&name),
                identifier(&schema),
                identifier(&name)
            )
        });
        let selects = selects.collect::<Vec<_>>().join(" UNION ALL ");
        if selects.is_empty() {
            continue;
        }
        for row in instance.rows(client, "read the sequences", &selects).await? {
            let [schema, name, value, called] = fields(row);
            found.push(Sequence { schema, name, value: value.parse().unwrap_or_default(), is_called: called == "t" });
        }
    }
    Ok(found)
}

/// How many objects of each kind there are, those of extensions left out. NOT NULL constraints are, since only 18 has
/// them as objects.
pub async fn objects(instance: &Instance, client: &Client) -> Result<BTreeMap<String, u64>, Failure> {
    let own = |class: &str, oid: &str| {
        format!(
            "NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{class}'::regclass AND d.objid = {oid} AND d.deptype = 'e')"
        )
    };
    let relation = own("pg_class", "c.oid");
    let sql = format!(
        "WITH relation AS (
           SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE {OURS} AND c.relpersistence <> 't' AND {relation})
         SELECT CASE relkind WHEN 'r' THEN 'tables' WHEN 'p' THEN 'partitioned tables' WHEN 'v' THEN 'views'
                  WHEN 'm' THEN 'materialized views' WHEN 'S' THEN 'sequences' WHEN 'f' THEN 'foreign tables'
                  WHEN 'c' THEN 'composite types' ELSE 'indexes' END AS kind, count(*)
           FROM relation WHERE relkind <> 't' GROUP BY 1
         UNION ALL SELECT 'tables with row-level security', count(*) FROM relation WHERE relrowsecurity
         UNION ALL SELECT 'policies', count(*) FROM pg_policy WHERE polrelid IN (SELECT oid FROM relation)
         UNION ALL SELECT 'constraints', count(*) FROM pg_constraint
                    WHERE conrelid IN (SELECT oid FROM relation) AND contype <> 'n'
         UNION ALL SELECT 'triggers', count(*) FROM pg_trigger
                    WHERE tgrelid IN (SELECT oid FROM relation) AND NOT tgisinternal
         UNION ALL SELECT 'generated columns', count(*) FROM pg_attribute
                    WHERE attrelid IN (SELECT oid FROM relation WHERE relkind IN ('r', 'p')) AND attgenerated <> ''
         UNION ALL SELECT 'identity columns', count(*) FROM pg_attribute
                    WHERE attrelid IN (SELECT oid FROM relation) AND attidentity <> ''
         UNION ALL SELECT 'comments on relations', count(*) FROM pg_description
                    WHERE classoid = 'pg_class'::regclass AND objoid IN (SELECT oid FROM relation)
         UNION ALL SELECT 'functions', count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                    WHERE {OURS} AND {}
         UNION ALL SELECT 'types', count(*) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
                    WHERE {OURS} AND typtype IN ('d', 'e', 'r') AND {}
         UNION ALL SELECT 'schemas', count(*) FROM pg_namespace n WHERE {OURS} AND {}",
        own("pg_proc", "p.oid"),
        own("pg_type", "t.oid"),
        own("pg_namespace", "n.oid")
    );
    let rows = instance.rows(client, "count the objects", &sql).await?;
    let counts = rows.into_iter().map(|row| {
        let [kind, count] = fields(row);
        (kind, count.parse().unwrap_or_default())
    });
    Ok(counts.filter(|(_, count)| *count > 0).collect())
}

/// What differs, in words; nothing where all is as it should be. Extensions may have another version.
pub fn differences(wanted: &Contents, found: &Contents) -> Vec<String> {
    let mut differences = Vec::new();
    let there: BTreeMap<String, &Table> = found.tables.iter().map(|table| (table.full_name(), table)).collect();
    for table in &wanted.tables {
        let name = table.full_name();
        match there.get(&name) {
            None => differences.push(format!("table {name} is missing")),
            Some(found) if found.rows != table.rows => {
                differences.push(format!("table {name} has {} rows instead of {}", found.rows, table.rows));
            }
            Some(found) if found.checksum.is_some() && found.checksum != table.checksum => {
                differences.push(format!("table {name} has other contents: its checksum differs"));
            }
            Some(_) => {}
        }
    }
    if found.tables.len() > wanted.tables.len() {
        differences.push(format!("there are {} tables instead of {}", found.tables.len(), wanted.tables.len()));
    }
    for sequence in &wanted.sequences {
        let is_it = |other: &&Sequence| (&other.schema, &other.name) == (&sequence.schema, &sequence.name);
        let name = format!("{}.{}", sequence.schema, sequence.name);
        match found.sequences.iter().find(is_it) {
            None => differences.push(format!("sequence {name} is missing")),
            Some(found) if found != sequence => {
                differences.push(format!("sequence {name} is at {} instead of {}", found.value, sequence.value));
            }
            Some(_) => {}
        }
    }
    let (wanted_large, found_large) = (&wanted.large_objects, &found.large_objects);
    if found_large.count != wanted_large.count {
        differences.push(format!("there are {} large objects instead of {}", found_large.count, wanted_large.count));
    } else if found_large.checksum.is_some() && found_large.checksum != wanted_large.checksum {
        differences.push("large objects have other contents: their checksum differs".to_owned());
    }
    for extension in &wanted.extensions {
        if !found.extensions.iter().any(|there| there.name == extension.name) {
            differences.push(format!("extension {} is missing", extension.name));
        }
    }
    let kinds = wanted.objects.keys().chain(found.objects.keys()).collect::<BTreeSet<_>>();
    for kind in kinds {
        let of = |contents: &Contents| contents.objects.get(kind).copied().unwrap_or_default();
        if of(wanted) != of(found) {
            differences.push(format!("there are {} {kind} instead of {}", of(found), of(wanted)));
        }
    }
    differences
}

/// A row's fields; NULL is an empty text.
pub fn fields<const N: usize>(row: Vec<Option<String>>) -> [String; N] {
    let mut fields = row.into_iter();
    std::array::from_fn(|_| fields.next().flatten().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: u64, xor: &str) -> Table {
        let checksum = Some(Checksum { xor: xor.to_owned(), sum: "1".to_owned() });
        Table { schema: "public".to_owned(), name: "t".to_owned(), bytes: 0, rows, checksum }
    }

    #[test]
    fn every_kind_of_difference_is_told() {
        let sequence = |value| Sequence { schema: "public".to_owned(), name: "s".to_owned(), value, is_called: true };
        let wanted = Contents {
            tables: vec![table(2, "5")],
            sequences: vec![sequence(42)],
            large_objects: LargeObjects { count: 1, checksum: None },
            extensions: vec![Extension {
                name: "hstore".to_owned(),
                version: "1.8".to_owned(),
                schema: "public".to_owned(),
            }],
            objects: BTreeMap::from([("views".to_owned(), 3)]),
        };
        assert_eq!(differences(&wanted, &wanted), Vec::<String>::new());
        let newer = Extension { version: "1.9".to_owned(), ..wanted.extensions[0].clone() };
        assert!(differences(&wanted, &Contents { extensions: vec![newer], ..wanted.clone() }).is_empty());
        // Counted only.
        let counted = Contents { tables: vec![Table { checksum: None, ..table(2, "") }], ..wanted.clone() };
        assert!(differences(&wanted, &counted).is_empty());
        let found = Contents {
            tables: vec![table(2, "6")],
            sequences: vec![sequence(41)],
            objects: BTreeMap::from([("triggers".to_owned(), 1)]),
            ..Contents::default()
        };
        assert_eq!(
            differences(&wanted, &found),
            [
                "table public.t has other contents: its checksum differs",
                "sequence public.s is at 41 instead of 42",
                "there are 0 large objects instead of 1",
                "extension hstore is missing",
                "there are 1 triggers instead of 0",
                "there are 0 views instead of 3",
            ]
        );
        assert_eq!(
            differences(&wanted, &Contents { tables: vec![table(1, "5")], ..wanted.clone() }),
            ["table public.t has 1 rows instead of 2"]
        );
    }
}
