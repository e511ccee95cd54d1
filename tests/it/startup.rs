//! Step 2 of a session: protocol versions and options, and the parameters that a client gives.

use crate::eventually;
use crate::harness::frontend::{self, V3_0, V3_2};
use crate::harness::proxy::Proxy;
use crate::harness::scene::{Scene, connect, failure, marker, password, value};
use crate::harness::wire::{Wire, cancel};

const V3_1: u32 = 3 << 16 | 1;
const V3_9999: u32 = 3 << 16 | 9999;
const OPTIONS: (&str, &str) = ("options", "-c tenant=acme");

#[tokio::test]
async fn every_minor_version_gets_a_working_session() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files()).await;
    let unknown = ("_pq_.compression", "zstd");
    let named = || vec!["_pq_.compression".to_owned()];
    let cases = [
        (V3_0, None, None, 4),
        // Never released; PostgreSQL takes it for 3.0.
        (V3_1, None, None, 4),
        (V3_2, None, None, 32),
        (V3_9999, None, Some((V3_2, vec![])), 32),
        (V3_0, Some(unknown), Some((V3_0, named())), 4),
        (V3_2, Some(unknown), Some((V3_2, named())), 32),
        (V3_9999, Some(unknown), Some((V3_2, named())), 32),
    ];
    for (version, option, negotiated, key_length) in cases {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        let mut parameters = vec![("user", "acme"), OPTIONS];
        parameters.extend(option);
        client.login_with(version, &parameters, password(&scene.acme)).await.unwrap();
        assert_eq!(client.negotiated, negotiated, "{version:#x} {option:?}");
        assert_eq!(client.key.as_ref().unwrap().1.len(), key_length, "{version:#x}");
        assert_eq!(marker(&mut client).await, "acme");
        // The key is one that cancels, whatever its length.
        client.send(&frontend::query("SELECT pg_sleep(60)")).await.unwrap();
        let running = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(60)'";
        eventually!(!scene.sql(running).await.is_empty());
        cancel(proxy.address(), client.key.as_ref().unwrap()).await.unwrap();
        assert_eq!(failure(&mut client).await.sqlstate(), "57014");
        assert_eq!(marker(&mut client).await, "acme");
    }
}

#[tokio::test]
async fn other_major_versions_are_refused() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files()).await;
    for (version, shown) in [(2 << 16, "2.0"), (4 << 16, "4.0"), (1234 << 16 | 5600, "1234.5600")] {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        client.send(&frontend::startup(version, &[("user", "acme"), OPTIONS])).await.unwrap();
        let error = client.expect_error("0A000").await;
        assert!(error.message().starts_with(&format!("unsupported frontend protocol {shown}")), "{error:?}");
        assert_eq!(error.severity(), "FATAL");
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn parameters_are_in_force_and_reported() {
    let scene = Scene::new().await;
    // One backend, so that clients with different parameters take turns on it.
    let files = scene.instance().tenant_with(&scene.acme, &[("pool.max_backends", 1.into())]);
    let proxy = Proxy::start(files).await;
    let one = [
        ("user", "acme"),
        ("options", "-c tenant=acme -c search_path=pg_catalog,\\ public --work-mem=5MB -cstatement_timeout=77s"),
        ("application_name", "one's \\ app"),
        ("client_encoding", "LATIN1"),
        ("DateStyle", "German"),
        ("my.parameter", "kept"),
    ];
    let two = [("user", "acme"), OPTIONS, ("application_name", "two"), ("TimeZone", "Asia/Tokyo")];
    let mut clients = Vec::new();
    for parameters in [&one[..], &two[..]] {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        client.login_with(V3_0, parameters, password(&scene.acme)).await.unwrap();
        clients.push(client);
    }
    let reported = |client: &Wire, name: &str| client.parameters[name].clone();
    assert_eq!(reported(&clients[0], "application_name"), "one's \\ app");
    assert_eq!(reported(&clients[0], "client_encoding"), "LATIN1");
    assert!(reported(&clients[0], "DateStyle").starts_with("German"));
    assert_eq!(reported(&clients[1], "application_name"), "two");
    assert_eq!(reported(&clients[1], "TimeZone"), "Asia/Tokyo");
    assert_eq!(reported(&clients[1], "client_encoding"), "UTF8");
    let shown = [
        [("application_name", "one's \\ app"), ("search_path", "pg_catalog, public"), ("work_mem", "5MB")],
        [("application_name", "two"), ("search_path", "\"$user\", public"), ("work_mem", "4MB")],
    ];
    for _ in 0..3 {
        for (client, expected) in clients.iter_mut().zip(shown) {
            for (name, expected) in expected {
                assert_eq!(value(client, &format!("SHOW {name}")).await, expected);
            }
        }
    }
    assert_eq!(value(&mut clients[0], "SHOW statement_timeout").await, "77s");
    assert_eq!(value(&mut clients[0], "SHOW my.parameter").await, "kept");
    assert_eq!(value(&mut clients[0], "SELECT to_char(date '2031-01-02', 'YYYY')").await, "2031");
    assert_eq!(value(&mut clients[0], "SELECT date '2031-01-02'").await, "02.01.2031");
    assert_eq!(value(&mut clients[1], "SELECT date '2031-01-02'").await, "2031-01-02");
}

#[tokio::test]
async fn the_tenant_option_stays_with_us() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files()).await;
    for options in ["-c tenant=acme -c work_mem=5MB", "--work_mem=5MB --tenant=acme", "-cTENANT=acme -cwork_mem=5MB"] {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        client.login_with(V3_0, &[("user", "acme"), ("options", options)], password(&scene.acme)).await.unwrap();
        assert_eq!(client.query("SHOW tenant").await.unwrap_err().sqlstate(), "42704");
        assert_eq!(value(&mut client, "SHOW work_mem").await, "5MB");
        assert_eq!(marker(&mut client).await, "acme");
    }
}

#[tokio::test]
async fn a_bad_parameter_gives_the_servers_own_error() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files()).await;
    let bad = [
        ("DateStyle", "nonsense"),
        ("client_encoding", "nonsense"),
        ("work_mem", "nonsense"),
        ("no_such_parameter", "1"),
        ("TimeZone", "Mars/Olympus"),
    ];
    for (name, value) in bad {
        let login = async |address| {
            let mut client = Wire::tcp(address).await.unwrap();
            let parameters = [("user", "acme"), OPTIONS, (name, value)];
            let parameters = if address == proxy.address() { &parameters[..] } else { &[parameters[0], parameters[2]] };
            let error = client.login_with(V3_0, parameters, password(&scene.acme)).await.unwrap_err();
            assert!(client.is_closed().await);
            (error.sqlstate().to_owned(), error.severity().to_owned(), error.message().to_owned())
        };
        assert_eq!(login(proxy.address()).await, login(scene.postgres.address()).await);
    }
    // Neither the backend nor the next client has suffered.
    assert_eq!(marker(&mut connect(&proxy, &scene.acme).await).await, "acme");
    // Switches that set no parameter are refused with a word on what to write.
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    let parameters = [("user", "acme"), ("options", "-c tenant=acme -d 5")];
    let error = client.login_with(V3_0, &parameters, password(&scene.acme)).await.unwrap_err();
    assert!(error.message().contains("-c name=value"), "{error:?}");
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    let error = client.login_with(V3_0, &[OPTIONS], password(&scene.acme)).await.unwrap_err();
    assert!(error.message().contains("no PostgreSQL user name"), "{error:?}");
}
