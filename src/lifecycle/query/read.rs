//! One tenant's answer, or the merge's: a cursor in a transaction that only reads, row by row up to a bound.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_postgres::Client;

use super::super::instance::{Instance, Session};
use super::super::quote::literal;
use super::super::{Failure, Site};
use super::Ask;
use super::login::{self, Login};
use super::table::{Column, Row};
use crate::config::Tenant;

/// Rows that are asked for at a time: between two portions the bounds are looked at.
const PORTION: u64 = 100;
/// Beyond the query's time, for the login and for its cancel to take effect.
const MARGIN: Duration = Duration::from_secs(10);

/// What a query gave.
#[derive(Debug)]
pub struct Answer {
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
    /// There were more.
    pub cut: bool,
}

/// Asks a tenant. `left` is the room for answers, in bytes, that all tenants share.
pub async fn ask(site: &Site, tenant: &Tenant, ask: &Ask, left: &AtomicU64) -> Result<Answer, Failure> {
    let instance = site.instance(&tenant.instance.name)?;
    let role = site.config.query.role_of(&tenant.id);
    let login = {
        let session = instance.session().await?;
        only_reads(&instance, &session, &role).await?;
        login::sweep(&instance, &session).await?;
        Login::make(&instance, &session, Some(&role), ask.timeout).await?
    };
    let answer = as_login(&instance, &tenant.database, &login, &ask.sql, ask, left).await;
    let removed = async { login.remove(&instance, &instance.session().await?).await }.await;
    let answer = answer?;
    removed.map(|()| answer)
}

/// The role is there, and is none that could do more than read.
async fn only_reads(instance: &Instance, session: &Session<'_>, role: &str) -> Result<(), Failure> {
    let sql = format!(
        "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication FROM pg_roles WHERE rolname = {}",
        literal(role)
    );
    let wrong = |what: &str| Err(Failure::Order(format!("role {role:?} {what} (query.role)")));
    match instance.value(session, "look for the read-only role", &sql).await?.as_deref() {
        Some("f") => Ok(()),
        Some(_) => wrong("may do more than read"),
        None => wrong("is not there: make it, or name another"),
    }
}

/// Asks as the login; what takes too long is given up, and its session ended with the login.
pub async fn as_login(
    instance: &Instance,
    database: &str,
    login: &Login,
    sql: &str,
    ask: &Ask,
    left: &AtomicU64,
) -> Result<Answer, Failure> {
    let asked = async {
        let client = instance.connect_as(database, &login.role, &login.password).await?;
        read(instance, &client, sql, ask, left).await
    };
    let late = || Failure::Order(format!("no answer within {} s (--timeout)", ask.timeout.as_secs_f64()));
    tokio::time::timeout(ask.timeout + MARGIN, asked).await.unwrap_or_else(|_| Err(late()))
}

/// Runs one query that gives rows. The extended protocol takes no second statement, and after the first query of a
/// transaction nobody makes it one that writes (PostgreSQL manual, SET TRANSACTION).
pub async fn read(
    instance: &Instance,
    client: &Client,
    sql: &str,
    ask: &Ask,
    left: &AtomicU64,
) -> Result<Answer, Failure> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = '2s';
         SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'; SET LOCAL IntervalStyle = 'postgres';
         SET LOCAL bytea_output = 'hex'; SELECT 1",
        ask.timeout.as_millis().max(1)
    );
    instance.run(client, "begin to read", &begin).await?;
    let failed = |error: tokio_postgres::Error| instance.failed("run the query", &error);
    let statement = client.prepare(sql).await.map_err(failed)?;
    if !statement.params().is_empty() {
        return Err(Failure::Order("the query has parameters ($1): write their values".to_owned()));
    }
    let columns: Vec<Column> = statement.columns().iter().map(Column::of).collect();
    if columns.is_empty() {
        return Err(Failure::Order("it is no query: it gives no columns".to_owned()));
    }
    let declare = client.prepare(&format!("DECLARE pgtenant_rows NO SCROLL CURSOR FOR {sql}")).await.map_err(failed)?;
    client.execute(&declare, &[]).await.map_err(failed)?;
    let mut answer = Answer { columns, rows: Vec::new(), cut: false };
    loop {
        // One more than is wanted tells whether there are more.
        let wanted = (ask.max_rows + 1 - answer.rows.len() as u64).min(PORTION);
        let fetch = format!("FETCH FORWARD {wanted} FROM pgtenant_rows");
        let rows = instance.rows(client, "run the query", &fetch).await?;
        let size: usize = rows.iter().flatten().flatten().map(String::len).sum();
        let there = |left: u64| left.checked_sub(size as u64);
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, there).is_err() {
            return Err(Failure::Order("the answers are larger than query.max_size together".to_owned()));
        }
        let over = (rows.len() as u64) < wanted;
        answer.rows.extend(rows);
        if answer.rows.len() as u64 > ask.max_rows {
            answer.rows.truncate(ask.max_rows as usize);
            answer.cut = true;
        }
        if over || answer.cut {
            return Ok(answer);
        }
    }
}
