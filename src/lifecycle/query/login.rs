//! A login for one query: a role that is gone afterwards, with the rights of the one that it stands for.
//!
//! An admin who has only put on another role (`SET ROLE`) could be made to take it off again by the query itself, with
//! `set_config('role', …)`. This role has nothing else to go back to.

use std::time::Duration;

use super::super::instance::{Instance, Session};
use super::super::provision::LOCK;
use super::super::quote::{identifier, literal};
use super::super::{Failure, credentials};
use crate::config::Secret;

/// What the names of all roles and databases begin with that are made for queries.
pub const PREFIX: &str = "pgtenant_query_";
/// Beyond the query's own time: for the login and for waiting in line.
const MARGIN: Duration = Duration::from_secs(60);

/// See the module. To be taken away with `remove`; where that cannot be, its password is no longer good after the time.
pub struct Login {
    pub role: String,
    pub password: Secret,
}

/// `PREFIX` and 64 random bits.
pub fn name() -> Result<String, Failure> {
    Ok(format!("{PREFIX}{:016x}", getrandom::u64().map_err(|_| Failure::NoRandomness)?))
}

impl Login {
    /// With the rights of `of`, or with none.
    pub async fn make(
        instance: &Instance,
        session: &Session<'_>,
        of: Option<&str>,
        timeout: Duration,
    ) -> Result<Login, Failure> {
        let (role, password) = (name()?, credentials::Credential::generate()?);
        let member = of.map(|of| format!(" IN ROLE {}", identifier(of))).unwrap_or_default();
        let begin = format!(
            "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE INHERIT PASSWORD {}",
            identifier(&role),
            literal(password.verifier.expose())
        );
        let seconds = (timeout + MARGIN).as_secs_f64();
        let sql = format!(
            "{LOCK} DO $do$ BEGIN EXECUTE format('%s VALID UNTIL %L%s', {}, clock_timestamp() + interval '{seconds} s', {});
             END $do$;
             ALTER ROLE {role} SET default_transaction_read_only = on; GRANT {role} TO CURRENT_USER;",
            literal(&begin),
            literal(&member),
            role = identifier(&role)
        );
        instance.run(session, "make a login for the query", &sql).await?;
        Ok(Login { role, password: password.password })
    }

    /// Ends its sessions and drops it.
    pub async fn remove(&self, instance: &Instance, session: &Session<'_>) -> Result<(), Failure> {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = {}; {LOCK} DROP ROLE IF EXISTS {}",
            literal(&self.role),
            identifier(&self.role)
        );
        instance.run(session, "drop the query's login", &sql).await
    }
}

/// Drops the roles that runs have left which were killed: those whose time is over.
pub async fn sweep(instance: &Instance, session: &Session<'_>) -> Result<(), Failure> {
    let sql = format!(
        "{LOCK} DO $do$ DECLARE left_over name; BEGIN
           FOR left_over IN SELECT rolname FROM pg_roles
             WHERE starts_with(rolname, '{PREFIX}') AND rolvaliduntil < clock_timestamp()
               AND NOT EXISTS (SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = pg_roles.oid
                              AND classid <> 'pg_auth_members'::regclass)
           LOOP EXECUTE format('DROP ROLE %I', left_over); END LOOP;
         END $do$"
    );
    instance.run(session, "drop what earlier queries have left", &sql).await
}
