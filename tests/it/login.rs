//! Step 4 of a session: who gets in by what, and that the outside cannot tell why somebody does not.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgtenant::cli::demo::certificates::DevCa;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use tokio::process::Command;
use toml::Value;

use crate::eventually;
use crate::harness::postgres::{Options, options, start_with};
use crate::harness::proxy::Proxy;
use crate::harness::scene::{Scene, connect, log_in, log_in_as, marker, password, tenant, value};
use crate::harness::wire::{ErrorResponse, Wire};
use crate::harness::{certs, frontend};

/// Text that has to be the same whatever is wrong.
fn refusal(user: &str) -> String {
    format!("password authentication failed for user \"{user}\"")
}

/// Everything that a failed SCRAM login gets to see, with what is random or the client's own taken out.
async fn transcript(mut client: Wire, user: &str, options: &str) -> Vec<String> {
    client.send(&frontend::startup(frontend::V3_0, &[("user", user), ("options", options)])).await.unwrap();
    let mut scram = ScramSha256::new(b"wrong", ChannelBinding::unsupported());
    let mut seen = Vec::new();
    loop {
        let Ok(message) = client.read().await else {
            seen.push("closed".to_owned());
            return seen;
        };
        match (message.tag, message.payload.get(3)) {
            (b'R', Some(10)) => {
                seen.push(format!("mechanisms {}", String::from_utf8_lossy(&message.payload[4..])));
                client.send(&frontend::sasl_initial("SCRAM-SHA-256", scram.message())).await.unwrap();
            }
            (b'R', Some(11)) => {
                let text = String::from_utf8(message.payload[4..].to_vec()).unwrap();
                let parts: Vec<&str> = text.split(',').collect();
                seen.push(format!("nonce of {}, salt of {}, {}", parts[0].len(), parts[1].len(), parts[2]));
                scram.update(text.as_bytes()).unwrap();
                client.send(&frontend::sasl_response(scram.message())).await.unwrap();
            }
            (b'E', _) => {
                let fields = message.error().fields.into_iter();
                seen.extend(fields.map(|(field, text)| format!("{field} {}", text.replace(user, "USER"))));
            }
            _ => seen.push(format!("{message:?}")),
        }
    }
}

#[tokio::test]
async fn wrong_password_unknown_role_and_unknown_tenant_look_alike() {
    let scene = Scene::new().await;
    let other = tenant(&scene.postgres, "expired").await;
    let closed = tenant(&scene.postgres, "closed").await;
    let files = scene
        .files()
        .set("auth.free_attempts", 100)
        .tenant_with(&other, &[("roles.expired.valid_until", "2001-01-01T00:00:00Z".into())])
        .tenant_with(&closed, &[("allow", vec!["10.0.0.0/8"].into()), ("state", "suspended".into())]);
    let proxy = Proxy::start(files).await;
    let tried = async |user: &str, tenant: &str| {
        let client = Wire::tcp(proxy.address()).await.unwrap();
        transcript(client, user, &format!("-c tenant={tenant}")).await
    };
    let wrong_password = tried("acme", "acme").await;
    assert_eq!(
        wrong_password,
        [
            "mechanisms SCRAM-SHA-256\0\0",
            "nonce of 50, salt of 26, i=4096",
            "C 28P01",
            "M password authentication failed for user \"USER\"",
            "S FATAL",
            "V FATAL",
            "closed"
        ]
    );
    // Unknown role, unknown tenant, expired, not from this address.
    for (user, tenant) in [("nobody", "acme"), ("acme", "nosuch"), ("expired", "expired"), ("closed", "closed")] {
        assert_eq!(tried(user, tenant).await, wrong_password, "{user} at {tenant}");
    }
    // The operator sees the difference.
    for (result, count) in
        [("wrong_password", 1.0), ("unknown_role", 1.0), ("unknown_tenant", 1.0), ("expired", 1.0), ("address", 1.0)]
    {
        let series = format!("pgtenant_auth_total{{method=\"scram-sha-256\",result=\"{result}\"}}");
        eventually!(proxy.metric(&series).await == count, "{result}");
    }
}

#[tokio::test]
async fn the_mock_exchange_repeats_itself_and_shows_the_iterations_that_were_set() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files().set("auth.mock_iterations", 5000)).await;
    let first = async |user: &str| {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        let options = ("options", "-c tenant=acme");
        client.send(&frontend::startup(frontend::V3_0, &[("user", user), options])).await.unwrap();
        client.read().await.unwrap();
        let scram = ScramSha256::new(b"x", ChannelBinding::unsupported());
        client.send(&frontend::sasl_initial("SCRAM-SHA-256", scram.message())).await.unwrap();
        let text = String::from_utf8(client.read().await.unwrap().payload[4..].to_vec()).unwrap();
        let (_, salt_and_iterations) = text.split_once(',').unwrap();
        salt_and_iterations.to_owned()
    };
    let nobody = first("nobody").await;
    assert!(nobody.ends_with(",i=5000"), "{nobody}");
    assert_eq!(first("nobody").await, nobody);
    assert_ne!(first("nobody2").await, nobody);
    assert_eq!(first("acme").await, first("acme").await);
}

#[tokio::test]
async fn scram_with_and_without_channel_binding() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let files = scene.files().certificate(&ca, &["localhost"]).set("tls.mode", "preferred");
    let proxy = Proxy::start(files).await;
    assert_eq!(connect(&proxy, &scene.acme).await.mechanism, Some("SCRAM-SHA-256"));
    let mut client = Wire::tls(proxy.address(), Arc::new(certs::client(&ca)), "localhost").await.unwrap();
    log_in(&mut client, &scene.acme).await.unwrap();
    assert_eq!(client.mechanism, Some("SCRAM-SHA-256-PLUS"));

    // libpq insists on it, and checks the proxy's own proof.
    let ca_file = ca.write(proxy.files.dir()).unwrap();
    let psql = async |user: &str, password: &str| {
        let address = format!(
            "host=localhost hostaddr=127.0.0.1 port={} user={user} dbname=acme options='-c tenant=acme' \
             sslmode=verify-full sslrootcert={} channel_binding=require",
            proxy.address().port(),
            ca_file.display()
        );
        let mut command = Command::new(scene.postgres.bin_dir().join("psql"));
        command.args(["-XAtc", "SELECT tenant FROM marker", "-d", &address]).env("PGPASSWORD", password);
        let output = command.output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    if scene.postgres.bin_dir().join("psql").exists() {
        assert_eq!(psql("acme", password(&scene.acme)).await, (true, "acme".into(), String::new()));
        let (success, _, message) = psql("acme", "wrong").await;
        assert!(!success && message.contains(&refusal("acme")), "{message}");
    }
    // A proof bound to another certificate than the one shown is refused: somebody stands between.
    let mut client = Wire::tls(proxy.address(), Arc::new(certs::client(&ca)), "localhost").await.unwrap();
    let parameters = [("user", "acme"), ("options", "-c tenant=acme")];
    client.send(&frontend::startup(frontend::V3_0, &parameters)).await.unwrap();
    client.read().await.unwrap();
    let binding = ChannelBinding::tls_server_end_point(vec![7; 32]);
    let mut scram = ScramSha256::new(password(&scene.acme).as_bytes(), binding);
    client.send(&frontend::sasl_initial("SCRAM-SHA-256-PLUS", scram.message())).await.unwrap();
    scram.update(&client.read().await.unwrap().payload[4..]).unwrap();
    client.send(&frontend::sasl_response(scram.message())).await.unwrap();
    client.expect_error("28000").await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn md5_verifiers() {
    let hba = vec!["host all old 127.0.0.1/32 md5".to_owned()];
    let scene = Scene::on(start_with(Options { hba, ..options() }).await).await;
    let sql = "SET password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD 'ancient';
               GRANT CONNECT ON DATABASE acme TO old; GRANT SELECT ON marker TO old";
    scene.sql(sql).await;
    let rows = scene.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'old'").await;
    let verifier = rows[0][0].clone().unwrap();
    assert!(verifier.starts_with("md5"));
    let files = scene.instance().tenant_with(&scene.acme, &[("roles.old.verifier", verifier.into())]);
    let proxy = Proxy::start(files).await;
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    log_in_as(&mut client, "old", "acme", "ancient").await.unwrap();
    assert_eq!(client.mechanism, None);
    assert_eq!(value(&mut client, "SELECT current_user").await, "old");
    assert_eq!(marker(&mut client).await, "acme");
    // With the tenant in the user's name too: the hash is of the role's own name, and only the client can know that.
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    let error = log_in_as(&mut client, "old", "acme", "wrong").await.unwrap_err();
    assert_eq!((error.sqlstate(), error.message()), ("28P01", refusal("old").as_str()));
    eventually!(proxy.metric("pgtenant_auth_total{method=\"md5\",result=\"wrong_password\"}").await == 1.0);
}

#[tokio::test]
async fn cleartext_over_tls_and_only_where_it_is_allowed() {
    let (scene, ca) = (Scene::new().await, DevCa::new().unwrap());
    let files = scene.files().certificate(&ca, &["localhost"]).set("tls.mode", "preferred").set("auth.cleartext", true);
    let proxy = Proxy::start(files).await;
    let tls = async || Wire::tls(proxy.address(), Arc::new(certs::client(&ca)), "localhost").await.unwrap();
    let mut client = tls().await;
    log_in(&mut client, &scene.acme).await.unwrap();
    assert_eq!(client.mechanism, None);
    // The backend logs in by SCRAM with the keys that follow from the password.
    assert_eq!(marker(&mut client).await, "acme");
    assert_eq!(proxy.metric("pgtenant_auth_total{method=\"cleartext\",result=\"ok\"}").await, 1.0);
    for (user, tenant) in [("acme", "acme"), ("nobody", "acme"), ("acme", "nosuch")] {
        let error = log_in_as(&mut tls().await, user, tenant, "wrong").await.unwrap_err();
        assert_eq!((error.sqlstate(), error.message()), ("28P01", refusal(user).as_str()));
    }
    // Never without TLS.
    assert_eq!(connect(&proxy, &scene.acme).await.mechanism, Some("SCRAM-SHA-256"));
}

#[tokio::test]
async fn valid_until_in_the_record() {
    let scene = Scene::new().await;
    let until = |moment: &str| [("roles.acme.valid_until", Value::from(moment))];
    let proxy = Proxy::start(scene.instance().tenant_with(&scene.acme, &until("2999-01-01T00:00:00Z"))).await;
    connect(&proxy, &scene.acme).await;
    proxy.files.rewrite_tenant(&scene.acme, &until("2001-01-01T00:00:00Z"));
    proxy.reload().unwrap();
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    let error = log_in(&mut client, &scene.acme).await.unwrap_err();
    assert_eq!((error.sqlstate(), error.message()), ("28P01", refusal("acme").as_str()));
}

#[tokio::test]
async fn only_allowed_addresses_get_in() {
    let scene = Scene::new().await;
    let files = scene.instance().tenant_with(&scene.acme, &[("allow", vec!["127.0.0.2/31", "10.0.0.0/8"].into())]);
    let files = files.set("listen.unix_socket_dir", "run");
    std::fs::create_dir(files.dir().join("run")).unwrap();
    let proxy = Proxy::start(files).await;
    for (last, allowed) in [(1, false), (2, true), (3, true), (4, false)] {
        let local = Ipv4Addr::new(127, 0, 0, last).into();
        let mut client = Wire::tcp_from(local, proxy.address()).await.unwrap();
        match log_in(&mut client, &scene.acme).await {
            Ok(()) => assert!(allowed && marker(&mut client).await == "acme", "127.0.0.{last}"),
            Err(error) => assert!(!allowed && error.message() == refusal("acme"), "127.0.0.{last}: {error:?}"),
        }
    }
    let path = proxy.files.dir().join(format!("run/.s.PGSQL.{}", proxy.address().port()));
    log_in(&mut Wire::unix(&path).await.unwrap(), &scene.acme).await.unwrap();
}

#[tokio::test]
async fn guessing_gets_slow_for_this_address_and_this_tenant() {
    let scene = Scene::new().await;
    let globex = tenant(&scene.postgres, "globex").await;
    let files = scene.files().tenant(&globex).set("auth.free_attempts", 2).set("auth.backoff", "1s");
    let proxy = Proxy::start(files).await;
    let attempt = async |password: &str| {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        log_in_as(&mut client, "acme", "acme", password).await
    };
    for _ in 0..2 {
        assert_eq!(attempt("wrong").await.unwrap_err().sqlstate(), "28P01");
    }
    let failed = Instant::now();
    let error = attempt(password(&scene.acme)).await.unwrap_err();
    if failed.elapsed() < Duration::from_secs(1) {
        assert_eq!(error.sqlstate(), "28000");
        assert!(error.message().contains("too many failed logins"), "{error:?}");
    }
    // Neither another tenant nor another address pays for it.
    connect(&proxy, &globex).await;
    let mut elsewhere = Wire::tcp_from(Ipv4Addr::new(127, 0, 0, 2).into(), proxy.address()).await.unwrap();
    log_in(&mut elsewhere, &scene.acme).await.unwrap();
    // It ends, and the right password starts all over.
    eventually!(attempt(password(&scene.acme)).await.is_ok());
    assert!(failed.elapsed() >= Duration::from_millis(900));
    assert_eq!(attempt("wrong").await.unwrap_err().sqlstate(), "28P01");
    attempt(password(&scene.acme)).await.unwrap();
}

#[tokio::test]
async fn a_suspended_tenant_says_so_to_those_who_proved_themselves() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files()).await;
    connect(&proxy, &scene.acme).await;
    proxy.files.rewrite_tenant(&scene.acme, &[("state", "suspended".into())]);
    proxy.reload().unwrap();
    let attempt = async |password: &str| -> ErrorResponse {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        log_in_as(&mut client, "acme", "acme", password).await.unwrap_err()
    };
    let error = attempt(password(&scene.acme)).await;
    assert_eq!((error.sqlstate(), error.message()), ("57P03", "tenant \"acme\" is suspended"));
    assert_eq!(attempt("wrong").await.sqlstate(), "28P01");
    proxy.files.rewrite_tenant(&scene.acme, &[]);
    proxy.reload().unwrap();
    assert_eq!(marker(&mut connect(&proxy, &scene.acme).await).await, "acme");
}

#[tokio::test]
async fn databases_by_name_and_all_of_them() {
    let scene = Scene::new().await;
    for name in ["acme_archive", "acme_other"] {
        scene.postgres.sql("postgres", &format!("CREATE DATABASE {name}")).await.unwrap();
    }
    let proxy =
        Proxy::start(scene.instance().tenant_with(&scene.acme, &[("databases", vec!["acme_archive"].into())])).await;
    let reached = async |proxy: &Proxy, database: &str| {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        let parameters = [("user", "acme"), ("options", "-c tenant=acme"), ("database", database)];
        client.login_with(frontend::V3_0, &parameters, password(&scene.acme)).await?;
        Ok::<_, ErrorResponse>(value(&mut client, "SELECT current_database()").await)
    };
    for database in ["acme", "acme_archive"] {
        assert_eq!(reached(&proxy, database).await.unwrap(), database);
    }
    assert_eq!(reached(&proxy, "").await.unwrap(), "acme");
    for database in ["acme_other", "postgres", "nosuch", "ACME"] {
        let error = reached(&proxy, database).await.unwrap_err();
        let text = format!("database \"{database}\" does not exist");
        assert_eq!((error.sqlstate(), error.message(), error.severity()), ("3D000", text.as_str(), "FATAL"));
    }
    drop(proxy);

    let proxy = Proxy::start(scene.instance().tenant_with(&scene.acme, &[("databases", vec!["*"].into())])).await;
    for database in ["acme", "acme_archive", "acme_other", "postgres"] {
        assert_eq!(reached(&proxy, database).await.unwrap(), database);
    }
    // The instance's own answer now.
    let error = reached(&proxy, "nosuch").await.unwrap_err();
    assert_eq!((error.sqlstate(), error.message()), ("3D000", "database \"nosuch\" does not exist"));
}
