//! Tests of loading: the shipped examples, a folder of bad configurations, the layers, secrets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Value, ValueKind};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use super::document::Document;
use super::resolve::load_with;
use super::*;

const VERIFIER: &str = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy";
const INSTANCE: &str = "[instances.pg1]\nhost = \"127.0.0.1\"\n";

fn shipped(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// A folder with these files; secrets are ours alone.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    }
    folder
}

fn pairs<M: FromIterator<(String, String)>>(pairs: &[(&str, &str)]) -> M {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn load_in(folder: &Path, environment: &[(&str, &str)], overrides: &[(&str, &str)]) -> Result<Config, ConfigError> {
    load_with(Some(&folder.join("proxy.toml")), &pairs::<Vec<_>>(overrides), &pairs(environment))
}

fn load_text(proxy: &str) -> Config {
    let folder = folder(&[("proxy.toml", proxy)]);
    let config = load_in(folder.path(), &[], &[]).unwrap_or_else(|error| panic!("{error}"));
    let within = |path: &Path| path.strip_prefix(folder.path()).unwrap().to_owned();
    let lifecycle = Lifecycle {
        tenants_dir: within(&config.lifecycle.tenants_dir),
        instances_dir: within(&config.lifecycle.instances_dir),
        audit_log: within(&config.lifecycle.audit_log),
        journal_dir: within(&config.lifecycle.journal_dir),
        ..config.lifecycle
    };
    let backup = Backup { dir: within(&config.backup.dir), ..config.backup };
    Config { sources: Vec::new(), written: BTreeMap::new(), lifecycle, backup, ..config }
}

fn complaint(folder: &TempDir, environment: &[(&str, &str)], overrides: &[(&str, &str)]) -> String {
    load_in(folder.path(), environment, overrides).unwrap_err().to_string()
}

/// Takes the `#` from every line that shows a key or table.
fn uncommented(text: &str) -> String {
    let shown = |rest: &str| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    text.lines()
        .map(|line| line.strip_prefix('#').filter(|rest| shown(rest)).unwrap_or(line))
        .fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn every_bad_configuration_is_refused_with_its_reasons() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/bad");
    let mut seen = 0;
    for case in std::fs::read_dir(cases).unwrap() {
        let case = case.unwrap().path();
        let error = load_in(&case, &[], &[]).err().unwrap_or_else(|| panic!("{} loads", case.display())).to_string();
        for expected in std::fs::read_to_string(case.join("expected.txt")).unwrap().lines() {
            match expected.strip_prefix('!') {
                Some(absent) => assert!(!error.contains(absent), "{}: {absent:?} in:\n{error}", case.display()),
                None => assert!(error.contains(expected), "{}: no {expected:?} in:\n{error}", case.display()),
            }
        }
        seen += 1;
    }
    assert!(seen >= 20, "{seen}");
}

#[test]
fn shipped_proxy_toml_gives_the_defaults() {
    let defaults = load_text("");
    assert_eq!(load_text(&shipped("proxy.toml")), defaults);
    let without_examples = shipped("proxy.toml")
        .lines()
        .filter(|line| !line.ends_with("# example") && !line.starts_with("#[") && !instance_default(line))
        .fold(String::new(), |text, line| text + line + "\n");
    assert_eq!(load_text(&uncommented(&without_examples)), defaults);
}

/// The two defaults within the commented `[instances.pg1]`, which would end up in the table before it.
fn instance_default(line: &str) -> bool {
    ["#port = 5432", "#max_backends = 90"].contains(&line)
}

#[test]
fn documented_defaults() {
    let config = load_text(INSTANCE);
    assert_eq!(config.listen.addresses, ["127.0.0.1:6432".parse().unwrap()]);
    assert_eq!(config.listen.unix_socket_mode, 0o777);
    assert_eq!(config.tls, Tls { mode: TlsMode::Off, certificates: None, default_certificate: None });
    assert_eq!(config.routing.user_suffix, Some('.'));
    assert_eq!(config.auth.login_timeout, Duration::from_secs(15));
    assert_eq!(config.pool.defaults.max_backends_per_role, 20);
    assert_eq!(config.pool.retry, Duration::from_millis(100));
    assert_eq!(config.limits.max_message, (1 << 30) - 1);
    assert_eq!(config.http.address, Some("127.0.0.1:9930".parse().unwrap()));
    let instance = &config.instances["pg1"];
    assert_eq!(instance.address, InstanceAddress::Tcp { host: "127.0.0.1".to_owned(), port: 5432 });
    assert_eq!((instance.tls, instance.max_backends), (InstanceTls::Off, 90));
}

/// Everything that the examples refer to.
const SURROUNDINGS: &[(&str, &str)] = &[
    ("run/.keep", ""),
    ("certs/wildcard.crt", ""),
    ("pg1-ca.crt", ""),
    ("ops.verifier", VERIFIER),
    ("pg1-admin.password", "administer\n"),
    ("http.token", "0123456789abcdef0123456789abcdef"),
    ("operators-ca.crt", ""),
    ("collector-ca.crt", ""),
    ("collector.token", "0123456789abcdef0123456789abcdef"),
    ("tenants.d/acme-clients.crt", ""),
    ("tenants.d/acme-app.verifier", "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy\n"),
    ("tenants.d/acme-app.previous", "SCRAM-SHA-256$4096:c2FsdA==$c2VydmVy:c2VydmVy\n"),
    ("tenants.d/acme-app.present", "now\n"),
    ("tenants.d/acme-query.password", "ask\n"),
    ("tenants.d/acme-service.password", "serve\n"),
];

#[test]
fn shipped_tenant_example_loads_as_it_is_and_with_every_key() {
    let example = shipped("docs/tenant.example.toml");
    for (proxy, record) in
        [(INSTANCE.to_owned(), example.clone()), (uncommented(&shipped("proxy.toml")), uncommented(&example))]
    {
        let folder = folder(&[SURROUNDINGS, &[("proxy.toml", &proxy), ("tenants.d/acme.toml", &record)]].concat());
        let config =
            load_in(folder.path(), &[("ACME_BATCH_PASSWORD", "toil"), ("EXPORTER_PASSWORD", "look")], &[]).unwrap();
        let tenant = &config.tenants["acme"];
        assert_eq!(tenant.database, "acme");
        assert_eq!(tenant.roles["app"].verifier, Some(Secret::new(VERIFIER)));
        if record != example {
            assert_eq!(tenant.databases, Databases::Named(vec!["acme_archive".to_owned()]));
            assert_eq!(tenant.roles["batch"].password, Some(Secret::new("toil")));
            assert_eq!(tenant.service.as_ref().unwrap().password, Some(Secret::new("serve")));
            assert_eq!(tenant.auth_query.as_ref().unwrap().query, file::AuthQuery::default().query);
            assert_eq!(tenant.pool.max_backends_per_role, 10);
            assert_eq!((tenant.tier.as_deref(), tenant.quota.max_clients), (Some("gold"), Some(200)));
            assert_eq!(config.instances["pg1"].system_identifier, Some(7412345678901234567));
            assert_eq!(config.instances["pg1"].tls, InstanceTls::VerifyFull);
            assert_eq!(config.routing.databases["shop"], "initech");
            assert_eq!(config.admin.roles["ops"].access, Access::Admin);
            assert_eq!(config.admin.roles["exporter"].password, Some(Secret::new("look")));
        }
        assert!(config.sources.contains(&folder.path().join("tenants.d")));
        assert!(config.sources.contains(&folder.path().join("tenants.d/acme-app.verifier")));
    }
}

/// Keys of every table in the document, and those that its type knows there; names of roles and the like as `*`.
fn keys<T: DeserializeOwned + Default>(text: &str) -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let document = Document::parse(Path::new("example.toml"), text).unwrap();
    let mut found: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
    for path in tables(&document.values) {
        let mut tree = document.values.clone();
        let table = path.iter().fold(&mut tree, |value, key| match &mut value.kind {
            ValueKind::Table(table) => table.get_mut(key).unwrap(),
            _ => unreachable!(),
        });
        let ValueKind::Table(table) = &mut table.kind else { unreachable!() };
        let present: Vec<String> = table.keys().cloned().collect();
        table.insert("no_such_key".to_owned(), Value::new(None, true));
        let (_, misfits) = read::fit::<T>(tree);
        let known = misfits.iter().find_map(|misfit| match misfit.reason {
            read::Reason::UnknownKey { known } if misfit.keys().next_back() == Some("no_such_key") => Some(known),
            _ => None,
        });
        // Maps with names of the reader's choice know no keys; a reference to a secret has either of two.
        let Some(known) = known.filter(|known| known != &["file", "env"]) else {
            continue;
        };
        let named = |at: usize| {
            at > 0 && ["roles", "instances", "tenants", "tier", "provisioner"].contains(&path[at - 1].as_str())
        };
        let name: Vec<&str> = (0..path.len()).map(|at| if named(at) { "*" } else { path[at].as_str() }).collect();
        let entry = found.entry(name.join(".")).or_default();
        entry.0.extend(present);
        entry.1.extend(known.iter().map(|key| (*key).to_owned()));
    }
    found
}

fn tables(value: &Value) -> Vec<Vec<String>> {
    let ValueKind::Table(table) = &value.kind else {
        return Vec::new();
    };
    let below = table
        .iter()
        .flat_map(|(key, value)| tables(value).into_iter().map(move |path| [vec![key.clone()], path].concat()));
    std::iter::once(Vec::new()).chain(below).collect()
}

#[test]
fn shipped_examples_show_exactly_the_known_keys() {
    let proxy = keys::<file::File>(&uncommented(&shipped("proxy.toml")));
    // A tenant's keys are in the other example.
    let (tenants, proxy): (Vec<_>, Vec<_>) = proxy.into_iter().partition(|(table, _)| table.starts_with("tenants."));
    assert!(!tenants.is_empty());
    assert!(proxy.len() >= 11, "{proxy:?}");
    for (table, (shown, known)) in proxy {
        // A tier's tables have the keys of [quota], and those of a tenant's [pool].
        match table.starts_with("tier.*.") {
            true => assert!(!shown.is_empty() && shown.is_subset(&known), "[{table}] of proxy.toml"),
            false => assert_eq!(shown, known, "[{table}] of proxy.toml"),
        }
    }
    let tenant = keys::<file::Tenant>(&uncommented(&shipped("docs/tenant.example.toml")));
    assert_eq!(tenant.keys().collect::<Vec<_>>(), ["", "auth_query", "backup", "pool", "quota", "roles.*", "service"]);
    for (table, (shown, known)) in tenant {
        assert_eq!(shown, known, "[{table}] of docs/tenant.example.toml");
    }
}

#[test]
fn later_layers_win() {
    let folder = folder(&[("proxy.toml", &format!("[pool]\nmode = \"session\"\nmax_backends = 3\n{INSTANCE}"))]);
    let environment = [
        ("PGTENANT__POOL__MAX_BACKENDS", "4"),
        ("PGTENANT__POOL__QUEUE_TIMEOUT", "7s"),
        ("PGTENANT__AUTH__CLEARTEXT", "true"),
        ("PGTENANT__INSTANCES__PG1__PORT", "5433"),
        ("PGTENANT__ROUTING__SNI_DOMAINS", "a.example, B.example"),
        ("PGTENANT__ROUTING__USER_SUFFIX", "false"),
        ("PGTENANT_LOG", "none of ours"),
    ];
    let overrides = [
        ("pool.max_backends", "5"),
        ("listen.addresses", "127.0.0.1:0,[::1]:0"),
        ("http.address", "off"),
        ("limits.max_message", "64KiB"),
        ("instances.pg1.region", "1"),
    ];
    let config = load_in(folder.path(), &environment, &overrides).unwrap();
    assert_eq!(config.pool.defaults.mode, PoolMode::Session);
    assert_eq!(config.pool.defaults.max_backends, 5);
    assert_eq!(config.pool.defaults.queue_timeout, Duration::from_secs(7));
    assert!(config.auth.cleartext);
    assert_eq!(config.instances["pg1"].address, InstanceAddress::Tcp { host: "127.0.0.1".to_owned(), port: 5433 });
    assert_eq!(config.instances["pg1"].region.as_deref(), Some("1"));
    assert_eq!(config.routing.sni_domains, ["a.example", "b.example"]);
    assert_eq!(config.routing.user_suffix, None);
    assert_eq!(config.listen.addresses.len(), 2);
    assert_eq!(config.http.address, None);
    assert_eq!(config.limits.max_message, 65536);
}

#[test]
fn layers_name_themselves_in_errors() {
    let folder = folder(&[("proxy.toml", INSTANCE)]);
    let environment = [("PGTENANT__POOL__MOD", "session"), ("PGTENANT__LOG__FORMAT", "xml"), ("PGTENANT__X[0]", "1")];
    let overrides = [("auth.login_timeot", "1s"), ("pool.max_backends", "0"), ("pool..mode", "x")];
    let error = complaint(&folder, &environment, &overrides);
    for expected in [
        "PGTENANT__POOL__MOD: pool.mod: unknown key; did you mean pool.mode?",
        "PGTENANT__LOG__FORMAT: log.format: unknown value \"xml\"; use text or json",
        "PGTENANT__X[0]: x[0]: not a key",
        "--set: auth.login_timeot: unknown key; did you mean auth.login_timeout?",
        "--set: pool.max_backends: at least 1",
        "--set: pool..mode: not a key",
    ] {
        assert!(error.contains(expected), "no {expected:?} in:\n{error}");
    }
}

#[test]
fn no_layer_above_the_files_makes_a_tenant_or_an_instance() {
    let record = format!("instance = \"pg1\"\n[roles.app]\nverifier = \"{VERIFIER}\"\n");
    let folder = folder(&[("proxy.toml", INSTANCE), ("tenants.d/acme.toml", &record)]);
    let environment = [
        ("PGTENANT__TENANTS__GLOBEX__INSTANCE", "pg1"),
        ("PGTENANT__TENANTS", "x"),
        ("PGTENANT__INSTANCES__PG2__HOST", "127.0.0.1"),
    ];
    let error = complaint(&folder, &environment, &[("tenants.acme.database", "x"), ("instances.pg3.host", "x")]);
    for expected in [
        "PGTENANT__TENANTS__GLOBEX__INSTANCE: tenants.globex.instance: tenants are set in their files only",
        "PGTENANT__TENANTS: tenants: tenants are set in their files only",
        "PGTENANT__INSTANCES__PG2__HOST: instances.pg2.host: no instance \"pg2\"; did you mean \"pg1\"?",
        "--set: tenants.acme.database: tenants are set in their files only",
        "--set: instances.pg3.host: no instance \"pg3\"",
    ] {
        assert!(error.contains(expected), "no {expected:?} in:\n{error}");
    }
    assert_eq!(error.lines().count(), 5, "{error}");
}

#[test]
fn tls_mode_without_a_setting() {
    let certificates: &[(&str, &str)] = &[("proxy.toml", ""), ("certs/default.crt", "")];
    let folder = folder(certificates);
    let config = load_in(folder.path(), &[], &[]).unwrap();
    assert_eq!((config.tls.mode, config.tls.certificates), (TlsMode::Preferred, Some(folder.path().join("certs"))));
    let open = [("listen.addresses", "127.0.0.1:0,0.0.0.0:0")];
    assert_eq!(load_in(folder.path(), &[], &open).unwrap().tls.mode, TlsMode::Required);
    let off = [open[0], ("tls.mode", "off")];
    assert_eq!(load_in(folder.path(), &[], &off).unwrap().tls.mode, TlsMode::Off);
}

#[test]
fn inherited_pool_bounds_give_way() {
    let proxy = format!("[pool]\nmax_backends_per_role = 10\nmin_backends = 8\n{INSTANCE}");
    let record = "instance = \"pg1\"\nauth_query = { user = \"q\" }\n[pool]\nmax_backends = 5\n";
    let folder = folder(&[("proxy.toml", &proxy), ("tenants.d/acme.toml", record)]);
    let pool = load_in(folder.path(), &[], &[]).unwrap().tenants["acme"].pool.clone();
    assert_eq!((pool.max_backends, pool.max_backends_per_role, pool.min_backends), (5, 5, 5));
}

#[test]
fn inline_tenant_is_as_good_as_a_file() {
    let config = load_text(&format!(
        "{INSTANCE}[tenants.acme]\ninstance = \"pg1\"\nallow = [\"10.0.0.0/8\", \"::1\"]\n\
         [tenants.acme.roles.\"web.app\"]\nverifier = \"{VERIFIER}\"\nvalid_until = 2031-01-31T00:00:00Z\n"
    ));
    let tenant = &config.tenants["acme"];
    assert_eq!(tenant.allow, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse::<IpNet>().unwrap()]);
    assert!(tenant.roles["web.app"].valid_until.is_some());
    assert_eq!(tenant.database, "acme");
}

#[test]
fn secret_files_of_everybody_are_refused() {
    let record = "instance = \"pg1\"\n[roles.app]\npassword = { file = \"app.password\" }\n";
    let files = [("proxy.toml", INSTANCE), ("tenants.d/acme.toml", record), ("tenants.d/app.password", "pa ss\r\n")];
    let folder = folder(&files);
    let config = load_in(folder.path(), &[], &[]).unwrap();
    assert_eq!(config.tenants["acme"].roles["app"].password.as_ref().unwrap().expose(), "pa ss");
    assert!(!format!("{config:?}").contains("pa ss"));

    let path = folder.path().join("tenants.d/app.password");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let error = complaint(&folder, &[], &[]);
    assert!(error.contains("roles.app.password:") && error.contains("run: chmod 600"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    std::fs::write(&path, "\n").unwrap();
    assert!(complaint(&folder, &[], &[]).contains("is empty"));
}

#[test]
fn secrets_compare_by_text() {
    assert_eq!(Secret::new("a"), Secret::new("a"));
    assert_ne!(Secret::new("a"), Secret::new("b"));
    assert_ne!(Secret::new("a"), Secret::new("ab"));
    assert_eq!(format!("{:?}", Secret::new("a")), "[secret]");
}

#[test]
fn missing_file_is_named() {
    let error = load_with(Some(Path::new("/nonexistent/proxy.toml")), &[], &HashMap::new()).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/proxy.toml: not found; write it, or name another file"), "{error}");
}

#[test]
fn durations_and_sizes() {
    use super::scalar::{Period, Scalar, Size};
    let millis = |text: &str| Period::parse(text).map(|period| period.0.as_millis());
    assert_eq!(
        ["100ms", "15s", "10min", "1h", "2d"].map(|text| millis(text).unwrap()),
        [100, 15_000, 600_000, 3_600_000, 172_800_000]
    );
    for bad in ["", "s", "15", "-1s", "1.5s", "1m", "99999999999999999999s", "9999999d"] {
        assert!(millis(bad).is_err(), "{bad}");
    }
    assert_eq!(["7", "64KiB", "1MiB", "1 GiB"].map(|text| Size::parse(text).unwrap().0), [7, 65536, 1 << 20, 1 << 30]);
    assert!(["1KB", "KiB", "", "99999999999GiB", "é"].iter().all(|text| Size::parse(text).is_err()));
}

#[test]
fn sources_are_what_was_read() {
    let folder = folder(&[("proxy.toml", ""), ("certs/default.crt", "")]);
    let sources = load_in(folder.path(), &[], &[]).unwrap().sources;
    // The folders of instances and tenants as well, though they are not there: they may come.
    let expected: Vec<PathBuf> =
        ["certs", "instances.d", "proxy.toml", "tenants.d"].iter().map(|name| folder.path().join(name)).collect();
    assert_eq!(sources, expected);
}
