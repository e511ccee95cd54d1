//! A login at the admin console: which connections are meant for it, and the proof.

use std::time::Instant;

use super::authenticate::{Verdict, check_backoff, exchange};
use super::startup::Startup;
use super::{Client, Context, Rejection};
use crate::admin::console::{DATABASES, NAME, Operator};
use crate::metrics::{AuthResult, Refusal};
use crate::tenant::route::{Hints, RouteError, route};
use crate::wire::{PgError, messages, sqlstate};

/// Whether the connection asks for the console: it is switched on, the database is called as the console is, and nothing
/// names a tenant. So a tenant may have a database of that name, and reaches it as it reaches every other one.
pub(super) fn is_meant(hints: &Hints, context: &Context) -> bool {
    let asks = hints.database.as_deref().is_some_and(|name| DATABASES.contains(&name));
    asks && context.console.is_on()
        && route(hints, &context.config.load().routing, |tenant| context.registry.contains(tenant))
            == Err(RouteError::NoTenant)
}

/// The same exchange as at a tenant; roles that do not exist go through it as well, to the same end.
pub(super) async fn login(client: &mut Client, startup: &Startup, context: &Context) -> Result<Operator, Rejection> {
    let user = startup.hints.user.as_str();
    check_backoff(client, NAME, context)?;
    let verifier = context.console.role(user).map(|role| role.verifier);
    let result = if verifier.is_some() { AuthResult::WrongPassword } else { AuthResult::UnknownRole };
    let (method, verdict) = exchange(client, (NAME, user), verifier, context).await?;
    let address = client.peer.ip();
    if let Verdict::Wrong = verdict {
        context.backoff.failed(address, NAME, Instant::now());
        return Err(Rejection::password(method, result, user, format!("console, user \"{user}\": {result:?}")));
    }
    check_backoff(client, NAME, context)?;
    context.backoff.succeeded(address, NAME);
    let full = || {
        let tell = PgError::fatal(sqlstate::TOO_MANY_CONNECTIONS, "too many clients of the console already");
        Rejection::refused(Refusal::Cap, tell)
    };
    let operator = Operator::new(user.to_owned(), context).ok_or_else(full)?;
    context.metrics.auth(method, AuthResult::Ok);
    messages::authentication_ok(&mut client.answers);
    Ok(operator)
}
