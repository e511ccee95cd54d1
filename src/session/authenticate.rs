//! Step 4: the client proves who it is.
//!
//! Whatever is wrong with tenant, role, address or certificate, the client goes through the same exchange to the same
//! error as with a wrong password (the mock SCRAM exchange of PostgreSQL's `auth-scram.c`). Only the log knows.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use time::OffsetDateTime;

use super::resolve::Candidate;
use super::startup::Startup;
use super::{Client, Context, Rejection};
use crate::auth::{
    Proven as Proof, SCRAM_SHA_256_PLUS, ScramError, ScramKeys, ScramServer, ScramVerifier, Verifier, md5,
};
use crate::backend::Login;
use crate::metrics::{AuthMethod, AuthResult, ProtocolViolation};
use crate::quota::{Client as Place, Gate};
use crate::tenant::{Credential, Tenant, route};
use crate::wire::tag::frontend;
use crate::wire::{PgError, cstr, messages, sqlstate};

/// Longest answer of a login: a SASL message of ours has at most 1,024 bytes, a password is shorter still.
const MAX_ANSWER: usize = 4096;

/// A client that is who it says.
pub struct Proven {
    pub tenant: Arc<Tenant>,
    /// As the client's log line has it.
    pub role: String,
    pub database: String,
    /// The role that backends log in as, and with what.
    pub backend_role: String,
    pub login: Login,
    pub startup: Startup,
    /// Its place among the tenant's clients.
    pub place: Place,
}

impl Proven {
    /// Waits while the tenant is paused; where it has moved meanwhile, the client goes along.
    pub(super) async fn stay_while_paused(&mut self, client: &mut Client, context: &Context) -> Result<(), Rejection> {
        if !self.tenant.gates().has(Gate::Paused) {
            return Ok(());
        }
        let resumed = tokio::select! {
            biased;
            resumed = self.tenant.resumed() => resumed,
            () = client.stream.gone(MAX_ANSWER) => {
                return Err(Rejection::gone(&std::io::ErrorKind::UnexpectedEof.into()));
            }
        };
        if self.tenant.is_retired()
            && let Some(moved) = context.registry.get(self.tenant.id.as_str())
        {
            self.tenant = moved;
        }
        let standing = self.tenant.state();
        let refusal = match resumed {
            Err(refusal) => refusal,
            Ok(()) if !standing.admits(&self.role, &self.tenant.current()) => standing.refusal(self.tenant.id.as_str()),
            Ok(()) => return Ok(()),
        };
        let why = refusal.to_string();
        Err(Rejection::login(AuthMethod::None, AuthResult::Suspended, refusal, why))
    }
}

/// What the exchange ended in.
pub(super) enum Verdict {
    Proven(Option<Proof>),
    Wrong,
}

/// Asks for the proof that the role's credential calls for; AuthenticationOk goes out with the next answer.
pub(super) async fn client(client: &mut Client, candidate: Candidate, context: &Context) -> Result<Proven, Rejection> {
    let name = candidate.route.tenant.clone();
    check_backoff(client, &name, context)?;
    let found = context
        .verifiers
        .find(&name, candidate.tenant.as_deref(), &candidate.route.role)
        .await
        .inspect_err(|error| tracing::warn!(%error, "no verifier"))
        .map_err(|_| AuthResult::Unavailable);
    let assessed = found.and_then(|credential| assess(client, &candidate, credential));
    let (method, verdict) = match &assessed {
        Ok(credential) => prove(client, &candidate, Some(credential), context).await?,
        Err(_) => prove(client, &candidate, None, context).await?,
    };
    let address = client.peer.ip();
    let user = &candidate.startup.hints.user;
    let (Ok(credential), Verdict::Proven(proof), Some(tenant)) = (&assessed, verdict, candidate.tenant.clone()) else {
        let result = assessed.err().unwrap_or(AuthResult::WrongPassword);
        // Where we could not look the role up, nobody has guessed: an outage must not lock its tenant out afterwards.
        if result != AuthResult::Unavailable {
            context.backoff.failed(address, &name, Instant::now());
        }
        context.verifiers.doubt(&name, &candidate.route.role);
        if let Some(tenant) = &candidate.tenant {
            tenant.stats.login_failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        let why = format!("tenant {name}, user \"{user}\": {result:?}");
        return Err(Rejection::password(method, result, user, why));
    };
    // Many at once could all have passed the first look before one of them failed.
    check_backoff(client, &name, context)?;
    context.backoff.succeeded(address, &name);
    let proven = admit(tenant, credential, proof, candidate, method)?;
    proven.tenant.stats.logins.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    context.metrics.auth(method, AuthResult::Ok);
    messages::authentication_ok(&mut client.answers);
    Ok(proven)
}

pub(super) fn check_backoff(client: &Client, tenant: &str, context: &Context) -> Result<(), Rejection> {
    context.backoff.check(client.peer.ip(), tenant, Instant::now()).map_err(|wait| {
        let tell = PgError::fatal(sqlstate::INVALID_AUTHORIZATION, "too many failed logins from this address")
            .with_hint(format!("Try again in {} s.", wait.as_secs() + 1));
        Rejection::login(
            AuthMethod::None,
            AuthResult::Backoff,
            tell,
            format!("tenant {tenant}: too many failed logins"),
        )
    })
}

/// The credential to check against, unless something else stands against the login.
fn assess(
    client: &Client,
    candidate: &Candidate,
    credential: Option<Arc<Credential>>,
) -> Result<Arc<Credential>, AuthResult> {
    let tenant = candidate.tenant.as_ref().ok_or(AuthResult::UnknownTenant)?;
    let record = tenant.record();
    let ip = client.peer.ip();
    let allowed = record.allow.is_empty()
        || client.peer == super::Peer::Unix
        || record.allow.iter().any(|network| network.contains(&ip));
    if !allowed {
        return Err(AuthResult::Address);
    }
    if record.client_certificate_required && !has_certificate(client, tenant) {
        return Err(AuthResult::WrongCertificate);
    }
    let credential = credential.ok_or(AuthResult::UnknownRole)?;
    if credential.is_expired(OffsetDateTime::now_utc()) {
        return Err(AuthResult::Expired);
    }
    Ok(credential)
}

/// Whether the tenant's CA vouches for the client.
fn has_certificate(client: &Client, tenant: &Tenant) -> bool {
    let certificate = client.tls.as_ref().and_then(|tls| tls.certificate.as_ref());
    certificate.is_some_and(|(tenants, _)| tenants.iter().any(|name| name == tenant.id.as_str()))
}

/// Runs the exchange; without a credential one that cannot succeed.
async fn prove(
    client: &mut Client,
    candidate: &Candidate,
    credential: Option<&Credential>,
    context: &Context,
) -> Result<(AuthMethod, Verdict), Rejection> {
    if let (Some(credential), Some(tenant)) = (credential, &candidate.tenant)
        && certificate_is_enough(client, credential, tenant)
    {
        return Ok((AuthMethod::Certificate, Verdict::Proven(None)));
    }
    let verifier = credential.and_then(|credential| credential.verifier_at(OffsetDateTime::now_utc()));
    exchange(client, (&candidate.route.tenant, &candidate.route.role), verifier, context).await
}

/// The exchange that the verifier calls for; without one, that of a role of this tenant which does not exist.
pub(super) async fn exchange(
    client: &mut Client,
    (tenant, role): (&str, &str),
    verifier: Option<Verifier>,
    context: &Context,
) -> Result<(AuthMethod, Verdict), Rejection> {
    let mock = || context.mock.verifier(tenant, role);
    let cleartext = context.config.load().auth.cleartext && client.tls.is_some();
    match verifier {
        _ if cleartext => {
            let verdict = ask_password(client, role, verifier, mock).await?;
            Ok((AuthMethod::Cleartext, verdict))
        }
        Some(Verifier::Md5(verifier)) => {
            let salt = md5::challenge();
            messages::authentication_md5(&mut client.answers, salt);
            let answer = password_answer(client).await?;
            let right = verifier.check_response(salt, &answer);
            let verdict = if right { Verdict::Proven(Some(Proof::Md5(verifier))) } else { Verdict::Wrong };
            Ok((AuthMethod::Md5, verdict))
        }
        Some(Verifier::Scram(verifier)) => scram(client, verifier, true).await,
        None => scram(client, mock(), false).await,
    }
}

fn certificate_is_enough(client: &Client, credential: &Credential, tenant: &Tenant) -> bool {
    let Some(wanted) = &credential.certificate_cn else { return false };
    let common_name =
        client.tls.as_ref().and_then(|tls| tls.certificate.as_ref()).and_then(|(_, common_name)| common_name.as_ref());
    common_name == Some(wanted) && has_certificate(client, tenant)
}

/// SASL (PostgreSQL manual, 55.3).
async fn scram(
    client: &mut Client,
    verifier: ScramVerifier,
    genuine: bool,
) -> Result<(AuthMethod, Verdict), Rejection> {
    let binding = client.tls.as_ref().and_then(|tls| tls.binding.clone());
    let server = ScramServer::new(verifier, genuine, binding);
    messages::authentication_sasl(&mut client.answers, server.mechanisms());
    let initial = answer(client).await?;
    let malformed = || Rejection::violation(ProtocolViolation::MessageMalformed, "malformed SASLInitialResponse");
    let (mechanism, rest) = cstr(&initial).ok_or_else(malformed)?;
    let (length, data) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
    if i32::from_be_bytes(*length) != data.len() as i32 {
        return Err(malformed());
    }
    let mechanism = str::from_utf8(mechanism).map_err(|_| malformed())?;
    let method = match mechanism {
        SCRAM_SHA_256_PLUS => AuthMethod::ScramSha256Plus,
        _ => AuthMethod::ScramSha256,
    };
    let broken = |error: ScramError| {
        let text = error.to_string();
        Rejection::login(method, AuthResult::Aborted, PgError::fatal(error.sqlstate(), text.clone()), text)
    };
    let (server, first) = server.client_first(mechanism, data).map_err(broken)?;
    messages::authentication_sasl_continue(&mut client.answers, first);
    match server.client_final(&answer(client).await?) {
        Ok((keys, last)) => {
            messages::authentication_sasl_final(&mut client.answers, last);
            Ok((method, Verdict::Proven(Some(Proof::Scram(keys)))))
        }
        Err(ScramError::Failed) => Ok((method, Verdict::Wrong)),
        Err(error) => Err(broken(error)),
    }
}

/// Without a verifier the same work is done, and in vain.
async fn ask_password(
    client: &mut Client,
    role: &str,
    verifier: Option<Verifier>,
    mock: impl Fn() -> ScramVerifier,
) -> Result<Verdict, Rejection> {
    messages::authentication_cleartext(&mut client.answers);
    let password = zeroize::Zeroizing::new(password_answer(client).await?.to_vec());
    let genuine = verifier.is_some();
    let verifier = verifier.unwrap_or_else(|| Verifier::Scram(mock()));
    let proof = verifier.check_password(role, &password).filter(|_| genuine);
    Ok(proof.map_or(Verdict::Wrong, |proof| Verdict::Proven(Some(proof))))
}

/// The client's next answer; sends ours first.
async fn answer(client: &mut Client) -> Result<BytesMut, Rejection> {
    let answers = client.answers.split();
    client.stream.write(&answers).await?;
    match client.stream.read(MAX_ANSWER).await? {
        (frontend::PASSWORD, payload) => Ok(payload),
        (other, _) => Err(Rejection::violation(
            ProtocolViolation::MessageUnexpected,
            format!("expected password response, got message type {other}"),
        )),
    }
}

/// The same without the closing NUL.
async fn password_answer(client: &mut Client) -> Result<BytesMut, Rejection> {
    let mut payload = answer(client).await?;
    match payload.last() {
        Some(0) => {
            payload.truncate(payload.remaining() - 1);
            Ok(payload)
        }
        _ => Err(Rejection::violation(ProtocolViolation::MessageMalformed, "malformed PasswordMessage")),
    }
}

/// What only a client that has proved itself is told.
fn admit(
    tenant: Arc<Tenant>,
    credential: &Credential,
    proof: Option<Proof>,
    candidate: Candidate,
    method: AuthMethod,
) -> Result<Proven, Rejection> {
    let record = tenant.record();
    let standing = tenant.state();
    if standing.disabled || !standing.admits(&candidate.route.role, &record) {
        let tell = standing.refusal(&record.id);
        let why = tell.to_string();
        return Err(Rejection::login(method, AuthResult::Suspended, tell, why));
    }
    // Whether there is room is told to nobody who has not proved itself: others must not learn which tenants there are.
    let place = tenant.usage.enter(&record.quota).map_err(|short| {
        tenant.stats.refuse(short.quota);
        let tell = short.to_client(&record.id);
        let why = format!("tenant {}: {}", record.id, tell.message);
        Rejection::login(method, AuthResult::TenantFull, tell, why)
    })?;
    let Candidate { mut route, startup, .. } = candidate;
    // Physical replication has no database; PostgreSQL's own programs then say "replication".
    if startup.replication.as_deref().is_some_and(|mode| mode != "database") {
        route.database = None;
    }
    let Some(database) = route::database(&route, &startup.hints.user, &record).map(str::to_owned) else {
        let name = route.database.unwrap_or_default();
        let tell = PgError::fatal("3D000", format!("database \"{name}\" does not exist"));
        let why = format!("tenant {}: database \"{name}\" is not in its record", record.id);
        return Err(Rejection::login(method, AuthResult::UnknownDatabase, tell, why));
    };
    let role = route.role;
    let (backend_role, login) = match (&record.service, &credential.password, proof) {
        (Some(service), ..) => (service.user.clone(), service.password.clone().map_or(Login::Nothing, Login::Password)),
        (None, Some(password), _) => (role.clone(), Login::Password(password.clone())),
        // The instance knows the present password only.
        (None, None, Some(Proof::Scram(keys))) if is_former(credential, &keys) => {
            (role.clone(), credential.present_password.clone().map_or(Login::Nothing, Login::Password))
        }
        (None, None, Some(Proof::Scram(keys))) => (role.clone(), Login::Keys(keys)),
        (None, None, Some(Proof::Md5(verifier))) => (role.clone(), Login::Md5(verifier)),
        (None, None, None) => (role.clone(), Login::Nothing),
    };
    Ok(Proven { tenant, role, database, backend_role, login, startup, place })
}

/// Whether the client came with the password that was before.
fn is_former(credential: &Credential, keys: &ScramKeys) -> bool {
    let present = matches!(&credential.verifier, Some(Verifier::Scram(verifier)) if verifier.is_of(keys));
    credential.lenient.is_some() && !present
}
