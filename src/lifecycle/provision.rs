//! A tenant's roles and database on its instance: what makes them, and what takes them away again.
//!
//! Every function may run again after it was killed halfway: it makes what is missing and leaves the rest.

use tokio_postgres::Client;

use super::Failure;
use super::credentials::Credentials;
use super::instance::{Instance, Session};
use super::order::{Order, Roles, TEMPLATE};
use super::quote::{identifier, literal};

/// "pgtenant" in ASCII: whoever changes roles or grants of a cluster holds this advisory lock in the admin's database.
/// At the same time, such commands fail with "tuple concurrently updated".
pub(crate) const LOCK: &str = "SELECT pg_advisory_xact_lock(8099570433841524340);";

/// Owner (NOLOGIN), application and read-only role, with the given passwords' verifiers.
pub async fn roles(
    instance: &Instance,
    session: &Session<'_>,
    roles: &Roles,
    credentials: &Credentials,
) -> Result<(), Failure> {
    let there = existing_roles(instance, session, &roles.all()).await?;
    let mut sql = LOCK.to_owned();
    for role in roles.all() {
        let verb = if there.iter().any(|name| name == role) { "ALTER" } else { "CREATE" };
        let login = match credentials.get(role) {
            Some(credential) => format!("LOGIN PASSWORD {}", literal(credential.verifier.expose())),
            None => "NOLOGIN".to_owned(),
        };
        sql += &format!("{verb} ROLE {} NOSUPERUSER NOCREATEDB NOCREATEROLE {login};", identifier(role));
    }
    // An admin who is no superuser acts for them, and ends their sessions, as a member.
    if !is_superuser(instance, session).await? {
        sql += &format!("GRANT {} TO CURRENT_USER;", roles.all().map(identifier).join(", "));
    }
    instance.run(session, "make the roles", &sql).await
}

pub(crate) async fn is_superuser(instance: &Instance, session: &Session<'_>) -> Result<bool, Failure> {
    let sql = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user";
    Ok(instance.value(session, "look at its own role", sql).await?.as_deref() == Some("t"))
}

/// Those of `names` that there are.
pub async fn existing_roles(
    instance: &Instance,
    session: &Session<'_>,
    names: &[&str],
) -> Result<Vec<String>, Failure> {
    let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
    let sql = format!("SELECT rolname FROM pg_roles WHERE rolname IN ({})", names.join(", "));
    let rows = instance.rows(session, "look for roles", &sql).await?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

/// The database's owner, where there is one of this name.
pub async fn owner_of(instance: &Instance, session: &Session<'_>, database: &str) -> Result<Option<String>, Failure> {
    let sql = format!("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = {}", literal(database));
    instance.value(session, "look for the database", &sql).await
}

/// A copy of the template. `wal_log` has no checkpoint of the whole cluster, which `file_copy` does twice (PostgreSQL
/// manual, CREATE DATABASE).
pub async fn database(instance: &Instance, session: &Session<'_>, order: &Order) -> Result<(), Failure> {
    let (database, owner) = (identifier(&order.database), identifier(&order.roles.owner));
    let template = identifier(&order.template);
    let sql = format!("CREATE DATABASE {database} OWNER {owner} TEMPLATE {template} STRATEGY wal_log");
    match instance.run(session, "create the database", &sql).await {
        // The server went on with it when the run before was killed.
        Err(Failure::Sql { sqlstate: Some(code), .. }) if ["42P04", "23505"].contains(&code.as_str()) => Ok(()),
        result => result,
    }
}

/// Nobody else connects; the application reads and writes, and may make tables; the read-only role reads.
pub async fn grants(instance: &Instance, session: &Session<'_>, inside: &Client, order: &Order) -> Result<(), Failure> {
    grant_connect(instance, session, order).await?;
    if order.template != TEMPLATE {
        let adopt = ADOPT.replace("$owner", &literal(&order.roles.owner));
        instance.run(inside, "give the template's objects to the owner", &adopt).await?;
    }
    grant_contents(instance, inside, order).await
}

/// Who may connect to the database.
pub async fn grant_connect(instance: &Instance, session: &Session<'_>, order: &Order) -> Result<(), Failure> {
    let database = identifier(&order.database);
    let (app, read_only) = (identifier(&order.roles.app), identifier(&order.roles.read_only));
    let shared = format!(
        "{LOCK}
         REVOKE ALL ON DATABASE {database} FROM PUBLIC;
         GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {app};
         GRANT CONNECT ON DATABASE {database} TO {read_only};"
    );
    instance.run(session, "grant CONNECT", &shared).await
}

/// Who may do what in it, with what there is and with what will be.
pub async fn grant_contents(instance: &Instance, inside: &Client, order: &Order) -> Result<(), Failure> {
    let [owner_text, app_text, read_only_text] =
        [&order.roles.owner, &order.roles.app, &order.roles.read_only].map(|role| literal(role));
    let grants =
        GRANTS.replace("$owner", &owner_text).replace("$app", &app_text).replace("$read_only", &read_only_text);
    instance.run(inside, "grant what is in the database", &grants).await
}

/// What came with the template and belongs to no extension.
const ADOPT: &str = "DO $do$ DECLARE command text; BEGIN
  FOR command IN
    WITH ours AS (
      SELECT oid, nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    ), extension AS (
      SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
    )
    SELECT format('ALTER SCHEMA %I OWNER TO %I', nspname, $owner) FROM ours
     WHERE nspname <> 'public' AND ('pg_namespace'::regclass, oid) NOT IN (SELECT classid, objid FROM extension)
    UNION ALL
    SELECT format('ALTER TABLE %s OWNER TO %I', c.oid::regclass, $owner)
      FROM pg_class c JOIN ours ON ours.oid = relnamespace
     WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
       AND ('pg_class'::regclass, c.oid) NOT IN (SELECT classid, objid FROM extension)
       AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid
                        AND c.relkind = 'S' AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i'))
    UNION ALL
    SELECT format('ALTER ROUTINE %s OWNER TO %I', p.oid::regprocedure, $owner)
      FROM pg_proc p JOIN ours ON ours.oid = pronamespace
     WHERE ('pg_proc'::regclass, p.oid) NOT IN (SELECT classid, objid FROM extension)
    UNION ALL
    SELECT format('ALTER %s %s OWNER TO %I', CASE typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, t.oid::regtype, $owner)
      FROM pg_type t JOIN ours ON ours.oid = typnamespace LEFT JOIN pg_class c ON c.oid = typrelid
     WHERE (typtype IN ('d', 'e', 'r') OR c.relkind = 'c')
       AND ('pg_type'::regclass, t.oid) NOT IN (SELECT classid, objid FROM extension)
  LOOP EXECUTE command; END LOOP;
END $do$";

/// For what there is, and what owner and application will make.
const GRANTS: &str = "REVOKE CREATE ON SCHEMA public FROM PUBLIC;
DO $do$ DECLARE schema text; command text; BEGIN
  -- A history of migrations that came with the template is read by the application, and written by the owner alone.
  IF to_regnamespace('pgtenant') IS NOT NULL THEN
    EXECUTE format('GRANT USAGE ON SCHEMA pgtenant TO %1$I, %2$I', $app, $read_only);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA pgtenant TO %1$I, %2$I', $app, $read_only);
  END IF;
  FOR schema IN SELECT nspname FROM pg_namespace
   WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'pgtenant') LOOP
    FOREACH command IN ARRAY ARRAY[
      'GRANT USAGE ON SCHEMA %1$I TO %2$I, %3$I',
      'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %1$I TO %2$I',
      'GRANT ALL ON ALL SEQUENCES IN SCHEMA %1$I TO %2$I',
      'GRANT SELECT ON ALL TABLES IN SCHEMA %1$I TO %3$I',
      'GRANT SELECT ON ALL SEQUENCES IN SCHEMA %1$I TO %3$I']
    LOOP EXECUTE format(command, schema, $app, $read_only); END LOOP;
  END LOOP;
  FOREACH command IN ARRAY ARRAY[
    'GRANT CREATE ON SCHEMA public TO %2$I',
    'ALTER DEFAULT PRIVILEGES FOR ROLE %1$I GRANT USAGE ON SCHEMAS TO %2$I, %3$I',
    'ALTER DEFAULT PRIVILEGES FOR ROLE %1$I GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %2$I',
    'ALTER DEFAULT PRIVILEGES FOR ROLE %1$I GRANT ALL ON SEQUENCES TO %2$I',
    'ALTER DEFAULT PRIVILEGES FOR ROLE %1$I, %2$I GRANT SELECT ON TABLES TO %3$I',
    'ALTER DEFAULT PRIVILEGES FOR ROLE %1$I, %2$I GRANT SELECT ON SEQUENCES TO %3$I']
  LOOP EXECUTE format(command, $owner, $app, $read_only); END LOOP;
END $do$";

pub async fn extensions(instance: &Instance, inside: &Client, order: &Order) -> Result<(), Failure> {
    for extension in &order.extensions {
        let sql = format!("CREATE EXTENSION IF NOT EXISTS {}", identifier(extension));
        instance.run(inside, &format!("create extension {extension}"), &sql).await?;
    }
    Ok(())
}

/// `ALTER DATABASE … SET` with the value as `set_config` reads it, lists included; and the read-only role's.
pub async fn settings(instance: &Instance, inside: &Client, order: &Order) -> Result<(), Failure> {
    let database = identifier(&order.database);
    for (name, value) in &order.settings {
        let parts: Vec<String> = name.split('.').map(identifier).collect();
        let sql = format!(
            "SELECT set_config({}, {}, false); ALTER DATABASE {database} SET {} FROM CURRENT",
            literal(name),
            literal(value),
            parts.join(".")
        );
        instance.run(inside, &format!("set {name}"), &sql).await?;
    }
    let read_only = identifier(&order.roles.read_only);
    let sql = format!("ALTER ROLE {read_only} IN DATABASE {database} SET default_transaction_read_only = on");
    instance.run(inside, "make the read-only role read", &sql).await
}

/// Ends the sessions in it, and drops it; whether there was one.
pub async fn drop_database(instance: &Instance, session: &Session<'_>, database: &str) -> Result<bool, Failure> {
    if owner_of(instance, session, database).await?.is_none() {
        return Ok(false);
    }
    let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(database));
    instance.run(session, "drop the database", &sql).await.map(|()| true)
}

/// Drops those of them that there are, and names them.
pub async fn drop_roles(instance: &Instance, session: &Session<'_>, names: &[&str]) -> Result<Vec<String>, Failure> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let there = existing_roles(instance, session, names).await?;
    let mut sql = LOCK.to_owned();
    for role in &there {
        sql += &format!("DROP ROLE {};", identifier(role));
    }
    instance.run(session, "drop the roles", &sql).await?;
    Ok(there)
}
