//! New passwords: the old ones are good for a while, and whatever happens in between, somebody's are.

use crate::harness::ground::{Ground, password};

#[tokio::test]
async fn old_and_new_passwords_log_in_until_the_grace_time_ends() {
    let ground = Ground::new().await;
    let old = password(&ground.done(&["tenant", "create", "acme", "--json"]).await, "acme_app");
    let new = password(&ground.done(&["tenant", "rotate-credentials", "acme", "--json"]).await, "acme_app");
    assert_ne!(old, new);
    ground.proxy.reload().unwrap();
    assert_eq!(ground.files_left(), ["acme.acme_app.present", "acme.acme_ro.present", "acme.toml"]);
    // Each opens backends: the present password's when the old one's has none to take over, and the other way round.
    for password in [&old, &new, &old] {
        let mut client = ground.log_in("acme", "acme_app", password).await;
        assert_eq!(client.query("SELECT current_user").await.unwrap()[0][0].as_deref(), Some("acme_app"));
        end_backends(&ground).await;
    }
    assert_eq!(ground.try_log_in("acme", "acme_app", "neither").await.err().unwrap().fields[&'C'], "28P01");

    // A rotation that was killed anywhere goes on, and what the clients know stays good.
    let mut known = new;
    ground.done(&["tenant", "rotate-credentials", "acme", "--finish"]).await;
    for place in ["files", "record", "instance", "handed-over"] {
        let rotate = ["tenant", "rotate-credentials", "acme", "--json"];
        let (status, why) = ground.struck(&format!("rotate:{place}"), &rotate).await;
        assert_eq!(status, None, "{place}: killed: {why}");
        let new = password(&ground.done(&rotate).await, "acme_app");
        ground.proxy.reload().unwrap();
        for password in [&known, &new] {
            let mut client = ground.log_in("acme", "acme_app", password).await;
            client.query("SELECT 1").await.unwrap_or_else(|error| panic!("{place}: {error:?}"));
            end_backends(&ground).await;
        }
        ground.done(&["tenant", "rotate-credentials", "acme", "--finish"]).await;
        ground.proxy.reload().unwrap();
        assert_eq!(ground.try_log_in("acme", "acme_app", &known).await.err().unwrap().fields[&'C'], "28P01", "{place}");
        ground.log_in("acme", "acme_app", &new).await;
        assert_eq!(ground.files_left(), ["acme.toml"], "{place}");
        known = new;
    }

    // Without --finish, the old password ends by itself.
    let ground = Ground::with_admin("SUPERUSER", &[("lifecycle.grace", "1s".into())]).await;
    let old = password(&ground.done(&["tenant", "create", "acme", "--json"]).await, "acme_app");
    ground.done(&["tenant", "rotate-credentials", "acme"]).await;
    ground.proxy.reload().unwrap();
    crate::eventually!(ground.try_log_in("acme", "acme_app", &old).await.is_err());
}

/// The next client needs a new one.
async fn end_backends(ground: &Ground) {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'acme'";
    crate::eventually!(ground.sql("postgres", sql).await.is_empty());
}
