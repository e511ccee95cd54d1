//! Who goes first: `canary:1,5%,25%,rest`, and how many failures a run goes on with. Pure.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::Failure;
use crate::config::{Config, Tenant};
use crate::select::Selector;

/// As written.
#[derive(Debug, Clone, PartialEq)]
pub struct Waves(Vec<Wave>);

#[derive(Debug, Clone, PartialEq)]
struct Wave {
    label: String,
    who: Who,
}

#[derive(Debug, Clone, PartialEq)]
enum Who {
    Count(usize),
    /// Of all of the run's tenants, rounded up.
    Percent(f64),
    Chosen(Selector),
    Rest,
}

/// A wave with its tenants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    pub label: String,
    pub tenants: Vec<String>,
}

const FORM: &str =
    "write waves such as canary:1,5%,25%,rest: a number, a share, a selector such as tier=free, and rest at the end";

impl FromStr for Waves {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Waves, Failure> {
        let wrong = |what: &str| Failure::Order(format!("waves {text:?}: {what}; {FORM}"));
        let waves: Vec<Wave> =
            text.split(',').map(|wave| read(wave.trim()).map_err(|what| wrong(&what))).collect::<Result<_, _>>()?;
        let twice = |wave: &&Wave| waves.iter().filter(|other| other.label == wave.label).count() > 1;
        if let Some(wave) = waves.iter().find(twice).filter(|wave| wave.who != Who::Rest) {
            return Err(wrong(&format!("two are called {0}; give them names, as in early:{0}", wave.label)));
        }
        let rests = waves.iter().filter(|wave| wave.who == Who::Rest).count();
        match waves.last() {
            Some(wave) if wave.who == Who::Rest && rests == 1 => Ok(Waves(waves)),
            // Else tenants could be left out without anybody noticing.
            _ => Err(wrong("rest has to be the last one, and only that")),
        }
    }
}

fn read(text: &str) -> Result<Wave, String> {
    let (label, size) = match text.split_once(':') {
        Some((label, size)) => (label.trim(), size.trim()),
        None => (text, text),
    };
    let who = match (size, size.strip_suffix('%')) {
        ("rest", _) => Who::Rest,
        (_, Some(percent)) => match percent.parse() {
            Ok(percent) if percent > 0.0 && percent <= 100.0 => Who::Percent(percent),
            _ => return Err(format!("{size:?} is no share")),
        },
        (size, _) if size.contains('=') => Who::Chosen(size.parse().map_err(|error| format!("{error}"))?),
        (size, _) => match size.parse() {
            Ok(count) if count > 0 => Who::Count(count),
            _ => return Err(format!("{size:?} is neither a number nor a share")),
        },
    };
    if label.is_empty() {
        return Err(format!("{text:?} has no name before its colon"));
    }
    Ok(Wave { label: label.to_owned(), who })
}

impl Waves {
    /// Everybody at once.
    pub fn one() -> Waves {
        Waves(vec![Wave { label: "all".to_owned(), who: Who::Rest }])
    }

    /// Puts every tenant into one wave. Those of a number or share are taken in an order that has nothing to do with
    /// their names and is the same each time; waves without tenants are left out.
    pub fn assign(&self, tenants: &[Arc<Tenant>], config: &Config) -> Vec<Assigned> {
        let all = tenants.len();
        let mut left: Vec<&Arc<Tenant>> = tenants.iter().collect();
        left.sort_by_cached_key(|tenant| Sha256::digest(tenant.id.as_bytes()));
        let host = |tenant: &Tenant| config.lifecycle.hosts.get(&tenant.instance.name);
        let mut assigned = Vec::new();
        // Whoever is chosen by a later wave is not taken by the number of an earlier one.
        let chosen_later = |at: usize, tenant: &Tenant| {
            self.0[at + 1..]
                .iter()
                .any(|wave| matches!(&wave.who, Who::Chosen(who) if who.matches(tenant, host(tenant))))
        };
        for (at, wave) in self.0.iter().enumerate() {
            let most = match &wave.who {
                Who::Count(count) => *count,
                Who::Percent(percent) => (all as f64 * percent / 100.0).ceil() as usize,
                Who::Chosen(_) | Who::Rest => usize::MAX,
            };
            let mut taken = Vec::new();
            left.retain(|tenant| {
                let meant = match &wave.who {
                    Who::Chosen(who) => who.matches(tenant, host(tenant)),
                    _ => !chosen_later(at, tenant),
                };
                let takes = meant && taken.len() < most;
                if takes {
                    taken.push(tenant.id.clone());
                }
                !takes
            });
            if !taken.is_empty() {
                assigned.push(Assigned { label: wave.label.clone(), tenants: taken });
            }
        }
        assigned
    }
}

/// A number, or a share of the tenants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxFailures {
    Count(usize),
    Percent(f64),
}

impl MaxFailures {
    /// How many of `tenants` may fail.
    pub fn of(self, tenants: usize) -> usize {
        match self {
            MaxFailures::Count(count) => count,
            MaxFailures::Percent(percent) => (tenants as f64 * percent / 100.0).floor() as usize,
        }
    }
}

impl FromStr for MaxFailures {
    type Err = Failure;

    fn from_str(text: &str) -> Result<MaxFailures, Failure> {
        let wrong = || Failure::Order(format!("max-failures {text:?}: write a number, or a share such as 1%"));
        match text.trim().strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
                percent.map(MaxFailures::Percent).ok_or_else(wrong)
            }
            None => text.trim().parse().map(MaxFailures::Count).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for MaxFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxFailures::Count(count) => write!(f, "{count}"),
            MaxFailures::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(tenants: usize) -> Config {
        let mut text = "[instances.one]\nhost = '127.0.0.1'\n[tier.free]\n".to_owned();
        for number in 0..tenants {
            let tier = if number < 3 { "tier = 'free'\n" } else { "" };
            text += &format!(
                "[tenants.t{number:03}]\ninstance = 'one'\ndatabase = 'd{number}'\nauth_query.user = 'a'\n{tier}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.toml");
        std::fs::write(&path, text).unwrap();
        crate::config::load(Some(&path), &[]).unwrap()
    }

    fn sizes(waves: &str, tenants: usize) -> Vec<(String, usize)> {
        let config = config(tenants);
        let tenants: Vec<Arc<Tenant>> = config.tenants.values().cloned().collect();
        let assigned = waves.parse::<Waves>().unwrap().assign(&tenants, &config);
        let mut all: Vec<&String> = assigned.iter().flat_map(|wave| &wave.tenants).collect();
        all.sort();
        assert!(all.into_iter().eq(config.tenants.keys()), "each is in one wave");
        assigned.into_iter().map(|wave| (wave.label, wave.tenants.len())).collect()
    }

    fn expect(found: &[(String, usize)], expected: &[(&str, usize)]) {
        let found: Vec<(&str, usize)> = found.iter().map(|(label, size)| (label.as_str(), *size)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn every_tenant_is_in_one_wave() {
        expect(&sizes("canary:1,5%,25%,rest", 200), &[("canary", 1), ("5%", 10), ("25%", 50), ("rest", 139)]);
        expect(&sizes("canary:1,5%,25%,rest", 2), &[("canary", 1), ("5%", 1)]);
        expect(&sizes("100%,rest", 7), &[("100%", 7)]);
        expect(&sizes("rest", 3), &[("rest", 3)]);
        expect(&sizes("2, free:tier=free ,rest", 10), &[("2", 2), ("free", 3), ("rest", 5)]);
        expect(&sizes("canary:tenant=t007,rest", 10), &[("canary", 1), ("rest", 9)]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("", "neither a number nor a share"),
            ("canary:1", "rest has to be the last"),
            ("rest,1", "rest has to be the last"),
            ("rest,rest", "rest has to be the last"),
            ("0,rest", "neither a number"),
            ("120%,rest", "is no share"),
            (":1,rest", "no name"),
            ("5%,5%,rest", "two are called 5%"),
            ("x:teir=gold,rest", "did you mean tier"),
        ] {
            let error = text.parse::<Waves>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!("1.5".parse::<MaxFailures>().is_err() && "101%".parse::<MaxFailures>().is_err());
    }

    #[test]
    fn failures_are_a_number_or_a_share() {
        let of = |text: &str, tenants| text.parse::<MaxFailures>().unwrap().of(tenants);
        assert_eq!((of("1%", 200), of("1%", 99), of("0", 200), of("3", 2)), (2, 0, 0, 3));
    }
}
