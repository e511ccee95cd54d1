//! Which tenants a command means: `tier=gold|silver,region=eu,state!=suspended`. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::config::{Config, Host, Tenant};

/// Terms, all of which a tenant has to meet; written as they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// None: everybody.
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    key: Key,
    /// `!=`: none of the values.
    negated: bool,
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Tenant,
    Tier,
    Region,
    Instance,
    /// The instance's.
    Tag,
    State,
}

const EVERYBODY: &str = "all";
const KEYS: [(&str, Key); 7] = [
    ("tenant", Key::Tenant),
    ("id", Key::Tenant),
    ("tier", Key::Tier),
    ("region", Key::Region),
    ("instance", Key::Instance),
    ("tag", Key::Tag),
    ("state", Key::State),
];

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SelectError {
    #[error(
        "selector {term:?}: write key=value or key!=value, several values as a|b, as in tier=gold,region=eu|us; all is everybody"
    )]
    Form { term: String },
    #[error(
        "selector {term:?}: there is no key {key:?}; {nearest}the keys are tenant, tier, region, instance, tag, state"
    )]
    Key { term: String, key: String, nearest: String },
    #[error("selector {selector}: no tenant is meant{why}")]
    Nobody { selector: String, why: String },
}

impl Selector {
    pub fn everybody() -> Selector {
        Selector { terms: Vec::new() }
    }

    /// Whether the tenant is meant; `host` is its instance as a place for tenants, which has the tags.
    pub fn matches(&self, tenant: &Tenant, host: Option<&Host>) -> bool {
        self.terms.iter().all(|term| term.matches(tenant, host))
    }

    /// The tenants that are meant, by id.
    ///
    /// # Errors
    /// There are none: the first term that nobody meets is named, with the values that there are.
    pub fn select(&self, config: &Config) -> Result<Vec<Arc<Tenant>>, SelectError> {
        let host = |tenant: &Tenant| config.lifecycle.hosts.get(&tenant.instance.name);
        let meant = config.tenants.values().filter(|tenant| self.matches(tenant, host(tenant)));
        let meant: Vec<Arc<Tenant>> = meant.cloned().collect();
        match meant.is_empty() {
            true => Err(SelectError::Nobody { selector: self.to_string(), why: self.why_nobody(config) }),
            false => Ok(meant),
        }
    }

    fn why_nobody(&self, config: &Config) -> String {
        if config.tenants.is_empty() {
            return ": the configuration has no tenants".to_owned();
        }
        let host = |tenant: &Tenant| config.lifecycle.hosts.get(&tenant.instance.name);
        let met = |term: &&Term| config.tenants.values().any(|tenant| term.matches(tenant, host(tenant)));
        let Some(term) = self.terms.iter().find(|term| !met(term)) else {
            return ": each term by itself is met, but not all by the same tenant".to_owned();
        };
        let values: BTreeSet<&str> =
            config.tenants.values().flat_map(|tenant| term.key.values(tenant, host(tenant))).collect();
        let listed: Vec<&str> = values.iter().copied().take(LISTED).collect();
        let more = if values.len() > LISTED { ", …" } else { "" };
        match listed.is_empty() {
            true => format!(": nobody has a {}", term.key.text()),
            false => format!(": nobody meets {term}; {} is one of {}{more}", term.key.text(), listed.join(", ")),
        }
    }
}

/// Values that an error names.
const LISTED: usize = 10;

impl Term {
    fn matches(&self, tenant: &Tenant, host: Option<&Host>) -> bool {
        let has = self.key.values(tenant, host).into_iter().any(|value| self.values.iter().any(|one| one == value));
        has != self.negated
    }
}

impl Key {
    /// The tenant's values: several tags, and none where it has none.
    fn values<'a>(self, tenant: &'a Tenant, host: Option<&'a Host>) -> Vec<&'a str> {
        match self {
            Key::Tenant => vec![&tenant.id],
            Key::Tier => tenant.tier.as_deref().into_iter().collect(),
            Key::Region => tenant.instance.region.as_deref().into_iter().collect(),
            Key::Instance => vec![&tenant.instance.name],
            Key::Tag => host.map(|host| host.tags.iter().map(String::as_str).collect()).unwrap_or_default(),
            Key::State => vec![tenant.state.text()],
        }
    }

    fn text(self) -> &'static str {
        KEYS.iter().find(|(_, key)| *key == self).expect("every key has a name").0
    }
}

impl FromStr for Selector {
    type Err = SelectError;

    fn from_str(text: &str) -> Result<Selector, SelectError> {
        if text.trim() == EVERYBODY {
            return Ok(Selector::everybody());
        }
        text.split(',').map(|term| term.trim().parse()).collect::<Result<_, _>>().map(|terms| Selector { terms })
    }
}

impl FromStr for Term {
    type Err = SelectError;

    fn from_str(text: &str) -> Result<Term, SelectError> {
        let malformed = || SelectError::Form { term: text.to_owned() };
        let (key, values) = text.split_once('=').ok_or_else(malformed)?;
        let (key, negated) = key.strip_suffix('!').map_or((key, false), |key| (key, true));
        let key = key.trim();
        let values: Vec<String> = values.split('|').map(|value| value.trim().to_owned()).collect();
        if key.is_empty() || values.iter().any(|value| value.is_empty() || value.contains('=')) {
            return Err(malformed());
        }
        match KEYS.iter().find(|(name, _)| *name == key) {
            Some(&(_, key)) => Ok(Term { key, negated, values }),
            None => Err(SelectError::Key { term: text.to_owned(), key: key.to_owned(), nearest: nearest(key) }),
        }
    }
}

fn nearest(key: &str) -> String {
    let close = KEYS.iter().map(|(name, _)| (strsim::damerau_levenshtein(key, name), name)).min();
    close.filter(|(distance, _)| *distance <= 2).map(|(_, name)| format!("did you mean {name}? ")).unwrap_or_default()
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms: Vec<String> = self.terms.iter().map(Term::to_string).collect();
        f.write_str(if terms.is_empty() { EVERYBODY } else { "" })?;
        f.write_str(&terms.join(","))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.key.text(), if self.negated { "!=" } else { "=" }, self.values.join("|"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "
        [instances.one]
        host = '127.0.0.1'
        region = 'eu'
        tags = ['ssd', 'new']
        [instances.two]
        host = '127.0.0.2'
        [tier.gold]
        [tier.silver]
        [tenants.acme]
        auth_query.user = 'asker'
        instance = 'one'
        tier = 'gold'
        [tenants.globex]
        auth_query.user = 'asker'
        instance = 'one'
        tier = 'silver'
        state = 'suspended'
        [tenants.initech]
        auth_query.user = 'asker'
        instance = 'two'";

    fn config(text: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, text).unwrap();
        crate::config::load(Some(&path), &[]).unwrap()
    }

    fn meant(text: &str) -> Result<Vec<String>, String> {
        let selector: Selector = text.parse().map_err(|error: SelectError| error.to_string())?;
        let again: Selector = selector.to_string().parse().unwrap();
        assert_eq!(again, selector);
        let tenants = selector.select(&config(PROXY)).map_err(|error| error.to_string())?;
        Ok(tenants.iter().map(|tenant| tenant.id.clone()).collect())
    }

    #[test]
    fn all_terms_are_needed_and_one_value_of_each() {
        for (text, ids) in [
            ("all", &["acme", "globex", "initech"][..]),
            ("tier=gold", &["acme"]),
            ("tier=gold|silver", &["acme", "globex"]),
            ("tier!=gold", &["globex", "initech"]),
            ("tier!=gold|silver", &["initech"]),
            ("region=eu, state=active", &["acme"]),
            ("tag=ssd", &["acme", "globex"]),
            ("tag!=ssd", &["initech"]),
            ("tag=new,tag=ssd,instance=one", &["acme", "globex"]),
            ("id=acme|initech", &["acme", "initech"]),
            ("tenant = globex", &["globex"]),
            ("state!=active", &["globex"]),
        ] {
            assert_eq!(meant(text).unwrap(), ids, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_remedy() {
        for (text, reason) in [
            ("", "write key=value"),
            ("gold", "write key=value"),
            ("tier=", "write key=value"),
            ("tier=gold|", "write key=value"),
            ("tier==gold", "write key=value"),
            ("tier=gold,", "write key=value"),
            ("all,tier=gold", "write key=value"),
            ("teir=gold", "did you mean tier?"),
            ("colour=red", "the keys are tenant, tier, region"),
            ("tier=glod", "nobody meets tier=glod; tier is one of gold, silver"),
            ("tier=gold,region=us", "nobody meets region=us; region is one of eu"),
            ("tier=gold,instance=two", "each term by itself is met"),
        ] {
            let error = meant(text).unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        let error = Selector::everybody().select(&config("")).unwrap_err().to_string();
        assert!(error.contains("has no tenants"), "{error}");
    }
}
