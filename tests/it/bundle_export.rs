//! Bundles as files: encrypted so that age reads them, never where the tenant may not be, nothing left by a kill.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use crate::harness::ground::text;
use crate::harness::site::{Site, furnish};

/// Debian's package age has both. Without them the test is left out, unless `PGT_NO_SKIP` says that none may be.
async fn age_is_here() -> bool {
    let found = Command::new("age").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    if found.is_ok() {
        return true;
    }
    assert!(std::env::var_os("PGT_NO_SKIP").is_none(), "age does not run: install Debian's package age");
    eprintln!("SKIPPED: there is no age (Debian: age)");
    false
}

/// A pair of keys: the private one's file, and the public one.
async fn key(path: &str) -> String {
    let output = Command::new("age-keygen").args(["-o", path]).output().await.unwrap();
    let said = text(&output.stderr);
    said.trim().strip_prefix("Public key: ").unwrap_or_else(|| panic!("{said}")).to_owned()
}

#[tokio::test]
async fn bundles_are_encrypted_so_that_age_reads_them_and_the_other_way_round() {
    if !age_is_here().await {
        return;
    }
    let site = Site::new(None, &[("backup.scratch_dir", "scratch".into())]).await;
    std::fs::create_dir(site.path("scratch")).unwrap();
    let ground = &site.ground;
    furnish(ground, 100).await;
    let (mine, theirs, other) = (site.path("mine"), site.path("theirs"), site.path("other"));
    let (public, of_theirs) = (key(&mine).await, key(&theirs).await);
    key(&other).await;
    let recipients = site.path("recipients");
    std::fs::write(&recipients, format!("# the other site\n{of_theirs}\n")).unwrap();
    let bundle = site.path("acme.pgt");
    let export = ["export", "acme", "-o", &bundle, "--age-recipient", &public, "--age-recipients-file", &recipients];
    assert!(ground.done(&export).await.contains(", encrypted"));
    let plain = site.path("plain.pgt");
    ground.done(&["export", "acme", "-o", &plain]).await;
    let sealed = Path::new(&bundle).join("dump/toc.dat.age");
    assert!(!text(&std::fs::read(&sealed).unwrap()).contains("customers"));
    // Each recipient opens it with the program.
    for identity in [&mine, &theirs] {
        let opened = Command::new("age").args(["-d", "-i", identity]).arg(&sealed).output().await.unwrap();
        assert!(opened.status.success() && opened.stdout.starts_with(b"PGDMP"), "{}", text(&opened.stderr));
    }
    let import = ["import", &bundle, "--as", "acme2", "--instance", "two", "--age-identity"];
    let (status, why) = ground.refused(&import[..6]).await;
    assert!(status == 2 && why.contains("is encrypted: give the file with the key"), "{why}");
    let (status, why) = ground.refused(&[&import[..], &[&other]].concat()).await;
    assert!(status == 1 && why.contains("encrypted for other keys"), "{why}");
    ground.done(&[&import[..], &[&theirs]].concat()).await;

    // What the program has encrypted is imported here.
    let by_hand = "for f in manifest.json dump/*; do age -r \"$0\" -o \"$f.age\" \"$f\" && rm \"$f\"; done;
        sha256sum manifest.json.age dump/* > SHA256SUMS";
    let status = Command::new("sh").args(["-c", by_hand, &public]).current_dir(&plain).status().await.unwrap();
    assert!(status.success());
    ground.done(&["import", &plain, "--as", "acme3", "--instance", "two", "--age-identity", &mine]).await;
    let left: Vec<_> = std::fs::read_dir(site.path("scratch")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_export_that_is_killed_or_fails_leaves_no_bundle() {
    let site = Site::new(None, &[]).await;
    let ground = &site.ground;
    furnish(ground, 100).await;
    let bundle = site.path("bundles/acme.pgt");
    let export = ["export", "acme", "-o", &bundle];
    let partial = Path::new(&bundle).with_file_name(".acme.pgt.partial");
    for point in ["folder", "dump", "sums"] {
        let (status, _) = ground.struck(&format!("export:{point}"), &export).await;
        assert!(status.is_none() && !Path::new(&bundle).exists() && partial.exists(), "{point}");
        let (status, why) = ground.struck(&format!("export:{point}:fail"), &export).await;
        assert!(status == Some(1) && !Path::new(&bundle).exists() && !partial.exists(), "{point}: {why}");
    }
    let (status, _) = ground.struck("export:renamed", &export).await;
    assert!(status.is_none() && Path::new(&bundle).exists() && !partial.exists());
    let (status, why) = ground.refused(&["import", &bundle, "--as", "acme2", "--instance", "two", "--dry-run"]).await;
    assert_eq!(status, 0, "{why}");
    // Nobody else reads it.
    for path in [
        bundle.clone(),
        format!("{bundle}/dump"),
        format!("{bundle}/manifest.json"),
        format!("{bundle}/SHA256SUMS"),
        format!("{bundle}/dump/toc.dat"),
    ] {
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o077, 0, "{path}");
    }
    // Nothing secret is in it, and nothing that only means something here.
    let manifest = std::fs::read_to_string(format!("{bundle}/manifest.json")).unwrap();
    assert!(!manifest.contains("SCRAM") && manifest.contains("max_clients"), "{manifest}");
    // The usual program finds it whole.
    let checked =
        Command::new("sha256sum").args(["--check", "--quiet", "SHA256SUMS"]).current_dir(&bundle).status().await;
    assert!(checked.unwrap().success());
    // And pg_restore reads the dump as it is.
    let listed =
        Command::new(ground.postgres.bin_dir().join("pg_restore")).arg("-l").arg(format!("{bundle}/dump")).output();
    assert!(listed.await.unwrap().status.success());
}

#[tokio::test]
async fn a_pinned_tenant_is_exported_and_imported_in_its_region_only() {
    let site = Site::new(
        None,
        &[
            ("instances.three.host", "127.0.0.1".into()),
            ("instances.three.region", "us".into()),
            ("instances.three.admin.user", "keeper".into()),
        ],
    )
    .await;
    let ground = &site.ground;
    ground.done(&["tenant", "create", "acme", "--region", "eu"]).await;
    let bundle = site.path("acme.pgt");
    let export = ["export", "acme", "-o", &bundle];
    let (status, why) = ground.refused(&export).await;
    assert!(status == 2 && why.contains("write [backup] region = \"eu\""), "{why}");
    let (status, why) = ground.refused(&[&export[..], &["--region", "us"]].concat()).await;
    assert!(status == 2 && why.contains("stays in eu, and what is written here is in us"), "{why}");
    let (status, _) = ground.refused(&[&export[..], &["--region", "us", "--dry-run"]].concat()).await;
    assert_eq!(status, 2);
    ground.done(&[&export[..], &["--region", "eu"]].concat()).await;
    let import = ["import", &bundle, "--as", "acme2"];
    let (status, why) = ground.refused(&[&import[..], &["--region", "us"]].concat()).await;
    assert!(status == 2 && why.contains("stays in eu, not in us"), "{why}");
    let (status, why) = ground.refused(&[&import[..], &["--instance", "three"]].concat()).await;
    assert!(status == 2 && why.contains("instance three has region \"us\", not \"eu\""), "{why}");
    ground.done(&import).await;
    assert!(std::fs::read_to_string(site.path("tenants.d/acme2.toml")).unwrap().contains("region = \"eu\""));
}
