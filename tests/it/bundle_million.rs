//! A million rows from PostgreSQL 15 to 18, plain and encrypted, by the commands as an operator gives them. Takes a minute:
//! `make bundles` runs it, `cargo test` leaves it out.

use std::path::Path;
use std::time::Instant;

use tokio::process::Command;

use crate::harness::ground::{Ground, text};
use crate::harness::postgres::bin_dir_18;
use crate::harness::site::{Site, furnish};

const ROWS: u32 = 1_000_000;

/// Runs a command, and shows it with what it prints and how long it takes.
async fn shown(ground: &Ground, arguments: &[&str]) -> (i32, String) {
    let dir = ground.proxy.files.dir().display().to_string() + "/";
    println!("$ pgtenant {}", arguments.join(" ").replace(&dir, ""));
    let begun = Instant::now();
    let output = ground.run(arguments).await;
    let told = text(&output.stdout) + &text(&output.stderr);
    let status = output.status.code().expect("an exit status");
    println!("{}[status {status}, {:.1} s]\n", told.replace(&dir, ""), begun.elapsed().as_secs_f64());
    (status, told)
}

async fn flipped(path: &Path) -> Vec<u8> {
    let whole = std::fs::read(path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    std::fs::write(path, &flipped).unwrap();
    whole
}

/// The largest file of the bundle's dump.
fn largest(bundle: &str) -> std::path::PathBuf {
    let files = std::fs::read_dir(Path::new(bundle).join("dump")).unwrap().map(|entry| entry.unwrap().path());
    files.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute; run it with make bundles"]
async fn a_million_rows_from_15_to_18() {
    let Some(bin_dir) = bin_dir_18() else { return };
    let site = Site::new(Some(bin_dir), &[]).await;
    let ground = &site.ground;
    furnish(ground, ROWS).await;
    for postgres in [&ground.postgres, &site.two] {
        println!("{}", postgres.sql("postgres", "SELECT version()").await.unwrap()[0][0].as_deref().unwrap());
    }
    let key = site.path("key");
    let keygen = Command::new("age-keygen").args(["-o", &key]).output().await.expect("Debian's package age");
    let public = text(&keygen.stderr).trim().trim_start_matches("Public key: ").to_owned();
    let (plain, sealed) = (site.path("acme.pgt"), site.path("sealed.pgt"));

    let (status, told) = shown(ground, &["export", "acme", "-o", &plain, "--jobs", "2"]).await;
    assert!(status == 0 && told.contains("9 tables, 1000007 rows"), "{told}");
    let import = ["import", &plain, "--as", "acme2", "--instance", "two", "--verify", "full", "--jobs", "2"];
    let whole = flipped(&largest(&plain)).await;
    let (status, told) = shown(ground, &import).await;
    assert!(status == 1 && told.contains("was changed"), "{told}");
    std::fs::write(largest(&plain), whole).unwrap();
    let (status, told) = shown(ground, &import).await;
    assert!(status == 0 && told.contains("verified: 9 tables, 1000007 rows by their checksums"), "{told}");

    let (status, told) = shown(ground, &["export", "acme", "-o", &sealed, "--age-recipient", &public]).await;
    assert!(status == 0 && told.contains("encrypted"), "{told}");
    let import = ["import", &sealed, "--as", "acme3", "--instance", "two", "--age-identity", &key];
    let whole = flipped(&largest(&sealed)).await;
    let (status, told) = shown(ground, &import).await;
    assert!(status == 1 && told.contains("was changed"), "{told}");
    // Somebody who writes the sums anew meets the encryption's own checks.
    let resum = "find . -type f ! -name SHA256SUMS -printf '%P\\n' | sort | xargs -d '\\n' sha256sum > SHA256SUMS";
    assert!(Command::new("sh").args(["-c", resum]).current_dir(&sealed).status().await.unwrap().success());
    let (status, _) = shown(ground, &import).await;
    assert_eq!(status, 1);
    let opened =
        Command::new("age").args(["-d", "-i", &key, "-o", "/dev/null"]).arg(largest(&sealed)).output().await.unwrap();
    println!("$ age -d: {}", text(&opened.stderr));
    assert!(!opened.status.success(), "age finds it as well");
    std::fs::write(largest(&sealed), whole).unwrap();
    assert!(Command::new("sh").args(["-c", resum]).current_dir(&sealed).status().await.unwrap().success());
    let (status, told) = shown(ground, &import).await;
    assert!(status == 0 && told.contains("verified: 9 tables, 1000007 rows by their checksums"), "{told}");
    let sql = "SELECT count(*), md5(string_agg(md5(e::text), '' ORDER BY id)) FROM shop.events e";
    let before = ground.sql("acme", sql).await;
    for tenant in ["acme2", "acme3"] {
        assert_eq!(site.two.sql(tenant, sql).await.unwrap(), before, "{tenant}");
    }
}
