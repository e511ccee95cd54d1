//! Who restores rows and reads them: a login for as long as it takes, with the rights of the tenant's roles and no others.
//!
//! A CHECK constraint or a generated column may call what the tenant has written, and COPY, or already CREATE TABLE, runs it
//! with the rights of who restores; planning a SELECT on a table with an index on an expression does the same. That must not be the instance's admin, to whom all tenants' databases are open.

use std::collections::BTreeSet;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::Client;

use super::contents;
use crate::config::{Secret, Tenant};
use crate::lifecycle::credentials::Credential;
use crate::lifecycle::instance::Instance;
use crate::lifecycle::quote::{identifier, literal};
use crate::lifecycle::{Failure, Roles, provision, shelf};

/// One that a killed run has left cannot log in after this.
const VALID: time::Duration = time::Duration::days(7);

/// See the module.
pub struct Seat {
    role: String,
    password: Secret,
}

impl Seat {
    /// Makes the login a member of these roles.
    pub async fn take(instance: &Instance, tenant: &str, member_of: &[&str]) -> Result<Seat, Failure> {
        let session = instance.session().await?;
        let credential = Credential::generate()?;
        let role = shelf::seat(tenant);
        let there = provision::existing_roles(instance, &session, &[&role]).await?;
        let verb = if there.is_empty() { "CREATE" } else { "ALTER" };
        let until = (OffsetDateTime::now_utc() + VALID).format(&Rfc3339);
        let until = until.map_err(|error| Failure::Order(error.to_string()))?;
        let (name, verifier) = (identifier(&role), literal(credential.verifier.expose()));
        let mut sql = format!(
            "{}{verb} ROLE {name} NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT LOGIN
               PASSWORD {verifier} VALID UNTIL '{until}';",
            provision::LOCK
        );
        for of in member_of {
            sql += &format!("GRANT {} TO {name};", identifier(of));
        }
        match provision::is_superuser(instance, &session).await? {
            // Tables may hide rows from their owner. Nothing more: pg_read_all_data would read everybody's verifiers.
            true => sql += &format!("ALTER ROLE {name} BYPASSRLS;"),
            // Who is none gives objects away as a member only.
            false => sql += &format!("GRANT {name} TO CURRENT_USER;"),
        }
        instance.run(&session, "make the role that restores", &sql).await?;
        Ok(Seat { role, password: credential.password })
    }

    pub fn login(&self) -> (&str, &Secret) {
        (&self.role, &self.password)
    }

    /// Sessions in a database, whose texts are the same everywhere.
    pub async fn sessions(&self, instance: &Instance, database: &str, number: u32) -> Result<Vec<Client>, Failure> {
        let mut sessions = Vec::new();
        for _ in 0..number {
            let session = instance.connect_as(database, &self.role, &self.password).await?;
            contents::pin(instance, &session).await?;
            sessions.push(session);
        }
        Ok(sessions)
    }

    pub fn role(&self) -> &str {
        &self.role
    }

    /// Tables of extensions belong to the admin, and some have rows of the tenant's.
    pub async fn may_fill(&self, instance: &Instance, inside: &Client) -> Result<(), Failure> {
        let grants = FILL.replace("$role", &literal(&self.role));
        instance.run(inside, "let the rows be restored", &grants).await
    }

    /// Drops the login of a tenant, where there is one; what it may have made in the database is `heir`'s.
    pub async fn leave(instance: &Instance, tenant: &str, in_database: Option<(&str, &str)>) -> Result<(), Failure> {
        let (session, role) = (instance.session().await?, shelf::seat(tenant));
        if provision::existing_roles(instance, &session, &[&role]).await?.is_empty() {
            return Ok(());
        }
        let name = identifier(&role);
        if let Some((database, heir)) = in_database {
            let inside = instance.look(database).await?;
            let give = format!("REASSIGN OWNED BY {name} TO {}; DROP OWNED BY {name};", identifier(heir));
            instance.run(&inside, "give away what the restore has made", &give).await?;
        }
        let drop = format!("{}DROP ROLE IF EXISTS {name};", provision::LOCK);
        instance.run(&session, "drop the role that restored", &drop).await
    }
}

/// Of a tenant's roles on its instance, those that reach nothing beyond it.
pub async fn harmless(instance: &Instance, tenant: &Tenant) -> Result<Vec<String>, Failure> {
    let session = instance.session().await?;
    let ours = Roles::of(&tenant.id);
    let mut names: BTreeSet<String> = tenant.roles.keys().cloned().collect();
    names.extend(ours.all().map(str::to_owned));
    names.extend(provision::owner_of(instance, &session, &tenant.database).await?);
    let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
    let sql = format!(
        "SELECT rolname FROM pg_roles
          WHERE rolname IN ({}) AND NOT (rolsuper OR rolcreaterole OR rolreplication OR rolname ~ '^pg_')",
        names.join(", ")
    );
    let rows = instance.rows(&session, "look at the tenant's roles", &sql).await?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

const FILL: &str = "DO $do$ DECLARE command text; BEGIN
  FOR command IN
    SELECT format('GRANT INSERT ON %s TO %I', c.oid::regclass, $role) FROM pg_class c
      JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
     WHERE c.relkind IN ('r', 'p') AND c.relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)
    UNION ALL
    SELECT format('GRANT UPDATE ON SEQUENCE %s TO %I', c.oid::regclass, $role) FROM pg_class c
      JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
     WHERE c.relkind = 'S' AND c.relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)
  LOOP EXECUTE command; END LOOP;
END $do$";
