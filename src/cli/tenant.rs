//! `pgtenant tenant`: sets a tenant's state in its record. A running proxy takes it over by itself.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use toml_edit::{DocumentMut, Item, Table, value};

use super::ConfigArgs;
use crate::config::{self, TenantState};

#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Have its clients wait between transactions, and new ones at their login.
    Pause(TenantArgs),
    /// End a pause: it is active again.
    Resume(TenantArgs),
    /// End its sessions at their next safe point, and let nobody in.
    Suspend(TenantArgs),
    /// As suspend, but for its maintenance_roles.
    Maintenance(TenantArgs),
    /// Let its transactions read only.
    ReadOnly(TenantArgs),
    /// Make it active, whatever it was.
    Activate(TenantArgs),
}

#[derive(Debug, Args)]
pub struct TenantArgs {
    /// The tenant's id.
    id: String,
    /// What clients are told that are kept out.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Edits the record and says what it has done.
pub fn run(command: TenantCommand) -> anyhow::Result<()> {
    let (state, args) = match command {
        TenantCommand::Pause(args) => (TenantState::Paused, args),
        TenantCommand::Resume(args) | TenantCommand::Activate(args) => (TenantState::Active, args),
        TenantCommand::Suspend(args) => (TenantState::Suspended, args),
        TenantCommand::Maintenance(args) => (TenantState::Maintenance, args),
        TenantCommand::ReadOnly(args) => (TenantState::ReadOnly, args),
    };
    let source = args.config.source();
    let config = config::load(source.path.as_deref(), &source.overrides)?;
    let Some(record) = config.tenants.get(&args.id) else {
        bail!("there is no tenant {:?}; {} are configured", args.id, config.tenants.len());
    };
    let text = std::fs::read_to_string(&record.source).with_context(|| format!("{}", record.source.display()))?;
    let inline = source.path.as_deref().unwrap_or(Path::new("proxy.toml")) == record.source;
    let edited = with_state(&text, inline.then_some(args.id.as_str()), state, args.reason.as_deref())?;
    replace(&record.source, &edited).with_context(|| format!("{} not changed", record.source.display()))?;
    println!("tenant {}: {} ({})", args.id, state.text(), record.source.display());
    Ok(())
}

/// The record with another state; everything else stays as it is written, comments included.
fn with_state(text: &str, inline: Option<&str>, state: TenantState, reason: Option<&str>) -> anyhow::Result<String> {
    let mut document: DocumentMut = text.parse().context("not valid TOML")?;
    let table: &mut Table = match inline {
        None => document.as_table_mut(),
        Some(id) => {
            let tenants = document.get_mut("tenants").and_then(|tenants| tenants.get_mut(id));
            tenants
                .and_then(Item::as_table_mut)
                .context("its table in proxy.toml is written inline; edit it by hand")?
        }
    };
    set(table, "state", Some(state.text()));
    set(table, "state_reason", reason);
    Ok(document.to_string())
}

/// The value alone is replaced, so that a comment behind it stays.
fn set(table: &mut Table, key: &str, text: Option<&str>) {
    match (text, table.get_mut(key).and_then(Item::as_value_mut)) {
        (Some(text), Some(known)) => {
            let decor = known.decor().clone();
            *known = text.into();
            *known.decor_mut() = decor;
        }
        (Some(text), None) => _ = table.insert(key, value(text)),
        (None, _) => _ = table.remove(key),
    }
}

/// At no moment is there half a file; owner and permissions stay.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let path = std::fs::canonicalize(path)?;
    let before = std::fs::metadata(&path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".pgtenant-").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(before.permissions())?;
    // Only root may give a file away; otherwise it was ours before, or becomes ours.
    let _ = chown(file.path(), Some(before.uid()), Some(before.gid()));
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_else_stays_as_it_is_written() {
        let text = "# Acme, Inc.\ninstance = \"pg1\"  # the old one\nstate = \"active\"  # since May\n\n[roles.app]\n";
        let paused = with_state(text, None, TenantState::Paused, Some("move")).unwrap();
        assert_eq!(
            paused,
            "# Acme, Inc.\ninstance = \"pg1\"  # the old one\nstate = \"paused\"  # since May\nstate_reason = \"move\"\n\n[roles.app]\n"
        );
        let active = with_state(&paused, None, TenantState::Active, None).unwrap();
        assert_eq!(active, text);
        let proxy = "[tenants.acme]\ninstance = \"pg1\"\n[tenants.acme.roles.app]\n";
        let inline = with_state(proxy, Some("acme"), TenantState::ReadOnly, None).unwrap();
        assert_eq!(inline, "[tenants.acme]\ninstance = \"pg1\"\nstate = \"read-only\"\n[tenants.acme.roles.app]\n");
        assert!(
            with_state("tenants = { acme = { instance = 'x' } }", Some("acme"), TenantState::Active, None).is_err()
        );
    }
}
