//! What a role's login is checked against: the tenant's record, or a query in the tenant's own database.
//!
//! Answers are kept for a while, also those that say "no such role". Where any tenant has an `auth_query`, the first
//! login of every (tenant, role) takes as long as one, whether it needs it or not and whether the tenant exists or
//! not: who asks learns nothing from the time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use time::OffsetDateTime;

use super::Tenant;
use crate::auth::{Mock, ScramVerifier, Verifier, VerifierError};
use crate::config::{self, AuthQuery, Secret};
use crate::net::{ControlPool, InstanceTlsError, Place, with_sources};

/// Remembered answers, all tenants together; beyond that, any one makes room.
const MAX_REMEMBERED: usize = 50_000;
/// A failed login against an answer younger than this does not make us ask again.
const FRESH: Duration = Duration::from_secs(1);
/// Connections for one tenant's auth queries.
const QUERY_CONNECTIONS: u32 = 2;
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// What is known of a role.
#[derive(Debug, Clone)]
pub struct Credential {
    pub verifier: Option<Verifier>,
    /// The role's password, where the record has it: backends log in with it.
    pub password: Option<Secret>,
    /// The common name of a client certificate that is enough.
    pub certificate_cn: Option<String>,
    pub valid_until: Option<OffsetDateTime>,
    /// The verifier that takes the former password as well, and until when.
    pub lenient: Option<(ScramVerifier, OffsetDateTime)>,
    /// The present password, for backends of clients that come with the former one.
    pub present_password: Option<Secret>,
}

impl Credential {
    /// What a login is checked against at this moment.
    pub fn verifier_at(&self, now: OffsetDateTime) -> Option<Verifier> {
        match &self.lenient {
            Some((verifier, until)) if now < *until => Some(Verifier::Scram(verifier.clone())),
            _ => self.verifier.clone(),
        }
    }

    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.valid_until.is_some_and(|until| now >= until)
    }
}

#[derive(Debug, Error)]
pub enum LookupError {
    #[error("tenant {tenant}: role \"{role}\": {source}")]
    Verifier { tenant: String, role: String, source: VerifierError },
    #[error("tenant {tenant}: auth_query: {reason}")]
    Query { tenant: String, reason: String },
    #[error("tenant {tenant}: auth_query: {source}")]
    Tls { tenant: String, source: InstanceTlsError },
}

/// See the module.
#[derive(Debug)]
pub struct Verifiers {
    ttl: Duration,
    /// Where the record has a password, its verifier gets the salt that a mock exchange would show.
    mock: Mock,
    remembered: Mutex<HashMap<(String, String), Remembered, ahash::RandomState>>,
    queries: Mutex<HashMap<String, (Arc<AuthSource>, ControlPool)>>,
    /// How long auth queries take, smoothed; 0 before the first.
    query_micros: AtomicU64,
}

#[derive(Debug, Clone)]
struct Remembered {
    at: Instant,
    /// The tenant as it was then: a moved one is another.
    tenant: Option<Arc<config::Tenant>>,
    credential: Option<Arc<Credential>>,
}

/// What a pool of query connections was made for.
#[derive(Debug, PartialEq)]
struct AuthSource {
    instance: Arc<config::Instance>,
    query: AuthQuery,
}

impl Verifiers {
    pub fn new(ttl: Duration, mock: Mock) -> Self {
        Verifiers {
            ttl,
            mock,
            remembered: Mutex::default(),
            queries: Mutex::default(),
            query_micros: AtomicU64::new(0),
        }
    }

    /// The role's credential; none for an unknown role or tenant.
    ///
    /// # Errors
    /// The record's verifier is malformed, or the query failed.
    pub async fn find(
        &self,
        name: &str,
        tenant: Option<&Tenant>,
        role: &str,
    ) -> Result<Option<Arc<Credential>>, LookupError> {
        let record = tenant.map(Tenant::record);
        let key = (name.to_owned(), role.to_owned());
        let now = Instant::now();
        let known = self.lock().get(&key).filter(|known| same_record(&known.tenant, &record)).cloned();
        if let Some(known) = &known
            && now.duration_since(known.at) < self.ttl
        {
            return Ok(known.credential.clone());
        }
        let credential = match &record {
            None => None,
            Some(record) => match self.recorded(record, role)? {
                Some(credential) => Some(credential),
                None => match (self.ask(record, role).await, known) {
                    (Ok(credential), _) => credential,
                    // The instance is down: with the old answer the client learns that, and not of a wrong password.
                    (Err(error), Some(known)) => {
                        tracing::warn!(%error, role, "an expired verifier is used");
                        return Ok(known.credential);
                    }
                    (Err(error), None) => return Err(error),
                },
            },
        };
        let credential = credential.map(Arc::new);
        let usual = Duration::from_micros(self.query_micros.load(Ordering::Relaxed));
        tokio::time::sleep_until((now + usual).into()).await;
        self.remember(key, Remembered { at: Instant::now(), tenant: record, credential: credential.clone() });
        Ok(credential)
    }

    /// A login failed: unless it was asked for just now, the answer is asked for again at the next login.
    pub fn doubt(&self, tenant: &str, role: &str) {
        let key = (tenant.to_owned(), role.to_owned());
        let mut remembered = self.lock();
        if remembered.get(&key).is_some_and(|known| known.at.elapsed() >= FRESH) {
            remembered.remove(&key);
        }
    }

    /// Drops connections of tenants that are gone or ask elsewhere now.
    pub fn forget(&self, tenant: &str) {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Remembered, ahash::RandomState>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: (String, String), known: Remembered) {
        let mut remembered = self.lock();
        if remembered.len() >= MAX_REMEMBERED
            && let Some(any) = remembered.keys().next().cloned()
        {
            remembered.remove(&any);
        }
        remembered.insert(key, known);
    }

    /// A role without verifier and password may still be known by its certificate.
    fn recorded(&self, record: &config::Tenant, role: &str) -> Result<Option<Credential>, LookupError> {
        let Some(known) = record.roles.get(role) else { return Ok(None) };
        let verifier = match (&known.verifier, &known.password) {
            (Some(text), _) => Some(parse(record, role, text.expose())?),
            (None, Some(password)) => {
                let mock = self.mock.verifier(&record.id, role);
                let verifier = ScramVerifier::from_password(password.expose(), mock.salt(), mock.iterations()).0;
                Some(Verifier::Scram(verifier))
            }
            (None, None) => None,
        };
        let lenient = match (&verifier, &known.previous) {
            (Some(Verifier::Scram(verifier)), Some(previous)) => match parse(record, role, previous.verifier.expose())?
            {
                Verifier::Scram(former) => verifier.clone().with_former(&former).zip(Some(previous.valid_until)),
                Verifier::Md5(_) => None,
            },
            _ => None,
        };
        Ok(Some(Credential {
            lenient,
            present_password: known.previous.as_ref().map(|previous| previous.present_password.clone()),
            verifier,
            password: known.password.clone(),
            certificate_cn: known.certificate_cn.clone(),
            valid_until: known.valid_until,
        }))
    }

    async fn ask(&self, record: &config::Tenant, role: &str) -> Result<Option<Credential>, LookupError> {
        let Some(query) = &record.auth_query else { return Ok(None) };
        let failed = |reason: String| LookupError::Query { tenant: record.id.clone(), reason };
        let pool = self.query_pool(record, query)?;
        let begun = Instant::now();
        let connection = pool.get().await.map_err(&failed)?;
        let row = tokio::time::timeout(QUERY_TIMEOUT, connection.query_opt(query.query.as_str(), &[&role]))
            .await
            .map_err(|_| failed(format!("no answer within {} s", QUERY_TIMEOUT.as_secs())))?
            .map_err(|error| failed(with_sources(&error)))?;
        let took = begun.elapsed().as_micros() as u64;
        let before = self.query_micros.load(Ordering::Relaxed);
        self.query_micros.store(if before == 0 { took } else { (before * 7 + took) / 8 }, Ordering::Relaxed);
        let Some(row) = row else { return Ok(None) };
        let column = |error: tokio_postgres::Error| {
            failed(format!(
                "{}; it must give role (text), verifier (text), valid until (timestamptz)",
                with_sources(&error)
            ))
        };
        let verifier: Option<String> = row.try_get(1).map_err(column)?;
        let valid_until = if row.len() > 2 { valid_until(&row).map_err(column)? } else { None };
        Ok(Some(Credential {
            verifier: verifier.map(|text| parse(record, role, &text)).transpose()?,
            password: None,
            certificate_cn: None,
            valid_until,
            lenient: None,
            present_password: None,
        }))
    }

    fn query_pool(&self, record: &config::Tenant, query: &AuthQuery) -> Result<ControlPool, LookupError> {
        let source = AuthSource { instance: record.instance.clone(), query: query.clone() };
        let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_for, pool)) = queries.get(&record.id)
            && **made_for == source
        {
            return Ok(pool.clone());
        }
        let place = Place::new(record.instance.clone())
            .map_err(|source| LookupError::Tls { tenant: record.id.clone(), source })?;
        let pool = ControlPool::new(place, query_config(&source), QUERY_CONNECTIONS, QUERY_TIMEOUT);
        queries.insert(record.id.clone(), (Arc::new(source), pool.clone()));
        Ok(pool)
    }
}

/// Both absent, or the very same record.
fn same_record(one: &Option<Arc<config::Tenant>>, other: &Option<Arc<config::Tenant>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

fn parse(record: &config::Tenant, role: &str, text: &str) -> Result<Verifier, LookupError> {
    Verifier::parse(text).map_err(|source| LookupError::Verifier {
        tenant: record.id.clone(),
        role: role.to_owned(),
        source,
    })
}

/// `rolvaliduntil`; `infinity` and null mean forever, `-infinity` never.
fn valid_until(row: &tokio_postgres::Row) -> Result<Option<OffsetDateTime>, tokio_postgres::Error> {
    use tokio_postgres::types::Timestamp;
    let until: Option<Timestamp<OffsetDateTime>> = row.try_get(2)?;
    Ok(match until {
        Some(Timestamp::Value(until)) => Some(until),
        Some(Timestamp::NegInfinity) => Some(OffsetDateTime::UNIX_EPOCH),
        Some(Timestamp::PosInfinity) | None => None,
    })
}

fn query_config(source: &AuthSource) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.user(&source.query.user).dbname(&source.query.database).application_name("pgtenant auth_query");
    if let Some(password) = &source.query.password {
        config.password(password.expose());
    }
    config
}
