//! Step 5: AuthenticationOk, the parameters, our cancel key, ReadyForQuery. A backend is needed only when the parameters
//! are not known yet, or when the client keeps it.

use std::sync::Arc;

use super::authenticate::Proven;
use super::{Client, Context, Rejection};
use crate::backend::{CommandError, Parameters, Settings};
use crate::config::PoolMode;
use crate::metrics::{AuthMethod, AuthResult};
use crate::pool::{Checkout, Pool, PoolName, Walsender};
use crate::sessions::{Order, Registration};
use crate::tenant::Tenant;
use crate::wire::{PgError, Severity, messages, sqlstate};

/// A session that may ask for things.
pub struct Welcomed {
    pub tenant: Arc<Tenant>,
    pub role: String,
    pub pool: Arc<Pool>,
    pub mode: PoolMode,
    /// The session's parameters; at first those that the client began with.
    pub settings: Arc<Settings>,
    /// The parameters that the client was told.
    pub told: Arc<Parameters>,
    pub registration: Registration,
    /// The backend of a session that keeps it.
    pub kept: Option<Checkout>,
}

pub(super) async fn send(client: &mut Client, proven: Proven, context: &Context) -> Result<Welcomed, Rejection> {
    let Proven { tenant, role, database, backend_role, login, startup } = proven;
    let mut mode = tenant.record().pool.mode;
    let mut settings = Arc::new(startup.settings);
    let walsender = startup.replication.map(|mode| Walsender { mode, settings: settings.clone() });
    if walsender.is_some() {
        mode = PoolMode::Session;
    }
    let name = PoolName { database, role: backend_role, walsender };
    let pool = context.pools.get(&tenant, name, login).map_err(|error| {
        tracing::error!(tenant = tenant.id.as_str(), %error, "no pool");
        unavailable(PgError::fatal(sqlstate::CONNECTION_FAILURE, "could not connect to the tenant's database"))
    })?;
    let registration = context
        .sessions
        .register(tenant.clone(), startup.protocol.cancel_key_length())
        .map_err(|error| unavailable(PgError::fatal("XX000", format!("no random bytes: {error}"))))?;
    let known = pool.welcome(&settings);
    settings = known.as_ref().map_or_else(|| pool.share_settings(&settings), |(shared, _)| shared.clone());
    let (parameters, kept) = match known {
        Some((_, parameters)) if mode != PoolMode::Session => (parameters, None),
        _ => introduce(&pool, &registration, &settings, mode).await?,
    };
    let mut answers = client.answers.split();
    for (name, value) in parameters.iter() {
        messages::parameter_status(&mut answers, name, value);
    }
    messages::backend_key_data(&mut answers, registration.pid.cast_signed(), &registration.secret);
    messages::ready_idle(&mut answers);
    client.stream.write(&answers).await?;
    if context.drain.phase() != crate::drain::Phase::Running || tenant.is_retired() {
        context.sessions.order(Order::Finish, |session| session.pid == registration.pid);
    }
    Ok(Welcomed { tenant, role, pool, mode, settings, told: parameters, registration, kept })
}

/// Takes a backend, puts the client's parameters in force and sees what it reports.
async fn introduce(
    pool: &Arc<Pool>,
    registration: &Registration,
    settings: &Arc<Settings>,
    mode: PoolMode,
) -> Result<(Arc<Parameters>, Option<Checkout>), Rejection> {
    let mut checkout =
        pool.checkout().await.map_err(|error| unavailable(error.to_client().with_severity(Severity::Fatal)))?;
    let adopted = match checkout.serve(registration.pid, always_reset(pool), false).await {
        Ok(()) => checkout.adopt(settings).await,
        Err(error) => Err(error),
    };
    if let Err(error) = adopted {
        return Err(match error {
            CommandError::Refused(error) => {
                // A parameter that the client got wrong is not the backend's fault.
                checkout.release();
                let why = error.to_string();
                let tell = error.with_severity(Severity::Fatal);
                Rejection::login(AuthMethod::None, AuthResult::Aborted, tell, why)
            }
            other => {
                tracing::warn!(tenant = pool.tenant.id.as_str(), error = %other, "backend lost");
                unavailable(PgError::fatal(sqlstate::CONNECTION_FAILURE, "could not connect to the tenant's database"))
            }
        });
    }
    let parameters = pool.share_parameters(&checkout.state.parameters);
    checkout.state.parameters = parameters.clone();
    pool.remember_welcome(settings.clone(), parameters.clone());
    if mode == PoolMode::Session {
        return Ok((parameters, Some(checkout)));
    }
    checkout.release();
    Ok((parameters, None))
}

pub(super) fn always_reset(pool: &Pool) -> bool {
    pool.tenant.record().pool.reset == crate::config::Reset::Always
}

fn unavailable(tell: PgError) -> Rejection {
    let why = tell.to_string();
    Rejection::login(AuthMethod::None, AuthResult::Unavailable, tell, why)
}
