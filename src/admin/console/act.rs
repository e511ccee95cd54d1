//! The commands that change something.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::command::Act;
use super::reports::settings;
use super::{Answer, Request, View, standing};
use crate::sessions::Order;
use crate::tenant::Tenant;
use crate::wire::{PgError, sqlstate};

/// Carries a command out and gives the tag of its CommandComplete.
pub(super) async fn run(act: Act, operator: &str, view: View<'_>) -> Result<&'static str, PgError> {
    tracing::info!(operator, command = ?act, "console");
    match act {
        Act::Reload => reload(view).await.map(|()| "RELOAD"),
        Act::Shutdown(how) => {
            view.console.requests.send(Request::Shutdown(how)).map_err(|_| ending())?;
            Ok("SHUTDOWN")
        }
        Act::Change(change) => standing::run(change, operator, view).await,
        Act::KillClient(id) => match view.sessions.order(Order::End, |session| session.id == id) {
            0 => Err(PgError::error("22023", format!("no client {id}")).with_hint("SHOW CLIENTS has their ids.")),
            _ => Ok("KILL_CLIENT"),
        },
        Act::Reconnect(name) => {
            match name {
                Some(name) => view.pools.evict(&tenant(&name, view)?),
                None => view.pools.evict_all(),
            }
            Ok("RECONNECT")
        }
        Act::Set { name, value } => {
            let (key, value) = settings::written(&name, value)?;
            let ask = |answer| Request::Set { key, value, answer };
            answered(ask, view, "22023", "the setting was not taken over").await.map(|()| "SET")
        }
    }
}

pub(super) fn tenant(name: &str, view: View<'_>) -> Result<Arc<Tenant>, PgError> {
    view.registry.get(name).ok_or_else(|| {
        PgError::error("3D000", format!("no such database: {name}")).with_hint("SHOW TENANTS has their names.")
    })
}

async fn reload(view: View<'_>) -> Result<(), PgError> {
    let wrong = "configuration not reloaded, the last good one stays in force";
    answered(Request::Reload, view, "F0000", wrong).await
}

/// Asks the process; where it could not do it, DETAIL says why.
async fn answered(
    ask: impl FnOnce(Answer) -> Request,
    view: View<'_>,
    sqlstate: &'static str,
    text: &str,
) -> Result<(), PgError> {
    let (answer, answered) = oneshot::channel();
    view.console.requests.send(ask(answer)).map_err(|_| ending())?;
    let result = answered.await.map_err(|_| ending())?;
    result.map_err(|wrong| PgError::error(sqlstate, text).with_detail(wrong))
}

fn ending() -> PgError {
    PgError::error(sqlstate::ADMIN_SHUTDOWN, "the proxy is ending")
}
