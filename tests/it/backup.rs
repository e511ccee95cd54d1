//! Backups: made when they are due, proven by restoring them, removed by number and age, gone with their tenant.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::ground::{Ground, password, text};
use crate::harness::postgres::bin_dir_18;
use crate::harness::proxy::http_get;
use crate::harness::site::{Site, furnish};

fn backups(ground: &Ground, tenant: &str) -> Vec<PathBuf> {
    let dir = ground.proxy.files.dir().join("backups").join(tenant);
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().map(|it| it.unwrap().path()).collect();
    found.sort();
    found
}

/// Ages a tenant's newest backup, in its name and in what is known of it, by so many days.
fn age(ground: &Ground, tenant: &str, days: i64) {
    let dir = ground.proxy.files.dir().join("backups");
    let path = backups(ground, tenant).pop().unwrap();
    let moment = time::OffsetDateTime::now_utc() - time::Duration::days(days);
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    let name = format!("{}.pgt", moment.format(format).unwrap());
    std::fs::rename(&path, path.with_file_name(&name)).unwrap();
    let state = dir.join("state.json");
    let mut known: Value = serde_json::from_str(&std::fs::read_to_string(&state).unwrap()).unwrap();
    let known_here = &mut known[tenant];
    known_here["made"] = moment.unix_timestamp().into();
    known_here["first"] = moment.unix_timestamp().into();
    if known_here["proven"].is_number() {
        known_here["proven"] = moment.unix_timestamp().into();
        known_here["proven_backup"] = name.trim_end_matches(".pgt").into();
    }
    std::fs::write(&state, known.to_string()).unwrap();
}

#[tokio::test]
async fn backups_are_made_when_they_are_due_and_pruned_when_they_are_old() {
    let ground = Ground::with_admin("SUPERUSER", &[("backup.every", "24h".into()), ("backup.keep", 2.into())]).await;
    for tenant in ["acme", "globex"] {
        ground.done(&["tenant", "create", tenant]).await;
    }
    ground.done(&["tenant", "create", "initech", "--set-key", "backup.every=none"]).await;
    let due = ["backup", "run", "--due"];
    crate::eventually!(ground.proxy.metric("pgtenant_backup_overdue_tenants").await == 2.0);
    let planned = ground.done(&["backup", "run", "--due", "--dry-run"]).await;
    assert!(planned.contains("would back up tenant acme") && !planned.contains("initech"), "{planned}");
    assert!(ground.done(&[&due[..], &["--parallel", "2"]].concat()).await.contains("2 backed up, 0 failed"));
    assert!(ground.done(&due).await.contains("0 backed up, 0 failed"));
    assert_eq!(ground.proxy.metric("pgtenant_backup_overdue_tenants").await, 0.0);
    assert_eq!(ground.proxy.metric("pgtenant_backup_tenants").await, 2.0);
    let (status, why) = ground.refused(&["backup", "run"]).await;
    assert!(status == 2 && why.contains("--select, or --due"), "{why}");
    let (status, why) = ground.refused(&["backup", "run", "nobody"]).await;
    assert!(status == 2 && why.contains("no tenant \"nobody\""), "{why}");

    age(&ground, "acme", 3);
    assert_eq!(ground.proxy.metric("pgtenant_backup_overdue_tenants").await, 1.0);
    assert!(ground.proxy.metric("pgtenant_backup_oldest_proof_seconds").await >= 3.0 * 86_400.0);
    // Those of one day are a backup each; the oldest is the proven one.
    ground.done(&["backup", "verify", "acme"]).await;
    age(&ground, "acme", 3);
    for days in [2, 1, 0] {
        ground.done(&["backup", "run", "acme"]).await;
        age_unless(&ground, days);
    }
    let printed = ground.done(&["backup", "prune", "--dry-run"]).await;
    let gone: Vec<&str> = printed.lines().collect();
    assert!(gone.len() == 1 && gone[0].starts_with("would remove acme/"), "{printed}");
    assert_eq!(backups(&ground, "acme").len(), 4);
    assert!(ground.done(&["backup", "prune"]).await.contains("1 removed, 0 tenants failed"));
    assert_eq!(backups(&ground, "acme").len(), 3);
    let listed = ground.done(&["backup", "list", "acme", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let proven: Vec<bool> = listed["backups"].as_array().unwrap().iter().map(|it| it["proven"].is_string()).collect();
    assert_eq!(proven, [true, false, false]);
    assert!(ground.done(&["audit", "verify"]).await.starts_with("ok"));
}

/// Makes the newest backup as old, with what is known of the proven one left alone.
fn age_unless(ground: &Ground, days: i64) {
    if days > 0 {
        let state = ground.proxy.files.dir().join("backups/state.json");
        let before: Value = serde_json::from_str(&std::fs::read_to_string(&state).unwrap()).unwrap();
        age(ground, "acme", days);
        std::fs::write(&state, before.to_string()).unwrap();
    }
}

#[tokio::test]
async fn a_backup_is_proven_by_restoring_it_and_a_damaged_one_is_not() {
    let bin_dir = bin_dir_18();
    let site = Site::new(bin_dir, &[("backup.every", "24h".into()), ("backup.verify_instance", "two".into())]).await;
    let ground = &site.ground;
    furnish(ground, 200).await;
    ground.done(&["backup", "run", "acme"]).await;
    assert_eq!(ground.proxy.metric("pgtenant_backup_unproven_tenants").await, 1.0);
    let printed = ground.done(&["backup", "verify", "--least-proven", "5"]).await;
    assert!(printed.contains("is proven: 9 tables, 207 rows, 3 large objects"), "{printed}");
    assert_eq!(ground.proxy.metric("pgtenant_backup_unproven_tenants").await, 0.0);
    assert!(ground.proxy.metric("pgtenant_backup_oldest_proof_seconds").await < 60.0);

    // Killed halfway: the scratch database goes with the next run.
    let scratch = "SELECT datname FROM pg_database WHERE datname ~ '~'";
    for point in ["database", "restored"] {
        let (status, why) = ground.struck(&format!("backup-verify:{point}"), &["backup", "verify", "acme"]).await;
        assert_eq!(status, None, "{why}");
        assert_eq!(site.two.sql("postgres", scratch).await.unwrap().len(), 1);
        ground.done(&["backup", "verify", "acme"]).await;
        assert!(site.two.sql("postgres", scratch).await.unwrap().is_empty());
    }
    // One of the tenant's own instance needs the roles neither.
    ground.done(&["backup", "verify", "acme", "--instance", "one"]).await;

    let toc = backups(ground, "acme").remove(0).join("dump/toc.dat");
    let mut bytes = std::fs::read(&toc).unwrap();
    bytes[100] ^= 4;
    std::fs::write(&toc, bytes).unwrap();
    let state = site.path("backups/state.json");
    let before = std::fs::read_to_string(&state).unwrap();
    let (status, why) = ground.refused(&["backup", "verify", "acme"]).await;
    assert!(status == 1 && why.contains("file dump/toc.dat was changed"), "{why}");
    assert_eq!(std::fs::read_to_string(&state).unwrap(), before);
    let (status, why) = ground.refused(&["restore", "acme", "--to-new", "acme-restored"]).await;
    assert!(status == 1 && why.contains("file dump/toc.dat was changed"), "{why}");
    assert!(site.two.sql("postgres", scratch).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_encrypted_backup_is_restored_to_a_new_tenant_and_erased_with_its_key() {
    let ground = Ground::with_admin("SUPERUSER", &[("instances.one.wal_retention", "35d".into())]).await;
    let dir = ground.proxy.files.dir().to_owned();
    let (key, public) = keys(&dir.join("tenants.d/acme.age-key"));
    let credentials = dir.join("acme.credentials");
    let set = |key: &str, value: String| ["--set-key".to_owned(), format!("{key}={value}")];
    let recipients = set("backup.age_recipients", format!("[\"{public}\"]"));
    let identity = set("backup.age_identity", "acme.age-key".to_owned());
    let create = ["tenant", "create", "acme", "--credentials", credentials.to_str().unwrap()];
    let own: Vec<&str> = recipients.iter().chain(&identity).map(String::as_str).collect();
    ground.done(&[&create[..], &own].concat()).await;
    ground.done(&["tenant", "create", "globex"]).await;
    ground.sql("acme", "CREATE TABLE t (secret text); INSERT INTO t VALUES ('sesame-4711')").await;
    ground.done(&["tenant", "rotate-credentials", "acme"]).await;
    let printed = ground.done(&["backup", "run", "acme", "--json"]).await;
    assert!(printed.contains("\"encrypted\":true"), "{printed}");
    let printed = ground.done(&["restore", "acme", "--to-new", "acme-restored", "--json"]).await;
    let mut app = ground.log_in("acme-restored", "acme-restored_app", &password(&printed, "acme-restored_app")).await;
    app.query("CREATE TABLE public.mine (a int)").await.unwrap();
    drop(app);
    assert_eq!(ground.sql("acme-restored", "SELECT secret FROM t").await[0][0].as_deref(), Some("sesame-4711"));
    let receipt = dir.join("r.json");
    let erase = |tenant| ["tenant", "erase", tenant, "--confirm", tenant, "--receipt", receipt.to_str().unwrap()];
    ground.done(&erase("acme-restored")).await;

    // A bundle elsewhere, one that was moved away, and what a killed proof has left.
    let (there, moved) = (dir.join("bundles/acme.pgt"), dir.join("bundles/moved.pgt"));
    for bundle in [&there, &moved] {
        ground.done(&["export", "acme", "-o", bundle.to_str().unwrap()]).await;
    }
    std::fs::rename(&moved, dir.join("out-of-sight")).unwrap();
    let (status, _) = ground.struck("backup-verify:restored", &["backup", "verify", "acme"]).await;
    assert_eq!(status, None);
    let present = dir.join("tenants.d/acme.acme_app.present");
    assert!(present.exists() && key.exists());
    let planned = ground.done(&["tenant", "erase", "acme", "--dry-run"]).await;
    assert!(planned.contains("acme.age-key") && planned.contains("backups      1 in"), "{planned}");

    // Killed once on the way.
    let (status, _) = ground.struck("erase:copies", &erase("acme")).await;
    assert_eq!(status, None);
    ground.done(&erase("acme")).await;
    for path in [&key, &present, &credentials, &there, &dir.join("backups/acme"), &dir.join("lifecycle.d/acme.copies")]
    {
        assert!(!path.exists(), "{}", path.display());
    }
    let told: Value = serde_json::from_str(&std::fs::read_to_string(&receipt).unwrap()).unwrap();
    let whats = |list: &str| -> Vec<String> {
        told[list].as_array().unwrap().iter().map(|it| it["what"].as_str().unwrap().to_owned()).collect()
    };
    let removed = whats("removed");
    assert_eq!(removed[..6], ["record", "database", "role", "role", "role", "credentials file"]);
    assert_eq!(removed[6..], ["secret file", "secret file", "key of age", "bundle", "backup"]);
    let remains = whats("remains").join("; ");
    assert!(remains.contains("moved.pgt") && remains.contains("copies of bundles and backups"), "{remains}");
    let copies = told["remains"].as_array().unwrap().iter().find(|it| it["what"] == "copies of bundles and backups");
    assert!(copies.unwrap()["note"].as_str().unwrap().contains("can no longer be opened"));
    nothing_remembers(&ground, &dir, &receipt).await;
}

/// Looks for the erased tenant wherever it was: instance, folders, metrics, logs.
async fn nothing_remembers(ground: &Ground, dir: &Path, receipt: &Path) {
    assert_eq!(ground.left().await, ["globex", "globex_app", "globex_owner", "globex_ro"]);
    for catalogue in [
        "SELECT count(*) FROM pg_shdescription WHERE description ~ 'acme'",
        "SELECT count(*) FROM pg_db_role_setting WHERE setdatabase <> 0 AND setdatabase NOT IN (SELECT oid FROM pg_database)",
        "SELECT count(*) FROM pg_shdepend WHERE dbid <> 0 AND dbid NOT IN (SELECT oid FROM pg_database)",
        "SELECT count(*) FROM pg_stat_activity WHERE datname ~ 'acme' OR usename ~ 'acme'",
    ] {
        assert_eq!(ground.sql("postgres", catalogue).await[0][0].as_deref(), Some("0"), "{catalogue}");
    }
    crate::eventually!(!http_get(ground.proxy.http_address(), "/metrics").await.1.contains("tenant=\"acme\""));
    assert!(!http_get(ground.proxy.http_address(), "/metrics/tenant/acme").await.1.contains("tenant=\"acme\""));
    // The audit log and the receipt say that it was there; nothing has its data or its passwords.
    let found = tokio::process::Command::new("grep").args(["-rlia", "acme"]).arg(dir).output().await.unwrap();
    let found = text(&found.stdout);
    let mut found: Vec<&str> = found.lines().filter(|path| !path.contains("/out-of-sight/")).collect();
    found.sort_unstable();
    let audit = dir.join("audit.jsonl");
    assert_eq!(found, [audit.to_str().unwrap(), receipt.to_str().unwrap()]);
    for secret in ["sesame-4711", "SCRAM-SHA-256$", "AGE-SECRET-KEY"] {
        let mut grep = tokio::process::Command::new("grep");
        grep.args(["-rla", "-e", secret]).arg(&audit).arg(receipt).arg(dir.join("lifecycle.d"));
        assert_eq!(text(&grep.output().await.unwrap().stdout), "", "{secret}");
        assert!(!ground.postgres.log().contains(secret), "{secret}");
    }
}

/// A pair of age's keys: the private one's file, mode 0600, and the public one.
fn keys(path: &Path) -> (PathBuf, String) {
    let key = age::x25519::Identity::generate();
    let text = age::secrecy::ExposeSecret::expose_secret(&key.to_string()).to_owned();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    (path.to_owned(), key.to_public().to_string())
}
