//! Tenants erased by command: nothing is left, and the receipt says what was.

use serde_json::Value;

use crate::harness::ground::{Ground, password};

#[tokio::test]
async fn an_erased_tenant_leaves_a_receipt_and_nothing_else() {
    let ground = Ground::with_admin("SUPERUSER", &[("instances.one.wal_retention", "35d".into())]).await;
    let file = ground.proxy.files.dir().join("acme.credentials");
    ground.done(&["tenant", "create", "acme", "--credentials", file.to_str().unwrap()]).await;
    ground.done(&["tenant", "create", "globex"]).await;
    let text = std::fs::read_to_string(&file).unwrap();
    let credentials: toml::Table = text.parse().unwrap();
    let password = credentials["roles"]["acme_app"]["password"].as_str().unwrap();
    let mut client = ground.log_in("acme", "acme_app", password).await;
    client.query("CREATE TABLE t (x int)").await.unwrap();

    let receipt = ground.proxy.files.dir().join("r.json");
    let erase = ["tenant", "erase", "acme", "--confirm", "acme", "--receipt", receipt.to_str().unwrap()];
    let (status, why) = ground.refused(&["tenant", "erase", "acme", "--confirm", "globex", "--receipt", "x"]).await;
    assert!(status == 2 && why.contains("--confirm says \"globex\""), "{why}");
    let (status, _) = ground.refused(&["tenant", "erase", "acme"]).await;
    assert_eq!(status, 2);
    let planned = ground.done(&["tenant", "erase", "acme", "--dry-run"]).await;
    assert!(planned.contains("acme_app, acme_owner, acme_ro") && file.exists(), "{planned}");

    let done = ground.done(&erase).await;
    assert!(done.contains("tenant acme is erased"), "{done}");
    assert_eq!(ground.left().await, ["globex", "globex_app", "globex_owner", "globex_ro"]);
    assert_eq!((ground.files_left(), file.exists()), (vec!["globex.toml".to_owned()], false));
    crate::eventually!(
        ground.try_log_in("acme", "acme_app", password).await.is_err_and(|error| error.fields[&'C'] == "28P01")
    );
    // Its session was ended: some last words, and no more.
    while client.read_in_time().await.expect("an end in time").is_ok() {}
    let receipt: Value = serde_json::from_str(&std::fs::read_to_string(&receipt).unwrap()).unwrap();
    let removed: Vec<&str> =
        receipt["removed"].as_array().unwrap().iter().map(|it| it["what"].as_str().unwrap()).collect();
    assert_eq!(removed, ["record", "database", "role", "role", "role", "credentials file"]);
    assert!(receipt["removed"].as_array().unwrap().iter().all(|it| it["when"].as_str().unwrap().contains('T')));
    assert!(receipt["remains"][0]["what"].as_str().unwrap().starts_with("WAL archives"), "{receipt}");
    assert!(receipt["remains"][0]["until"].as_str().unwrap().contains('T'), "{receipt}");
    let (status, why) = ground.refused(&erase).await;
    assert!(status == 2 && why.contains("no tenant \"acme\""), "{why}");
    assert!(ground.done(&["audit", "verify"]).await.contains(": 6 lines"));
}

#[tokio::test]
async fn an_erasure_that_is_killed_after_any_step_goes_on() {
    let ground = Ground::new().await;
    let receipt = ground.proxy.files.dir().join("r.json");
    let erase = ["tenant", "erase", "acme", "--confirm", "acme", "--receipt", receipt.to_str().unwrap()];
    for place in ["route", "closed", "database", "roles", "credentials", "receipt", "audited"] {
        let printed = ground.done(&["tenant", "create", "acme", "--json"]).await;
        password(&printed, "acme_app");
        let (status, why) = ground.struck(&format!("erase:{place}"), &erase).await;
        assert_eq!(status, None, "{place}: killed: {why}");
        let (status, why) = ground.refused(&["tenant", "create", "acme"]).await;
        assert!(status == 2 && why.contains("another act is not finished"), "{place}: {status} {why}");
        ground.done(&erase).await;
        assert_eq!((ground.left().await, ground.files_left()), (vec![], vec![]), "{place}");
        let text = std::fs::read_to_string(&receipt).unwrap();
        assert!(text.contains("acme_owner"), "{place}: {text}");
        std::fs::remove_file(&receipt).unwrap();
    }
}
