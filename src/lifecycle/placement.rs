//! Where a new tenant goes: by region, tags and free room. Pure.

use std::collections::BTreeMap;

use crate::config::Host;

/// What a tenant asks of its instance.
#[derive(Debug, Default, Clone, Copy)]
pub struct Wish<'a> {
    pub instance: Option<&'a str>,
    pub region: Option<&'a str>,
    pub tags: &'a [String],
}

/// The instance with the most room among those that fit, the first by name of equals; `taken` is how many tenants each
/// has, those on their way included. A full one is never chosen, not even by name, nor is one of another region.
pub fn place(hosts: &BTreeMap<String, Host>, taken: &BTreeMap<String, u32>, wish: Wish<'_>) -> Result<String, String> {
    if let Some(name) = wish.instance {
        let host = hosts.get(name).ok_or_else(|| {
            let known: Vec<&str> = hosts.keys().map(String::as_str).collect();
            format!("no instance {name:?}; there are {}", known.join(", "))
        })?;
        return match unfit(host, taken, wish) {
            Some(why) => Err(format!("instance {name} {why}")),
            None => Ok(name.to_owned()),
        };
    }
    let mut reasons = Vec::new();
    let mut best: Option<(f64, u32, &str)> = None;
    for (name, host) in hosts {
        if let Some(why) = unfit(host, taken, wish) {
            reasons.push(format!("{name} {why}"));
            continue;
        }
        let number = taken.get(name).copied().unwrap_or(0);
        // Without a limit all are equally free: then the fewest tenants decide.
        let share = host.max_tenants.map_or(0.0, |most| f64::from(number) / f64::from(most));
        if best.is_none_or(|(least, fewest, _)| (share, number) < (least, fewest)) {
            best = Some((share, number, name));
        }
    }
    match best {
        Some((_, _, name)) => Ok(name.to_owned()),
        None if reasons.is_empty() => Err("no [instances.*] is configured".to_owned()),
        None => Err(reasons.join("; ")),
    }
}

/// Why a tenant cannot go there.
fn unfit(host: &Host, taken: &BTreeMap<String, u32>, wish: Wish<'_>) -> Option<String> {
    if host.admin.is_none() {
        return Some("has no admin ([instances.<name>.admin])".to_owned());
    }
    if let Some(region) = wish.region
        && host.instance.region.as_deref() != Some(region)
    {
        let own = host.instance.region.as_deref().map_or("no region".to_owned(), |own| format!("region {own:?}"));
        return Some(format!("has {own}, not {region:?}"));
    }
    if let Some(tag) = wish.tags.iter().find(|tag| !host.tags.contains(tag)) {
        return Some(format!("has no tag {tag:?}"));
    }
    let number = taken.get(&host.instance.name).copied().unwrap_or(0);
    host.max_tenants.filter(|&most| number >= most).map(|most| format!("is full (max_tenants = {most})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Instance, InstanceAddress, InstanceAdmin, InstanceTls};

    fn host(name: &str, region: Option<&str>, max_tenants: Option<u32>, tags: &[&str]) -> (String, Host) {
        let instance = Instance {
            name: name.to_owned(),
            address: InstanceAddress::Tcp { host: "127.0.0.1".to_owned(), port: 5432 },
            tls: InstanceTls::Off,
            tls_server_name: String::new(),
            tls_ca: None,
            max_backends: 90,
            system_identifier: None,
            region: region.map(str::to_owned),
        };
        let admin = InstanceAdmin { user: "a".to_owned(), password: None, database: "a".to_owned() };
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let host = Host { instance: instance.into(), tags, max_tenants, wal_retention: None, admin: Some(admin) };
        (name.to_owned(), host)
    }

    #[test]
    fn a_tenant_goes_where_it_may_and_there_is_room() {
        let mut hosts = BTreeMap::from([
            host("eu1", Some("eu"), Some(10), &[]),
            host("eu2", Some("eu"), Some(100), &["ssd"]),
            host("us1", Some("us"), None, &["ssd"]),
        ]);
        hosts.get_mut("us1").unwrap().admin.as_mut().unwrap().user = "b".to_owned();
        let taken = |eu1, eu2| BTreeMap::from([("eu1".to_owned(), eu1), ("eu2".to_owned(), eu2)]);
        let eu = Wish { region: Some("eu"), ..Wish::default() };
        assert_eq!(place(&hosts, &taken(2, 5), eu).unwrap(), "eu2");
        assert_eq!(place(&hosts, &taken(2, 30), eu).unwrap(), "eu1");
        // Full ones, and those of other regions, are never taken, even when they are asked for.
        let why = place(&hosts, &taken(10, 100), eu).unwrap_err();
        assert!(why.contains("eu1 is full (max_tenants = 10)") && why.contains("us1 has region \"us\""), "{why}");
        assert!(place(&hosts, &taken(0, 0), Wish { instance: Some("us1"), ..eu }).is_err());
        assert!(place(&hosts, &taken(10, 0), Wish { instance: Some("eu1"), ..Wish::default() }).is_err());
        let ssd = ["ssd".to_owned()];
        assert_eq!(place(&hosts, &taken(0, 50), Wish { tags: &ssd, ..eu }).unwrap(), "eu2");
        assert!(place(&hosts, &taken(0, 0), Wish { instance: Some("eu3"), ..eu }).unwrap_err().contains("eu1, eu2"));
    }
}
