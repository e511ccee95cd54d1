//! Two hundred tenants on two instances, PostgreSQL 15 and 18: made in one go, and migrated through everything that can
//! get in the way. Takes minutes: `make migrations` runs it, `cargo test` leaves it out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::harness::fleet::Fleet;
use crate::harness::postgres::{self, Options, Postgres};

const TENANTS: usize = 200;

async fn instance(bin_dir: Option<PathBuf>) -> Postgres {
    let options = postgres::options();
    let settings = vec![("shared_buffers".to_owned(), "64MB".to_owned())];
    postgres::start_with(Options { bin_dir: bin_dir.or(options.bin_dir.clone()), settings, ..options }).await
}

fn title(text: &str) {
    println!("\n==== {text}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; run it with make migrations"]
async fn two_hundred_tenants_through_everything() {
    let newer = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/postgres18/bin");
    let newer = if newer.join("postgres").exists() { Some(newer) } else { None };
    if newer.is_none() {
        println!("PostgreSQL 18 is not here: both instances have the installed version");
    }
    let instances = vec![instance(None).await, instance(newer).await];
    for postgres in &instances {
        println!("instance: {}", postgres.sql("postgres", "SELECT version()").await.unwrap()[0][0].as_deref().unwrap());
    }
    // Room for the commands beside the proxy's backends: PostgreSQL allows 100 here.
    let changes = [
        ("migrate.dir", "migrations".into()),
        ("instances.one.max_backends", 60.into()),
        ("instances.two.max_backends", 60.into()),
    ];
    let mut fleet = Fleet::on(instances, 0, &changes).await;
    fleet.file("0001_items.up.sql", "CREATE TABLE items (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);");
    fleet.file(
        "0002_filled.sql",
        "-- migrate:up\nINSERT INTO items (name) SELECT 'item ' || n FROM generate_series(1, 100) n;",
    );

    title("tenant apply, with both migrations and a login through the proxy");
    fleet.wanted(TENANTS);
    let (wanted, credentials, proxy) =
        (fleet.path("wanted"), fleet.path("credentials"), fleet.proxy.address().to_string());
    let apply = [
        "tenant",
        "apply",
        "-f",
        wanted.to_str().unwrap(),
        "--credentials-dir",
        credentials.to_str().unwrap(),
        "--proxy",
        &proxy,
    ];
    let begun = Instant::now();
    let made = fleet.done(&apply).await;
    println!("{} ({:.1} s in all)", made.lines().last().unwrap(), begun.elapsed().as_secs_f64());
    assert!(made.contains(&format!("{TENANTS} made, 0 changed, 0 unchanged, 0 failed")), "{made}");
    fleet.proxy.reload().unwrap();

    fleet.file(
        "0003_price.sql",
        "-- +goose Up\nALTER TABLE items ADD price numeric(10, 2);\nUPDATE items SET price = id;\n",
    );
    fleet.file(
        "0004_by_name.sql",
        "-- no-transaction\nCREATE INDEX CONCURRENTLY by_name ON items (name);\nVACUUM ANALYZE items;\n",
    );
    title("migrate plan");
    println!("{}", fleet.done(&["migrate", "plan"]).await);

    title("migrate up: t17 is locked for 3 s, t42's history was edited, instance two is killed halfway");
    fleet.sql("t42", "UPDATE pgtenant.migrations SET checksum = md5(checksum) WHERE version = 2").await;
    fleet.sql("t42", "UPDATE pgtenant.migration_set SET hash = md5(hash)").await;
    let holder = fleet.instance_of("t17").connect("t17").await.unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE items IN ACCESS SHARE MODE").await.unwrap();
    let url = fleet.proxy_url();
    let mut run = fleet.begin(&["migrate", "up", "--bake", "3s", "--proxy-url", &url, "--lock-timeout", "500ms"]);
    let waits = run.until(|told| told["waits"] == 3 && told["tenant"] == "t17").await;
    println!("{waits}");
    holder.batch_execute("COMMIT").await.unwrap();
    run.until(|told| told["state"] == "migrated" && told["tenant"] == "t17").await;
    let mut migrated = run.told.iter().filter(|told| told["state"] == "migrated" && told["instance"] == "two").count();
    while migrated < TENANTS / 4 {
        run.until(|told| told["state"] == "migrated" && told["instance"] == "two").await;
        migrated += 1;
    }
    fleet.instances[1].kill().await;
    println!("instance two killed after {migrated} of its tenants");
    let told = run.end_telling().await;
    for line in told.iter().filter(|told| told.get("baked").is_some() || told.get("number").is_some()) {
        let mut line = line.clone();
        line.as_object_mut().unwrap().remove("tenants");
        println!("{line}");
    }
    println!("{}", told.last().unwrap());
    assert_eq!(told.last().unwrap()["status"], 3, "there is drift");

    title("migrate status, while instance two is down");
    println!("{}", fleet.ends(3, &["migrate", "status"]).await);

    title("instance two is started again: migrate resume");
    fleet.instances[1].restart().await.unwrap();
    println!("{}", fleet.ends(3, &["migrate", "resume", "--bake", "1s", "--proxy-url", &url]).await);

    title("migrate repair, and the rest");
    println!("{}", fleet.done(&["migrate", "repair", "--accept-edited", "--select", "tenant=t42"]).await);
    println!("{}", fleet.done(&["migrate", "resume", "--bake", "0s", "--proxy-url", &url]).await);
    assert_eq!(fleet.versions(&fleet.tenants).await, "1,2,3,4");

    title("migrate verify");
    println!("{}", fleet.done(&["migrate", "verify"]).await);

    title("a second up, with nothing to do");
    let begun = Instant::now();
    let told = fleet.done(&["migrate", "up"]).await;
    println!("{told}{:.2} s from start to end of the program (a build for tests)", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(fleet.roles_left().await, Vec::<String>::new());
    println!("{}", fleet.done(&["audit", "verify"]).await);
}
