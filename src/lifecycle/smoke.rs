//! A new tenant's first login, through the proxy where one runs here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::Failure;
use super::order::Order;
use crate::config::{Config, Instance, InstanceAddress, InstanceTls, Secret, TlsMode};
use crate::net::{ControlError, DialError, Place, control};

/// Pauses before the attempts: the proxy takes a moment to see the record. Fewer than it allows failed logins.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(400), Duration::from_millis(600), Duration::from_secs(2), Duration::from_secs(4)];
const TIMEOUT: Duration = Duration::from_secs(15);

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Smoke {
    Passed {
        proxy: String,
    },
    /// And why.
    NotTested(String),
}

impl fmt::Display for Smoke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Smoke::Passed { proxy } => write!(f, "logged in through the proxy at {proxy}"),
            Smoke::NotTested(why) => write!(f, "not tested: {why}"),
        }
    }
}

/// Where to try: the given address, else the proxy's own Unix socket or first address.
pub fn proxy_of(config: &Config, given: Option<SocketAddr>) -> Option<InstanceAddress> {
    let first = config.listen.addresses.first();
    let tcp = |address: SocketAddr| {
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            ip => ip,
        };
        InstanceAddress::Tcp { host: ip.to_string(), port: address.port() }
    };
    match (given, &config.listen.unix_socket_dir, first) {
        (Some(address), ..) => Some(tcp(address)),
        (None, Some(dir), Some(first)) if first.port() != 0 => {
            Some(InstanceAddress::Unix { dir: dir.clone(), port: first.port() })
        }
        (None, None, Some(first)) if first.port() != 0 => Some(tcp(*first)),
        _ => None,
    }
}

/// Logs in as the application's role, and asks where it is.
///
/// # Errors
/// A proxy answers, and does not let the role in, or to another database.
pub async fn test(
    config: &Config,
    proxy: Option<&InstanceAddress>,
    order: &Order,
    password: &Secret,
) -> Result<Smoke, Failure> {
    let Some(address) = proxy else {
        return Ok(Smoke::NotTested("no address of a proxy is configured; give one with --proxy".to_owned()));
    };
    let name = address.to_string();
    let failed = |why: String| Failure::Smoke { tenant: order.tenant.clone(), proxy: name.clone(), why };
    let mut login = tokio_postgres::Config::new();
    login.dbname(&order.database).password(password.expose()).application_name("pgtenant smoke test");
    match (config.routing.options, config.routing.user_suffix) {
        (true, _) => login.user(&order.roles.app).options(format!("-c tenant={}", order.tenant)),
        (false, Some(separator)) => login.user(format!("{}{separator}{}", order.roles.app, order.tenant)),
        (false, None) => {
            let why = "the proxy takes a tenant neither from options nor from the user's name ([routing])";
            return Ok(Smoke::NotTested(why.to_owned()));
        }
    };
    let place = Place::new(Arc::new(as_instance(config, address))).map_err(|error| failed(error.to_string()))?;
    let mut why = String::new();
    for pause in PAUSES {
        tokio::time::sleep(pause).await;
        let attempt = tokio::time::timeout(TIMEOUT, attempt(&place, &login, order)).await;
        match attempt.unwrap_or_else(|_| Err(Refusal::Final(format!("no answer within {} s", TIMEOUT.as_secs())))) {
            Ok(()) => return Ok(Smoke::Passed { proxy: name }),
            Err(Refusal::NoProxy) => return Ok(Smoke::NotTested(format!("no proxy runs at {name}"))),
            Err(Refusal::Unknown(text)) => why = text,
            Err(Refusal::Final(text)) => return Err(failed(text)),
        }
    }
    Err(failed(format!("{why}; has the proxy taken over the record? Its log says why not")))
}

enum Refusal {
    NoProxy,
    /// The proxy does not know the tenant, or not yet.
    Unknown(String),
    Final(String),
}

async fn attempt(place: &Place, login: &tokio_postgres::Config, order: &Order) -> Result<(), Refusal> {
    let client = control(place, login).await.map_err(|error| match &error {
        ControlError::Dial(DialError::Connect { .. }) => Refusal::NoProxy,
        ControlError::Postgres(refused) if refused.code().is_some_and(|code| code.code() == "28P01") => {
            Refusal::Unknown(error.to_string())
        }
        _ => Refusal::Final(error.to_string()),
    })?;
    let row = client.query_one("SELECT current_database()::text, current_user::text", &[]).await;
    let row = row.map_err(|error| Refusal::Final(crate::net::with_sources(&error)))?;
    // A backend whose random numbers were seeded is not given to another client: it ends with this session, and does not lie
    // idle in the pool, where those of many new tenants would take all the connections that the commands need.
    let _ = client.batch_execute("SELECT setseed(0)").await;
    let (database, role): (String, String) = (row.get(0), row.get(1));
    match database == order.database && role == order.roles.app {
        true => Ok(()),
        false => Err(Refusal::Final(format!("it leads to database {database:?} as role {role:?}"))),
    }
}

/// The proxy as something to connect to. Its certificate is not looked at: it is our own, and the password is checked
/// by SCRAM without being sent.
fn as_instance(config: &Config, address: &InstanceAddress) -> Instance {
    let encrypted = config.tls.mode == TlsMode::Required && matches!(address, InstanceAddress::Tcp { .. });
    Instance {
        name: "proxy".to_owned(),
        address: address.clone(),
        tls: if encrypted { InstanceTls::Require } else { InstanceTls::Off },
        tls_server_name: "localhost".to_owned(),
        tls_ca: None,
        max_backends: 1,
        system_identifier: None,
        region: None,
    }
}
