//! A schema as text, object by object, so that databases can be told apart that should be the same.
//!
//! Owners, grants, comments and statistics targets are not part of it: the first two differ between tenants by design. The
//! catalogue is read and nothing of it run.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::super::Failure;
use super::super::instance::Instance;
use super::Target;

/// Object → definition.
pub type Schema = BTreeMap<String, String>;

/// A tenant's schema as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// PostgreSQL's major version: the text of views and expressions differs between them.
    pub major: u32,
    pub schema: Schema,
}

/// Objects of extensions, and ours, are left out.
const OBJECTS: &str = "
WITH ours AS (
  SELECT oid, nspname FROM pg_namespace
   WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'pgtenant')
), extended AS (
  SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
), relations AS (
  SELECT c.*, format('%I.%I', nspname, relname) AS name FROM pg_class c JOIN ours ON ours.oid = relnamespace
   WHERE ('pg_class'::regclass, c.oid) NOT IN (SELECT classid, objid FROM extended)
)
SELECT 'schema ' || quote_ident(nspname), '' FROM ours
UNION ALL
SELECT 'extension ' || quote_ident(extname), extversion FROM pg_extension
UNION ALL
SELECT CASE relkind WHEN 'r' THEN 'table ' WHEN 'p' THEN 'table ' WHEN 'v' THEN 'view ' WHEN 'm' THEN 'view '
         WHEN 'f' THEN 'foreign table ' WHEN 'S' THEN 'sequence ' ELSE 'type ' END || name,
       concat_ws(' ', relkind, relpersistence, relrowsecurity, relforcerowsecurity, reloptions::text,
         pg_get_partkeydef(oid), pg_get_expr(relpartbound, oid),
         (SELECT string_agg(inhparent::regclass::text, ',' ORDER BY inhseqno) FROM pg_inherits WHERE inhrelid = oid),
         CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(oid) END,
         (SELECT concat_ws(' ', seqtypid::regtype, seqstart, seqincrement, seqmax, seqmin, seqcache, seqcycle)
            FROM pg_sequence WHERE seqrelid = oid))
  FROM relations WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')
UNION ALL
SELECT format('column %s.%I', name, attname),
       concat_ws(' ', row_number() OVER (PARTITION BY attrelid ORDER BY attnum), format_type(atttypid, atttypmod),
         CASE WHEN attnotnull THEN 'not null' END, attidentity, attgenerated, attcollation::regcollation,
         (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum))
  FROM pg_attribute JOIN relations r ON r.oid = attrelid
 WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
UNION ALL
SELECT format('constraint %s %I', name, conname), concat_ws(' ', pg_get_constraintdef(o.oid), convalidated)
  FROM pg_constraint o JOIN relations r ON r.oid = conrelid WHERE contype <> 'n'
UNION ALL
SELECT format('domain constraint %s %I', contypid::regtype, conname), pg_get_constraintdef(o.oid)
  FROM pg_constraint o JOIN ours ON ours.oid = connamespace WHERE contypid <> 0 AND contype <> 'n'
UNION ALL
SELECT 'index ' || r.name, concat_ws(' ', pg_get_indexdef(indexrelid), CASE WHEN indisvalid THEN '' ELSE 'invalid' END)
  FROM pg_index JOIN relations r ON r.oid = indexrelid
UNION ALL
SELECT format('routine %I.%s', nspname, p.oid::regprocedure),
       CASE WHEN prokind IN ('f', 'p', 'w') THEN pg_get_functiondef(p.oid) ELSE prosrc END
  FROM pg_proc p JOIN ours ON ours.oid = pronamespace
 WHERE ('pg_proc'::regclass, p.oid) NOT IN (SELECT classid, objid FROM extended)
UNION ALL
SELECT format('trigger %s %I', name, tgname), concat_ws(' ', pg_get_triggerdef(t.oid), tgenabled)
  FROM pg_trigger t JOIN relations r ON r.oid = tgrelid WHERE NOT tgisinternal
UNION ALL
SELECT format('policy %s %I', name, polname),
       concat_ws(' ', polcmd, polpermissive, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
  FROM pg_policy JOIN relations r ON r.oid = polrelid
UNION ALL
SELECT format('rule %s %I', name, rulename), pg_get_ruledef(w.oid)
  FROM pg_rewrite w JOIN relations r ON r.oid = ev_class WHERE rulename <> '_RETURN'
UNION ALL
SELECT format('type %I.%I', nspname, typname),
       concat_ws(' ', typtype, format_type(NULLIF(typbasetype, 0), typtypmod), typnotnull, typdefault,
         (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid))
  FROM pg_type t JOIN ours ON ours.oid = typnamespace
 WHERE typtype IN ('d', 'e', 'r') AND ('pg_type'::regclass, t.oid) NOT IN (SELECT classid, objid FROM extended)";

/// Reads a tenant's schema.
///
/// # Errors
/// The instance fails.
pub async fn read(instance: &Instance, target: &Target<'_>) -> Result<Found, Failure> {
    let admin = instance.look(target.database).await?;
    let version = instance.value(&admin, "ask for its version", "SHOW server_version_num").await?.unwrap_or_default();
    let rows = instance.rows(&admin, "read the schema", OBJECTS).await?;
    let object = |row: Vec<Option<String>>| {
        let mut row = row.into_iter();
        Some((row.next()??, row.next()?.unwrap_or_default()))
    };
    Ok(Found {
        major: version.parse::<u32>().unwrap_or_default() / 10_000,
        schema: rows.into_iter().filter_map(object).collect(),
    })
}

/// Twelve hexadecimal digits that equal schemas share.
pub fn hash(schema: &Schema) -> String {
    let digest = schema
        .iter()
        .fold(Sha256::new(), |digest, (object, definition)| digest.chain_update(format!("{object}\0{definition}\0")));
    digest.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `other` has more (`+`), less (`-`) or differently (`~`) than `usual`.
pub fn differences(usual: &Schema, other: &Schema) -> Vec<String> {
    let more = other.keys().filter(|object| !usual.contains_key(*object)).map(|object| format!("+ {object}"));
    let less = usual.keys().filter(|object| !other.contains_key(*object)).map(|object| format!("- {object}"));
    let differs = |(object, definition): &(&String, &String)| usual.get(*object).is_some_and(|was| was != *definition);
    let differently = other.iter().filter(differs).map(|(object, _)| format!("~ {object}"));
    more.chain(less).chain(differently).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_told_apart_by_object() {
        let schema = |objects: &[(&str, &str)]| -> Schema {
            objects.iter().map(|(object, text)| ((*object).to_owned(), (*text).to_owned())).collect()
        };
        let usual = schema(&[("table a", "r"), ("column a.x", "int")]);
        let other = schema(&[("column a.x", "text"), ("table b", "r")]);
        assert_eq!(differences(&usual, &other), ["+ table b", "- table a", "~ column a.x"]);
        assert_ne!(hash(&usual), hash(&other));
        assert_eq!(hash(&usual), hash(&usual.clone()));
    }
}
