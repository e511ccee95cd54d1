//! Step 5: AuthenticationOk, the parameters, our cancel key, ReadyForQuery. A backend is needed only when the parameters
//! are not known yet, or when the client keeps it.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::BytesMut;

use super::authenticate::Proven;
use super::startup::Startup;
use super::{Client, Context, Rejection};
use crate::backend::{CancelKey, CommandError, Parameters, Settings};
use crate::config::PoolMode;
use crate::metrics::{AuthMethod, AuthResult, ProtocolViolation, TierMetrics};
use crate::pool::{Checkout, CheckoutError, Pool, PoolName, Welcome};
use crate::quota::Client as Place;
use crate::sessions::{About, Order, Registration};
use crate::tenant::Tenant;
use crate::trace::Who;
use crate::wire::{OptionsError, PgError, Severity, StartupParameters, messages, sqlstate};

/// A session that may ask for things.
pub struct Welcomed {
    pub tenant: Arc<Tenant>,
    pub role: String,
    pub pool: Arc<Pool>,
    /// Of its tenant's tier at its login.
    pub tier: Arc<TierMetrics>,
    pub mode: PoolMode,
    /// The session's parameters; at first those that the client began with.
    pub settings: Arc<Settings>,
    /// The parameters that the client was told.
    pub told: Arc<Parameters>,
    pub registration: Registration,
    /// The backend of a session that keeps it.
    pub kept: Option<Checkout>,
    /// It keeps its backend, and that may only read.
    pub restricted: bool,
    /// Its place among the tenant's clients.
    _place: Place,
}

impl Welcomed {
    /// Whose time it takes, for traces and slow queries.
    pub fn who(&self) -> Who<'_> {
        who(&self.tenant, &self.role, &self.pool)
    }
}

fn who<'a>(tenant: &'a Tenant, role: &'a str, pool: &'a Pool) -> Who<'a> {
    Who { tenant: tenant.id.as_str(), role, database: &pool.name.database, instance: pool.instance_name() }
}

pub(super) async fn send(client: &mut Client, proven: Proven, context: &Context) -> Result<Welcomed, Rejection> {
    let Proven { tenant, role, database, backend_role, login, startup, place } = proven;
    let application_name = application_name(&startup);
    let mut mode = tenant.record().pool.mode;
    if startup.replication.is_some() {
        mode = PoolMode::Session;
    }
    let (settings, own_startup) = match mode {
        // Backends without any parameters are the role's, whoever asked for them.
        PoolMode::Session => {
            let none = StartupParameters::default();
            (Settings::default(), Some(startup.parameters).filter(|it| *it != none).map(Arc::new))
        }
        PoolMode::Transaction | PoolMode::Statement => (startup.settings.map_err(no_settings)?, None),
    };
    let name = PoolName { database, role: backend_role, startup: own_startup };
    let pool = context.pools.get(&tenant, name, login).map_err(|error| {
        tracing::error!(tenant = tenant.id.as_str(), %error, "no pool");
        unavailable(PgError::fatal(sqlstate::CONNECTION_FAILURE, "could not connect to the tenant's database"))
    })?;
    let secret_length = startup.protocol.cancel_key_length();
    let register = |own: Option<Arc<CancelKey>>| {
        let pid = own.as_ref().map(|key| key.pid().cast_unsigned()).filter(|pid| *pid != 0);
        let about = About {
            role: role.clone(),
            pool: pool.clone(),
            address: client.peer.address(),
            tls: client.stream.stream().tls_facts(),
            application_name: application_name.clone(),
            since: SystemTime::now(),
            own,
        };
        let registration = context.sessions.register(tenant.clone(), about, pid, secret_length);
        registration.map_err(|error| unavailable(PgError::fatal("XX000", format!("no random bytes: {error}"))))
    };
    let answers = &mut client.answers;
    let (registration, settings, told, kept) = if mode == PoolMode::Session {
        let begun = Instant::now();
        let backend = pool.checkout().await;
        context.tracer.waited(begun, who(&tenant, &role, &pool));
        let backend = backend.map_err(|error| no_backend(&error).in_the_words(error.words()))?;
        answers.extend_from_slice(&backend.notices);
        let told = backend.state.parameters.clone();
        report(answers, &told);
        (register(Some(backend.cancel.clone()))?, Arc::new(settings), told, Some(backend))
    } else {
        let registration = register(None)?;
        let (settings, welcome) = match pool.welcome(&settings) {
            Some(known) => known,
            None => introduce(&pool, &registration, pool.share_settings(&Arc::new(settings))).await?,
        };
        answers.extend_from_slice(&welcome.notices);
        report(answers, &welcome.parameters);
        (registration, settings, welcome.parameters, None)
    };
    messages::backend_key_data(answers, registration.key.pid.cast_signed(), &registration.key.secret);
    messages::ready_idle(answers);
    let answers = client.answers.split();
    client.stream.write(&answers).await?;
    let admitted = tenant.state().admits(&role, &tenant.current());
    if context.drain.phase() != crate::drain::Phase::Running || tenant.is_retired() || !admitted {
        context.sessions.order(Order::Finish, |session| session.id == registration.id);
    }
    let tier = pool.tier();
    Ok(Welcomed {
        tenant,
        role,
        pool,
        tier,
        mode,
        settings,
        told,
        registration,
        kept,
        restricted: false,
        _place: place,
    })
}

/// Cut off to 63 bytes, as PostgreSQL does (NAMEDATALEN - 1).
fn application_name(startup: &Startup) -> Box<str> {
    let name = startup.settings.as_ref().ok().and_then(|settings| settings.get("application_name")).unwrap_or_default();
    let end = name.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= 63).last();
    name[..end.unwrap_or_default()].into()
}

fn report(answers: &mut BytesMut, parameters: &Parameters) {
    for (name, value) in parameters.iter() {
        messages::parameter_status(answers, name, value);
    }
}

/// Puts the client's parameters in force on a backend and sees what it says.
async fn introduce(
    pool: &Arc<Pool>,
    registration: &Registration,
    settings: Arc<Settings>,
) -> Result<(Arc<Settings>, Welcome), Rejection> {
    let mut checkout = pool.checkout().await.map_err(|error| no_backend(&error))?;
    let adopted = match checkout.serve(registration.id, always_reset(pool), false).await {
        Ok(()) => checkout.adopt_aloud(&settings).await,
        Err(error) => Err(error),
    };
    let notices = match adopted {
        Ok(notices) => [&checkout.notices[..], &notices].concat().into(),
        Err(CommandError::Refused(error)) => {
            // A parameter that the client got wrong is not the backend's fault.
            checkout.release();
            let why = error.to_string();
            let tell = error.with_severity(Severity::Fatal);
            return Err(Rejection::login(AuthMethod::None, AuthResult::Aborted, tell, why));
        }
        Err(error) => {
            tracing::warn!(tenant = pool.tenant.id.as_str(), %error, "backend lost");
            let tell = "could not connect to the tenant's database";
            return Err(unavailable(PgError::fatal(sqlstate::CONNECTION_FAILURE, tell)));
        }
    };
    let parameters = pool.share_parameters(&checkout.state.parameters);
    checkout.state.parameters = parameters.clone();
    checkout.release();
    let welcome = Welcome { parameters, notices };
    pool.remember_welcome(settings.clone(), welcome.clone());
    Ok((settings, welcome))
}

pub(super) fn always_reset(pool: &Pool) -> bool {
    pool.tenant.current().pool.reset == crate::config::Reset::Always
}

/// Switches that set no parameter are for a backend of the client's own.
fn no_settings(error: OptionsError) -> Rejection {
    Rejection::violation(ProtocolViolation::StartupMalformed, format!("startup parameter options: {error}"))
}

fn no_backend(error: &CheckoutError) -> Rejection {
    unavailable(error.to_client().with_severity(Severity::Fatal))
}

fn unavailable(tell: PgError) -> Rejection {
    let why = tell.to_string();
    Rejection::login(AuthMethod::None, AuthResult::Unavailable, tell, why)
}
