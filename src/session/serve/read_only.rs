//! A tenant that may only read: its backends begin every transaction that way.

use std::sync::Arc;

use super::{NoBackend, Serving};
use crate::backend::Settings;
use crate::config::PoolMode;
use crate::pool::Checkout;
use crate::quota::Gate;
use crate::relay::{Flow, ReadOnly};
use crate::session::welcome::Welcomed;

const PARAMETER: &str = "default_transaction_read_only";

/// The client's settings, and the same with ours.
#[derive(Debug)]
pub(super) struct Restricted {
    own: Arc<Settings>,
    ours: Arc<Settings>,
    /// What RESET goes back to without us.
    startup: Arc<Settings>,
}

impl Serving {
    /// What has to be in force for the session's next transaction, where that is not its own settings.
    pub(super) fn restricted_settings(&mut self) -> Option<Arc<Settings>> {
        let (session, flow) = (&self.session, &mut self.flow);
        if !session.tenant.gates().has(Gate::ReadOnly) {
            if let Some(restricted) = self.restricted.take() {
                flow.state.startup = restricted.startup;
            }
            return None;
        }
        let with_ours = |settings: &Settings| {
            let mut settings = settings.clone();
            settings.set(PARAMETER, "on");
            session.pool.share_settings(&Arc::new(settings))
        };
        match &mut self.restricted {
            Some(restricted) if Arc::ptr_eq(&restricted.own, &session.settings) => {}
            Some(restricted) => {
                restricted.own = session.settings.clone();
                restricted.ours = with_ours(&session.settings);
            }
            None => {
                let startup = flow.state.startup.clone();
                flow.state.startup = with_ours(&startup);
                let (own, ours) = (session.settings.clone(), with_ours(&session.settings));
                self.restricted = Some(Box::new(Restricted { own, ours, startup }));
            }
        }
        self.restricted.as_ref().map(|restricted| restricted.ours.clone())
    }

    /// Takes ours out of settings that were found on a backend.
    pub(super) fn without_restriction(&self, wanted: &mut Settings) {
        if self.restricted.is_some() {
            match self.session.settings.get(PARAMETER) {
                Some(own) => wanted.set(PARAMETER, own),
                None => wanted.remove(PARAMETER),
            }
        }
    }

    /// Whether a client has its backend to itself, and that has to be told what transactions may do.
    pub(super) fn restricts_own(&self) -> bool {
        let concerned = self.session.tenant.gates().has(Gate::ReadOnly) || self.session.restricted;
        concerned && self.session.mode == PoolMode::Session && !self.session.pool.name.is_walsender()
    }

    /// Tells it: before each transaction, since the client may have reset it.
    pub(super) async fn restrict_own(&mut self, kept: &mut Checkout) -> Result<(), NoBackend> {
        let read_only = self.session.tenant.gates().has(Gate::ReadOnly);
        let words = match read_only {
            true => "SET default_transaction_read_only TO on",
            false => "RESET default_transaction_read_only",
        };
        self.session.restricted = read_only;
        kept.command(words).await.map_err(|error| self.lost(&error))
    }
}

/// Before an exchange, and while it lasts.
pub(super) fn prepare(flow: &mut Flow, session: &Welcomed) {
    let read_only = session.tenant.gates().has(Gate::ReadOnly);
    if read_only != flow.is_read_only() {
        let standing = session.tenant.state();
        flow.set_read_only(read_only.then(|| {
            let because = standing.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            ReadOnly { detail: format!("The tenant \"{}\" is read-only{because}.", session.tenant.id) }
        }));
    }
}
