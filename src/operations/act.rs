//! What an operation does: the same as the command of that name.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::lifecycle::apply::{self, Wanted};
use crate::lifecycle::create::{Created, create};
use crate::lifecycle::credentials::{self, Credentials};
use crate::lifecycle::erase::{erase, estate};
use crate::lifecycle::rotate::{Rotated, finish, former, roles, rotate};
use crate::lifecycle::{Failure, Site, provisioner};

#[derive(Debug)]
pub(super) enum Act {
    Create(Box<Wanted>),
    Erase,
    Rotate,
    /// Ends the old passwords of a rotation.
    Finish,
}

impl Act {
    /// As the audit log has it.
    pub(super) fn text(&self) -> &'static str {
        match self {
            Act::Create(_) => "tenant create",
            Act::Erase => "tenant erase",
            Act::Rotate | Act::Finish => "tenant rotate-credentials",
        }
    }
}

/// One order.
#[derive(Debug)]
pub(super) struct Job {
    pub act: Act,
    pub tenant: String,
    pub dry_run: bool,
}

/// How it ended.
#[derive(Debug)]
pub(super) struct Done<P> {
    /// Without passwords.
    pub result: Value,
    /// Passwords that neither a file nor the hook has.
    pub unread: Option<P>,
}

impl<P> From<Value> for Done<P> {
    fn from(result: Value) -> Self {
        Done { result, unread: None }
    }
}

/// Passwords that wait for whoever asks first. The act's journal waits with them: dropped unread, the same order makes new
/// ones, here as in a command that was killed before it had shown them.
#[derive(Debug)]
pub(super) enum Unread {
    Created(Box<Created>),
    Rotated(Rotated),
}

impl Unread {
    /// The passwords by role; the act is over.
    pub(super) fn read(self) -> Result<Value, Failure> {
        let shown = credentials::shown(self.credentials());
        self.handed_over().map(|()| shown)
    }

    fn credentials(&self) -> &Credentials {
        match self {
            Unread::Created(created) => &created.credentials,
            Unread::Rotated(rotated) => &rotated.credentials,
        }
    }

    fn handed_over(self) -> Result<(), Failure> {
        match self {
            Unread::Created(created) => created.handed_over(),
            Unread::Rotated(rotated) => rotated.handed_over(),
        }
    }

    /// The hook may have them already.
    fn unless(self, given: bool) -> Result<Option<Unread>, Failure> {
        match given {
            true => self.handed_over().map(|()| None),
            false => Ok(Some(self)),
        }
    }
}

impl Job {
    pub(super) async fn run(&self, site: Arc<Site>, operation: &str) -> Result<Done<Unread>, Failure> {
        match &self.act {
            Act::Create(wanted) => self.create(site, wanted).await,
            Act::Erase => self.erase(&site, operation).await,
            Act::Rotate | Act::Finish => self.rotate(&site).await,
        }
    }

    async fn create(&self, site: Arc<Site>, wanted: &Wanted) -> Result<Done<Unread>, Failure> {
        if let Some(name) = wanted.provisioner() {
            provisioner::named(&site, name)?;
        }
        if self.dry_run {
            let foreseen = apply::foreseen(&site, &self.tenant, wanted, None, &mut site.taken())?;
            foreseen.migrations()?;
            return Ok(foreseen.told(&self.tenant).into());
        }
        let (site, order, placing) = apply::placed(site, &self.tenant, wanted, None).await?;
        let created = create(&site, &order, Some(placing)).await?;
        let given = created.give(&site).await?;
        let result = created.told(given);
        Ok(Done { result, unread: Unread::Created(created.into()).unless(given)? })
    }

    async fn erase(&self, site: &Site, operation: &str) -> Result<Done<Unread>, Failure> {
        let estate = estate(site, &self.tenant).await?;
        if self.dry_run {
            return Ok(json!({ "dry_run": true, "would_erase": estate }).into());
        }
        let file = receipt_file(site, &self.tenant, operation);
        let receipt = erase(site, &estate, &file).await?;
        Ok(json!({ "receipt": receipt, "file": file }).into())
    }

    async fn rotate(&self, site: &Site) -> Result<Done<Unread>, Failure> {
        let unknown = || Failure::Unknown { tenant: self.tenant.clone() };
        let tenant = site.config.tenants.get(&self.tenant).ok_or_else(unknown)?;
        let ends = matches!(self.act, Act::Finish);
        if self.dry_run {
            let roles = if ends { former(site, tenant)? } else { roles(site, tenant)? };
            return Ok(json!({ "dry_run": true, "tenant": tenant.id, "finish": ends, "roles": roles }).into());
        }
        if ends {
            return Ok(json!({ "tenant": tenant.id, "finished": finish(site, tenant)? }).into());
        }
        let rotated = rotate(site, tenant, site.config.lifecycle.grace, None).await?;
        let given = rotated.give(site, tenant, None).await?;
        let result = rotated.told(tenant, None, given);
        Ok(Done { result, unread: Unread::Rotated(rotated).unless(given)? })
    }
}

/// Beside the journals, since whoever orders by the API names no files here.
fn receipt_file(site: &Site, tenant: &str, operation: &str) -> PathBuf {
    site.config.lifecycle.journal_dir.join("receipts").join(format!("{tenant}.{operation}.json"))
}
