//! Answers merged by SQL: in a database of their own, which is gone afterwards, by a role that owns it and nothing else.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::super::instance::{Instance, Session};
use super::super::quote::{identifier, literal};
use super::super::{Failure, Site};
use super::login::{Login, PREFIX, name};
use super::table::Table;
use super::{Ask, read};
use crate::config::Tenant;

/// What the answers are called in there.
const TABLE: &str = "all_tenants";
/// Text of one INSERT, about.
const PORTION: usize = 1 << 20;

/// The instance to merge on: the wanted one, or one of the tenants'; in the region of those that are pinned to one.
pub fn place(site: &Site, tenants: &[Arc<Tenant>], wanted: Option<&str>) -> Result<String, Failure> {
    let hosts = &site.config.lifecycle.hosts;
    let pinned = tenants.iter().find_map(|tenant| tenant.region.as_deref());
    let refused = |name: &str| -> Option<String> {
        let Some(host) = hosts.get(name) else { return Some(format!("there is no instance {name:?}")) };
        if host.admin.is_none() {
            return Some(format!("instance {name} has no admin"));
        }
        let region = host.instance.region.as_deref();
        let away = pinned.filter(|pinned| region != Some(pinned));
        away.map(|pinned| format!("instance {name} is not in region {pinned:?}, where answers have to stay"))
    };
    let no_place = |why: String| Failure::Order(format!("no place to merge on: {why} (--scratch-instance)"));
    if let Some(wanted) = wanted {
        return refused(wanted).map_or_else(|| Ok(wanted.to_owned()), |why| Err(no_place(why)));
    }
    let mut theirs = tenants.iter().map(|tenant| tenant.instance.name.as_str());
    let found = theirs.find(|name| refused(name).is_none());
    found
        .map(str::to_owned)
        .ok_or_else(|| no_place("none of the tenants' instances has an admin and their region".into()))
}

/// The merge's answer, and whether it was cut off.
pub async fn merge(instance: &Instance, table: &Table, sql: &str, ask: &Ask) -> Result<(Table, bool), Failure> {
    table.check_names()?;
    let session = instance.session().await?;
    sweep(instance, &session).await?;
    let login = Login::make(instance, &session, None, ask.timeout).await?;
    let database = name()?;
    let answer = async {
        make(instance, &session, &database, &login).await?;
        fill(instance, &database, &login, table).await?;
        let left = AtomicU64::new(u64::MAX);
        read::as_login(instance, &database, &login, sql, ask, &left).await
    };
    let answer = answer.await;
    let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(&database));
    let dropped = instance.run(&session, "drop the scratch database", &drop).await;
    let removed = login.remove(instance, &session).await;
    let answer = answer?;
    dropped?;
    removed?;
    Ok((Table { columns: answer.columns, rows: answer.rows }, answer.cut))
}

async fn make(instance: &Instance, session: &Session<'_>, database: &str, login: &Login) -> Result<(), Failure> {
    let (database, owner) = (identifier(database), identifier(&login.role));
    let sql = format!("CREATE DATABASE {database} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8'");
    instance.run(session, "make a scratch database", &sql).await?;
    let close = format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC");
    instance.run(session, "close the scratch database to others", &close).await
}

async fn fill(instance: &Instance, database: &str, login: &Login, table: &Table) -> Result<(), Failure> {
    let client = instance.connect_as(database, &login.role, &login.password).await?;
    let columns = table
        .columns
        .iter()
        .map(|column| format!("{} pg_catalog.{}", identifier(&column.name), identifier(&column.sql_type)));
    let columns = columns.collect::<Vec<_>>().join(", ");
    // By itself: it holds from the next transaction on.
    instance.run(&client, "write for once", "SET default_transaction_read_only = off").await?;
    instance.run(&client, "make the table of answers", &format!("CREATE TABLE {TABLE} ({columns})")).await?;
    let mut rows = table.rows.iter().peekable();
    while rows.peek().is_some() {
        let mut sql = format!("INSERT INTO {TABLE} VALUES ");
        let begins = sql.len();
        while sql.len() < PORTION
            && let Some(row) = rows.next()
        {
            let values = row.iter().map(|value| value.as_deref().map_or("NULL".to_owned(), literal));
            let comma = if sql.len() > begins { ", " } else { "" };
            sql += &format!("{comma}({})", values.collect::<Vec<_>>().join(", "));
        }
        instance.run(&client, "fill the table of answers", &sql).await?;
    }
    instance.run(&client, "look at the table of answers", &format!("ANALYZE {TABLE}")).await
}

/// Drops the databases that runs have left which were killed: their owner's time is over.
async fn sweep(instance: &Instance, session: &Session<'_>) -> Result<(), Failure> {
    let sql = format!(
        "SELECT datname FROM pg_database d JOIN pg_roles r ON r.oid = datdba
          WHERE starts_with(datname, '{PREFIX}') AND starts_with(rolname, '{PREFIX}') AND rolvaliduntil < clock_timestamp()"
    );
    let found = instance.rows(session, "look for what earlier queries have left", &sql).await?;
    for database in found.into_iter().flatten().flatten() {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(&database));
        instance.run(session, "drop what an earlier query has left", &sql).await?;
    }
    super::login::sweep(instance, session).await
}
