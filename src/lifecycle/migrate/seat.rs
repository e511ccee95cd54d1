//! Where a migration is run from: a login of its own that has the rights of the tenant's owner and no others, for as long
//! as the work lasts, on a direct connection that holds the tenant's advisory lock.
//!
//! The admin's own connection only looks, and makes and drops that role: nothing that a tenant or a migration has written
//! is ever run with the admin's rights.

use std::time::Duration;

use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::Client;

use super::super::credentials::Credential;
use super::super::instance::Instance;
use super::super::quote::{identifier, literal};
use super::super::{Failure, faults, provision};
use super::plan::Entry;
use super::{ACT, Target, history};

/// First half of our advisory locks in a tenant's database; "pgtn" in ASCII.
const CLASS: i32 = i32::from_be_bytes(*b"pgtn");
/// Held by the admin's connection while the role is there.
const ROLE_LOCK: i32 = 1;
/// Held by the working connection: a statement that outlives its run keeps the next one away.
const WORK_LOCK: i32 = 2;
/// How long another run on the tenant is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);
/// A login that a killed run left behind ends by itself.
const VALID: time::Duration = time::Duration::days(1);
/// The database's owner; the roles by which it could act on the whole cluster (predefined ones reach files, programs, and
/// others' sessions); and the other databases that it could act on as their owner.
const REACH: &str = "SELECT pg_get_userbyid(datdba),
    (SELECT string_agg(r.rolname, ', ') FROM pg_roles r WHERE pg_has_role(datdba, r.oid, 'MEMBER')
        AND (r.rolsuper OR r.rolcreaterole OR r.rolreplication
             OR (r.rolname ~ '^pg_' AND r.rolname <> 'pg_database_owner'))),
    (SELECT string_agg(o.datname, ', ') FROM pg_database o
      WHERE pg_has_role(d.datdba, o.datdba, 'MEMBER') AND o.datname <> d.datname)
  FROM pg_database d WHERE datname = current_database()";

/// See the module.
pub struct Seat<'a> {
    pub work: Client,
    pub history: Vec<Entry>,
    instance: &'a Instance,
    admin: Client,
    role: String,
    owner: String,
}

impl<'a> Seat<'a> {
    /// Takes the tenant for this run. `admin` is [`Instance::look`]'s.
    ///
    /// # Errors
    /// Another run is at work on it, its owner could reach more than it, or the instance fails.
    pub async fn take(
        instance: &'a Instance,
        admin: Client,
        target: &Target<'_>,
        shared_owners: bool,
        lock_timeout: Duration,
    ) -> Result<Seat<'a>, Failure> {
        lock(instance, &admin, &admin, ROLE_LOCK, target.tenant).await?;
        let owner = owner(instance, &admin, target, shared_owners).await?;
        let credential = Credential::generate()?;
        let role = role_name(target.tenant);
        make_role(instance, &role, &owner, &credential).await?;
        faults::point(ACT, "role")?;
        let work = async {
            let work = instance.connect_as(target.database, &role, &credential.password).await?;
            lock(instance, &work, &admin, WORK_LOCK, target.tenant).await?;
            settle(instance, &work, lock_timeout).await?;
            history::prepare(instance, &work).await?;
            faults::point(ACT, "history")?;
            let history = history::entries(instance, &work).await?;
            Ok((work, history))
        };
        match work.await {
            Ok((work, history)) => Ok(Seat { work, history, instance, admin, role, owner }),
            Err(failure) => {
                // What is not dropped now is by the next run, and cannot log in after a day.
                let _ = drop_role(instance, &admin, &role, &owner).await;
                Err(failure)
            }
        }
    }

    /// Another file's settings are not the next one's, and the lock is still ours.
    pub async fn tidy(&self, tenant: &str, lock_timeout: Duration) -> Result<(), Failure> {
        let sql = "SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL";
        self.work.batch_execute(sql).await.map_err(|error| self.instance.failed("reset the session", &error))?;
        settle(self.instance, &self.work, lock_timeout).await?;
        lock(self.instance, &self.work, &self.admin, WORK_LOCK, tenant).await
    }

    /// Ends the session, and drops its role.
    pub async fn leave(self) -> Result<(), Failure> {
        drop(self.work);
        drop_role(self.instance, &self.admin, &self.role, &self.owner).await?;
        faults::point(ACT, "left")
    }
}

/// The login that works on a tenant; the same each time, so that what a killed run has left is found.
pub fn role_name(tenant: &str) -> String {
    let digest = Sha256::digest(tenant.as_bytes());
    let hex: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("pgtenant_migrate_{hex}")
}

async fn lock(instance: &Instance, client: &Client, admin: &Client, key: i32, tenant: &str) -> Result<(), Failure> {
    let sql = format!("SELECT pg_catalog.pg_try_advisory_lock({CLASS}, {key})");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while instance.value(client, "take the tenant's lock", &sql).await?.as_deref() != Some("t") {
        if tokio::time::Instant::now() > deadline {
            let who = format!(
                "SELECT format('session %s of role %s', l.pid, usename) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                  WHERE locktype = 'advisory' AND classid = {CLASS} AND objid = {key} AND granted
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            );
            let who = instance.value(admin, "see who has the tenant's lock", &who).await?.unwrap_or_default();
            return Err(Failure::Order(format!(
                "tenant {tenant}: another migration is at work on it ({who}); wait until it has ended"
            )));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The role that migrations run as, where it can do nothing beyond its tenant.
async fn owner(instance: &Instance, admin: &Client, target: &Target<'_>, shared: bool) -> Result<String, Failure> {
    let rows = instance.rows(admin, "look at the database's owner", REACH).await?;
    let row = rows.into_iter().next().unwrap_or_default();
    let (owner, reach, others) = (row.first().cloned().flatten(), row.get(1), row.get(2));
    let owner = owner.ok_or_else(|| Failure::Order(format!("no database {:?}", target.database)))?;
    let refuse = |why: String| {
        Err(Failure::Order(format!(
            "tenant {}: migrations run as the owner of its database, {owner:?}, {why}",
            target.tenant
        )))
    };
    if let Some(Some(reach)) = reach {
        return refuse(format!(
            "who has the rights of {reach}, and so could reach other tenants; give the database an owner of its own: \
             ALTER DATABASE … OWNER TO …"
        ));
    }
    match others {
        Some(Some(others)) if !shared => refuse(format!(
            "who can act as the owner of {others} as well; give each an owner of its own, or allow it with [migrate] shared_owners"
        )),
        _ => Ok(owner),
    }
}

async fn make_role(instance: &Instance, role: &str, owner: &str, credential: &Credential) -> Result<(), Failure> {
    let session = instance.session().await?;
    let there = provision::existing_roles(instance, &session, &[role]).await?;
    let verb = if there.is_empty() { "CREATE" } else { "ALTER" };
    let until = (OffsetDateTime::now_utc() + VALID).format(&Rfc3339);
    let until = until.map_err(|error| Failure::Order(error.to_string()))?;
    let (role, owner_name) = (identifier(role), identifier(owner));
    let verifier = literal(credential.verifier.expose());
    // The login has no rights but the owner's, so that a RESET ROLE in a migration leads nowhere.
    let sql = format!(
        "{}{verb} ROLE {role} NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION INHERIT LOGIN CONNECTION LIMIT 2
           PASSWORD {verifier} VALID UNTIL '{until}';
         GRANT {owner_name} TO {role};
         ALTER ROLE {role} SET role TO {};",
        provision::LOCK,
        literal(owner)
    );
    instance.run(&session, "make the role that migrates", &sql).await
}

async fn drop_role(instance: &Instance, admin: &Client, role: &str, owner: &str) -> Result<(), Failure> {
    let session = instance.session().await?;
    let name = identifier(role);
    let drop = format!("{}DROP ROLE IF EXISTS {name};", provision::LOCK);
    match instance.run(&session, "drop the role that migrated", &drop).await {
        // A migration that has reset its role has made things that belong to the login itself.
        Err(Failure::Sql { sqlstate: Some(code), .. }) if code == "2BP01" => {}
        result => return result,
    }
    let join = match provision::is_superuser(instance, &session).await? {
        true => String::new(),
        false => format!("GRANT {name} TO CURRENT_USER;"),
    };
    let give = format!("{join}REASSIGN OWNED BY {name} TO {}; DROP OWNED BY {name};", identifier(owner));
    instance.run(admin, "give the owner what a migration made", &give).await?;
    instance.run(&session, "drop the role that migrated", &drop).await
}

/// Limits that the database or the role may have do not hold here, a bound on waiting for locks does. A statement ends
/// when its run is gone.
async fn settle(instance: &Instance, work: &Client, lock_timeout: Duration) -> Result<(), Failure> {
    let sql = format!(
        "SET lock_timeout = {}; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;
         SET default_transaction_read_only = off; SET standard_conforming_strings = on;
         SET client_connection_check_interval = '2s'",
        lock_timeout.as_millis()
    );
    work.batch_execute(&sql).await.map_err(|error| instance.failed("prepare the session", &error))
}
