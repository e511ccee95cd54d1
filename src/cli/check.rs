//! `pgtenant check`: reads the configuration as `serve` would, and reaches every instance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::Mock;
use crate::backend::{Login, Target, connect};
use crate::config::{self, Config};
use crate::net::{Place, dial};
use crate::reload::{self, Source};
use crate::tenant::{Registry, Verifiers};

/// Checks that run at a time.
const AT_A_TIME: usize = 16;

/// Prints a line per instance and per tenant that can be logged in to, and fails when one of them does.
pub fn run(source: &Source) -> anyhow::Result<()> {
    let loaded = reload::load(source).map_err(|error| anyhow::anyhow!("the configuration cannot be used\n{error}"))?;
    let config = loaded.config;
    println!("ok    configuration: instances {}, tenants {}", config.instances.len(), config.tenants.len());
    if let Some(tls) = &loaded.tls {
        for certificate in tls.certificates().all() {
            println!("ok    certificate {}: until {}", certificate.name, certificate.facts.not_after.date());
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let failures = runtime.block_on(reach(&config));
    anyhow::ensure!(failures == 0, "{failures} of the checks failed");
    Ok(())
}

async fn reach(config: &Config) -> usize {
    let timeout = config.pool.connect_timeout;
    let mut checks = tokio::task::JoinSet::new();
    let mut failures = 0;
    for instance in config.instances.values() {
        checks.spawn(check_instance(instance.clone(), timeout));
    }
    let registry = Registry::default();
    registry.publish(&config.tenants);
    let verifiers = Arc::new(Verifiers::new(Duration::ZERO, Mock::new(config.auth.mock_iterations)));
    for tenant in config.tenants.values() {
        if checks.len() >= AT_A_TIME {
            failures += report(checks.join_next().await);
        }
        checks.spawn(check_tenant(tenant.clone(), registry.get(&tenant.id), verifiers.clone(), timeout));
    }
    while !checks.is_empty() {
        failures += report(checks.join_next().await);
    }
    failures
}

/// What was checked, and what came of it: none where there was nothing to check.
type Checked = (String, Option<Result<String, String>>);

/// Prints a check's line; counts a failure.
fn report(checked: Option<Result<Checked, tokio::task::JoinError>>) -> usize {
    let (what, result) = match checked {
        Some(Ok(checked)) => checked,
        Some(Err(error)) => ("a check".to_owned(), Some(Err(error.to_string()))),
        None => return 0,
    };
    match result {
        Some(Ok(how)) => println!("ok    {what}: {how}"),
        Some(Err(why)) => {
            println!("FAIL  {what}: {why}");
            return 1;
        }
        None => println!("-     {what}: backends log in with the client's own keys; not tried"),
    }
    0
}

async fn check_instance(instance: Arc<config::Instance>, timeout: Duration) -> Checked {
    let what = format!("instance {}", instance.name);
    let address = instance.address.to_string();
    let begun = Instant::now();
    let reached = async {
        let place = Place::new(instance).map_err(|error| error.to_string())?;
        let stream = dial(&place).await.map_err(|error| error.to_string())?;
        Ok(if stream.is_tls() { "TLS" } else { "no TLS" })
    };
    let result = tokio::time::timeout(timeout, reached).await;
    let result = result.unwrap_or_else(|_| Err(format!("{address} does not answer within {} s", timeout.as_secs())));
    (what, Some(result.map(|tls| format!("{address} reached in {} ms, {tls}", begun.elapsed().as_millis()))))
}

/// Logs in where the record has what it takes, and asks the auth query for a role that hardly exists.
async fn check_tenant(
    record: Arc<config::Tenant>,
    tenant: Option<Arc<crate::tenant::Tenant>>,
    verifiers: Arc<Verifiers>,
    timeout: Duration,
) -> Checked {
    let what = format!("tenant {}", record.id);
    let mut done = Vec::new();
    if record.auth_query.is_some() {
        match verifiers.find(&record.id, tenant.as_deref(), "pgtenant_check").await {
            Ok(_) => done.push("auth_query answers".to_owned()),
            Err(error) => return (what, Some(Err(error.to_string()))),
        }
    }
    let with_password = record.roles.iter().find_map(|(role, it)| Some((role.clone(), it.password.clone()?)));
    let login = match &record.service {
        Some(service) => Some((service.user.clone(), service.password.clone())),
        None => with_password.map(|(role, password)| (role, Some(password))),
    };
    if let Some((role, password)) = login {
        match log_in(&record, &role, password, timeout).await {
            Ok(()) => done.push(format!("role {role} logged in to {} on {}", record.database, record.instance.name)),
            Err(why) => return (what, Some(Err(why))),
        }
    }
    (what, (!done.is_empty()).then(|| Ok(done.join(", "))))
}

async fn log_in(
    record: &config::Tenant,
    role: &str,
    password: Option<config::Secret>,
    timeout: Duration,
) -> Result<(), String> {
    let place = Place::new(record.instance.clone()).map_err(|error| error.to_string())?;
    let target = Target {
        place: Arc::new(place),
        database: record.database.clone(),
        role: role.to_owned(),
        login: password.map_or(Login::Nothing, Login::Password),
        startup: None,
        timeout,
    };
    let backend = connect(&target).await.map_err(|error| error.to_string())?;
    backend.close(false).await;
    Ok(())
}
