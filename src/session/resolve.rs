//! Step 3: every hint there is, turned into exactly one tenant.

use std::sync::Arc;

use super::startup::Startup;
use super::{Client, Context, Rejection};
use crate::metrics::{AuthMethod, AuthResult};
use crate::tenant::Tenant;
use crate::tenant::route::{Route, RouteError, Rule, route};
use crate::wire::{PgError, sqlstate};

/// A client that says who it is. The tenant need not exist: that shows only when its login fails as any other.
pub struct Candidate {
    pub route: Route,
    pub tenant: Option<Arc<Tenant>>,
    pub startup: Startup,
}

/// Applies the rules.
///
/// Two explicit hints that disagree are told so: that gives away nothing but what the client said itself. A user's
/// suffix is a hint only where there is such a tenant, so there the login fails like one with a wrong password.
pub(super) fn tenant(client: &Client, startup: Startup, context: &Context) -> Result<Candidate, Rejection> {
    let config = context.config.load();
    let user = startup.hints.user.clone();
    let exists = |tenant: &str| context.registry.contains(tenant);
    match route(&startup.hints, &config.routing, exists) {
        Ok(route) => {
            let tenant = context.registry.get(&route.tenant);
            tracing::debug!(client = %client.peer, tenant = route.tenant, rule = %route.rule, "routed");
            Ok(Candidate { route, tenant, startup })
        }
        Err(RouteError::Disagree { first, second: Rule::UserSuffix, tenants }) => {
            // Goes through a login that cannot succeed: the tenant is nobody's.
            tracing::info!(client = %client.peer, user, "{first} and user suffix name different tenants");
            let route = Route { tenant: tenants.0, role: user, database: None, rule: first };
            Ok(Candidate { route, tenant: None, startup })
        }
        Err(error @ RouteError::Disagree { .. }) => {
            let tell = PgError::fatal(sqlstate::INVALID_AUTHORIZATION, error.to_string());
            Err(Rejection::login(AuthMethod::None, AuthResult::Disagreement, tell, error.to_string()))
        }
        Err(error @ RouteError::NoTenant) => {
            let tell = PgError::fatal(sqlstate::INVALID_AUTHORIZATION, "the connection names no tenant")
                .with_hint(how_to_name_one(&config.routing));
            Err(Rejection::login(AuthMethod::None, AuthResult::UnknownTenant, tell, error.to_string()))
        }
    }
}

fn how_to_name_one(routing: &crate::config::Routing) -> String {
    let mut ways = Vec::new();
    ways.extend(routing.sni_domains.first().map(|domain| format!("connect by TLS to <tenant>.{domain}")));
    if routing.options {
        ways.push("set options=-c tenant=<tenant>".to_owned());
    }
    ways.extend(routing.user_suffix.map(|separator| format!("log in as <role>{separator}<tenant>")));
    match ways.is_empty() {
        true => "Ask the operator how tenants are named here.".to_owned(),
        false => format!("To name it, {}.", ways.join(", or ")),
    }
}
