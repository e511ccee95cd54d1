//! From the hints of a connection to exactly one tenant. Pure, so that `pgtenant route` shows what `serve` does.

use std::fmt;

use thiserror::Error;

use crate::config::{self, Databases, Routing};

/// Everything in a connection that may name its tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// The name of the TLS ClientHello.
    pub sni: Option<String>,
    /// `options=-c tenant=…`.
    pub option: Option<String>,
    pub user: String,
    pub database: Option<String>,
    /// The tenant whose own CA vouches for the client's certificate.
    pub certificate: Option<String>,
}

/// What named the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    Sni,
    Options,
    UserSuffix,
    Database,
    ClientCertificate,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::Sni => "SNI",
            Rule::Options => "options",
            Rule::UserSuffix => "user suffix",
            Rule::Database => "database",
            Rule::ClientCertificate => "client certificate",
        })
    }
}

/// Where a connection goes, if its tenant exists and its credentials are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub tenant: String,
    /// The user without the tenant's suffix.
    pub role: String,
    /// As the client asked for it; none: the tenant's own.
    pub database: Option<String>,
    pub rule: Rule,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RouteError {
    #[error("no tenant named: none of SNI, options, user, database and client certificate names one")]
    NoTenant,
    #[error("the hints disagree: {first} names tenant \"{}\", {second} names \"{}\"", .tenants.0, .tenants.1)]
    Disagree { first: Rule, second: Rule, tenants: (String, String) },
}

/// Applies every rule that is switched on. `exists` says whether there is such a tenant: a user's suffix counts
/// only where it names one, or where nothing else does, because roles may have dots of their own.
///
/// # Errors
/// No rule names a tenant, or two name different ones.
pub fn route(hints: &Hints, routing: &Routing, exists: impl Fn(&str) -> bool) -> Result<Route, RouteError> {
    let database = hints.database.as_deref().and_then(|name| routing.databases.get(name));
    let mut named: Vec<(Rule, String)> = Vec::new();
    named.extend(sni_tenant(hints.sni.as_deref(), routing).map(|tenant| (Rule::Sni, tenant)));
    if routing.options {
        named.extend(hints.option.as_ref().map(|tenant| (Rule::Options, tenant.to_ascii_lowercase())));
    }
    named.extend(database.map(|tenant| (Rule::Database, tenant.clone())));
    if routing.client_certificate {
        named.extend(hints.certificate.as_ref().map(|tenant| (Rule::ClientCertificate, tenant.clone())));
    }
    let mut role = hints.user.as_str();
    if let Some((name, suffix)) = routing.user_suffix.and_then(|separator| hints.user.rsplit_once(separator)) {
        let suffix = suffix.to_ascii_lowercase();
        let names_tenant = !name.is_empty() && !suffix.is_empty() && (named.is_empty() || exists(&suffix));
        if names_tenant {
            named.push((Rule::UserSuffix, suffix));
            role = name;
        }
    }
    let (rule, tenant) = named.first().cloned().ok_or(RouteError::NoTenant)?;
    if let Some((second, other)) = named.iter().find(|(_, other)| *other != tenant) {
        return Err(RouteError::Disagree { first: rule, second: *second, tenants: (tenant, other.clone()) });
    }
    Ok(Route {
        tenant,
        role: role.to_owned(),
        // A database that only named the tenant is not asked for by this name.
        database: hints.database.clone().filter(|_| database.is_none()),
        rule,
    })
}

/// The database that a route leads to in its tenant's record; none for one that is not in the record. `user` is the
/// client's own: drivers that were told no database ask for one of this name.
pub fn database<'a>(route: &'a Route, user: &str, record: &'a config::Tenant) -> Option<&'a str> {
    let asked = route.database.as_deref().filter(|name| *name != route.role && *name != user);
    match (asked, &record.databases) {
        (None, _) => Some(&record.database),
        (Some(name), Databases::All) => Some(name),
        (Some(name), Databases::Named(others)) => {
            (name == record.database || others.iter().any(|other| other == name)).then_some(name)
        }
    }
}

/// The tenant in `<tenant>.<domain>`; none for any other name.
pub fn sni_tenant(name: Option<&str>, routing: &Routing) -> Option<String> {
    let name = name?.trim_end_matches('.').to_ascii_lowercase();
    routing.sni_domains.iter().find_map(|domain| {
        let tenant = name.strip_suffix(domain.as_str())?.strip_suffix('.')?;
        (!tenant.is_empty() && !tenant.contains('.')).then(|| tenant.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing() -> Routing {
        Routing {
            sni_domains: vec!["db.example.com".into()],
            options: true,
            user_suffix: Some('.'),
            databases: [("acme_prod".to_owned(), "acme".to_owned())].into(),
            client_certificate: true,
        }
    }

    fn hints() -> Hints {
        Hints { user: "app".into(), ..Hints::default() }
    }

    fn routed(hints: &Hints) -> Result<Route, RouteError> {
        route(hints, &routing(), |tenant| matches!(tenant, "acme" | "globex"))
    }

    #[test]
    fn each_rule_names_a_tenant() {
        let cases = [
            (Hints { sni: Some("ACME.db.example.com.".into()), ..hints() }, Rule::Sni),
            (Hints { option: Some("acme".into()), ..hints() }, Rule::Options),
            (Hints { user: "app.acme".into(), ..hints() }, Rule::UserSuffix),
            (Hints { database: Some("acme_prod".into()), ..hints() }, Rule::Database),
            (Hints { certificate: Some("acme".into()), ..hints() }, Rule::ClientCertificate),
        ];
        for (hints, rule) in cases {
            let expected = Route { tenant: "acme".into(), role: "app".into(), database: None, rule };
            assert_eq!(routed(&hints), Ok(expected));
        }
    }

    #[test]
    fn each_rule_can_be_switched_off() {
        let off = Routing {
            sni_domains: vec![],
            options: false,
            user_suffix: None,
            databases: Default::default(),
            client_certificate: false,
        };
        let all = Hints {
            sni: Some("acme.db.example.com".into()),
            option: Some("acme".into()),
            user: "app.acme".into(),
            database: Some("acme_prod".into()),
            certificate: Some("acme".into()),
        };
        assert_eq!(route(&all, &off, |_| true), Err(RouteError::NoTenant));
    }

    #[test]
    fn hints_that_agree_are_one() {
        let all = Hints {
            sni: Some("acme.db.example.com".into()),
            option: Some("acme".into()),
            user: "app.acme".into(),
            database: Some("acme_prod".into()),
            certificate: Some("acme".into()),
        };
        assert_eq!(routed(&all).unwrap().role, "app");
    }

    #[test]
    fn hints_that_disagree_are_refused() {
        let two = Hints { sni: Some("acme.db.example.com".into()), option: Some("globex".into()), ..hints() };
        assert_eq!(
            routed(&two).unwrap_err().to_string(),
            "the hints disagree: SNI names tenant \"acme\", options names \"globex\""
        );
        let suffix = Hints { option: Some("acme".into()), user: "app.globex".into(), ..hints() };
        assert!(matches!(routed(&suffix), Err(RouteError::Disagree { .. })));
    }

    #[test]
    fn a_role_may_have_dots_of_its_own() {
        let dotted = Hints { option: Some("acme".into()), user: "jane.doe".into(), ..hints() };
        assert_eq!(routed(&dotted).unwrap().role, "jane.doe");
        let with_suffix = Hints { user: "jane.doe.acme".into(), ..hints() };
        assert_eq!(routed(&with_suffix).unwrap().role, "jane.doe");
        // Alone, a suffix that names nobody is an unknown tenant, not a role.
        let unknown = Hints { user: "app.nosuch".into(), ..hints() };
        assert_eq!(routed(&unknown).unwrap().tenant, "nosuch");
        assert_eq!(routed(&hints()), Err(RouteError::NoTenant));
        assert_eq!(routed(&Hints { user: ".acme".into(), ..hints() }), Err(RouteError::NoTenant));
    }

    #[test]
    fn names_that_are_not_of_the_domain_are_no_hint() {
        for name in ["localhost", "db.example.com", "a.b.db.example.com", ".db.example.com", "acmedb.example.com"] {
            assert_eq!(sni_tenant(Some(name), &routing()), None, "{name}");
        }
    }

    #[test]
    fn a_database_that_did_not_name_the_tenant_is_asked_for() {
        let asked = Hints { option: Some("acme".into()), database: Some("reports".into()), ..hints() };
        assert_eq!(routed(&asked).unwrap().database.as_deref(), Some("reports"));
    }
}
