//! The JSON API: what it says of tenants and instances, and whom it says it to.

use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use pgtenant::cli::demo::certificates::DevCa;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::eventually;
use crate::harness::frontend::query;
use crate::harness::proxy::{Proxy, ProxyFiles, http_ask, http_get, http_get_with};
use crate::harness::scene::Scene;
use crate::harness::stage::Stage;
use crate::harness::wire::Wire;
use crate::harness::{certs, frontend, scene};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

async fn get(proxy: &Proxy, path: &str) -> Value {
    let (status, body) = http_get(proxy.http_address(), path).await;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

fn with_token(files: ProxyFiles) -> ProxyFiles {
    let path = files.dir().join("http.token");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).unwrap();
    std::io::Write::write_all(&mut file, TOKEN.as_bytes()).unwrap();
    files.set("http.token.file", "http.token")
}

#[tokio::test]
async fn a_tenant_that_queues_is_seen_to_hurt() {
    let stage = Stage::new(&[("pool.max_backends", 1.into()), ("pool.queue_timeout", "20s".into())]).await;
    let proxy = &stage.proxy;
    let (mut one, mut two) = (stage.client().await, stage.client().await);
    one.query("BEGIN; SELECT 1").await.unwrap();
    two.send(&query("SELECT 1")).await.unwrap();
    stage.waiting(1.0).await;
    eventually!(get(proxy, "/api/v1/tenants").await["tenants"][0]["waiting"] == 1);
    let tenants = get(proxy, "/api/v1/tenants").await;
    let acme = &tenants["tenants"][0];
    assert_eq!((&acme["id"], &acme["instance"], &acme["state"]), (&"acme".into(), &"one".into(), &"active".into()));
    assert_eq!((acme["clients"].as_u64(), acme["backends"]["active"].as_u64()), (Some(2), Some(1)), "{acme}");
    assert_eq!(acme["why"], serde_json::json!(["queue", "quota"]), "{acme}");
    assert_eq!(acme["score"], 60.0, "{acme}");
    assert_eq!((acme["quotas"][0]["limit"].as_f64(), acme["quotas"][0]["used"].as_f64()), (Some(1.0), Some(1.0)));
    assert_eq!((tenants["total"].as_u64(), tenants["totals"]["waiting"].as_u64()), (Some(1), Some(1)));
    assert_eq!(tenants["totals"]["hurting"], 1);

    let instances = get(proxy, "/api/v1/instances").await;
    let instance = &instances["instances"][0];
    assert_eq!((instance["name"].as_str(), instance["headroom"].as_u64()), (Some("one"), Some(89)), "{instance}");

    let detail = get(proxy, "/api/v1/tenants/acme").await;
    assert_eq!(detail["record"]["database"], stage.tenant.database.as_str());
    assert_eq!(detail["record"]["pool"]["queue_timeout"], 20.0);
    assert_eq!(detail["clients"].as_array().unwrap().len(), 2);
    let states: Vec<&str> =
        detail["clients"].as_array().unwrap().iter().filter_map(|it| it["state"].as_str()).collect();
    assert!(states.contains(&"waiting") && states.contains(&"active"), "{states:?}");
    assert_eq!(detail["pools"][0]["waiting"], 1);
    assert!(!detail.to_string().contains("SCRAM-SHA-256$"), "a verifier is a secret");

    one.query("COMMIT").await.unwrap();
    two.read_until_ready().await.unwrap();
    eventually!(get(proxy, "/api/v1/tenants").await["tenants"][0]["waiting"] == 0);
    assert_eq!(http_get(proxy.http_address(), "/api/v1/tenants/globex").await.0, 404);
}

#[tokio::test]
async fn pins_and_rates_show() {
    let stage = Stage::new(&[]).await;
    let mut wire = stage.client().await;
    wire.query("SELECT pg_advisory_lock(1)").await.unwrap();
    eventually!({
        wire.query("SELECT 1").await.unwrap();
        wire.failure("SELECT 1/0").await;
        let detail = get(&stage.proxy, "/api/v1/tenants/acme").await;
        let (tenant, pinned) = (&detail["tenant"], &detail["pinned"][0]);
        let rate = |name: &str| tenant["rates"][name].as_f64().unwrap() > 0.0;
        pinned["reasons"] == serde_json::json!(["advisory_lock"])
            && rate("queries")
            && rate("errors")
            && rate("sent_bytes")
    });
}

#[tokio::test]
async fn the_list_is_sorted_filtered_and_cut() {
    let scene = Scene::new().await;
    let mut files = scene.files();
    let mut tenants = vec![scene.acme.clone()];
    for name in ["globex", "initech", "umbrella"] {
        let tenant = scene::tenant(&scene.postgres, name).await;
        files = files.tenant(&tenant);
        tenants.push(tenant);
    }
    let proxy = Proxy::start(files).await;
    let mut clients = Vec::new();
    for (number, tenant) in tenants.iter().enumerate() {
        for _ in 0..number {
            clients.push(scene::connect(&proxy, tenant).await);
        }
    }
    let ids = async |query: &str| {
        let answer = get(&proxy, &format!("/api/v1/tenants?{query}")).await;
        let ids = answer["tenants"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().to_owned());
        (ids.collect::<Vec<_>>().join(" "), answer["matched"].as_u64().unwrap())
    };
    eventually!(ids("sort=clients").await.0 == "umbrella initech globex acme");
    assert_eq!(ids("sort=clients&limit=2").await, ("umbrella initech".to_owned(), 4));
    assert_eq!(ids("sort=clients&limit=2&offset=1").await.0, "initech globex");
    assert_eq!(ids("sort=clients&order=asc&limit=1").await.0, "acme");
    assert_eq!(ids("sort=id").await.0, "acme globex initech umbrella");
    assert_eq!(ids("sort=id&order=desc&limit=1").await.0, "umbrella");
    assert_eq!(ids("filter=INIT").await, ("initech".to_owned(), 1));
    assert_eq!(ids("filter=active+GLO").await, ("globex".to_owned(), 1));
    assert_eq!(ids("limit=0").await, (String::new(), 4));
    for wrong in ["sort=size", "limit=-1", "order=up", "page=2"] {
        let (status, body) = http_get(proxy.http_address(), &format!("/api/v1/tenants?{wrong}")).await;
        assert_eq!(status, 400, "{wrong}");
        assert!(body.contains("error"), "{body}");
    }
}

#[tokio::test]
async fn the_token_opens_the_api_and_metrics_need_none() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(with_token(scene.files())).await;
    let http = proxy.http_address();
    let ask = async |headers: &[(&str, &str)]| http_get_with(http, "/api/v1/tenants", headers).await.0;
    assert_eq!(ask(&[]).await, 401);
    assert_eq!(ask(&[("Authorization", "Bearer wrong")]).await, 401);
    let right = format!("Bearer {TOKEN}");
    assert_eq!(ask(&[("Authorization", &right)]).await, 200);
    assert_eq!(ask(&[("Authorization", &right), ("Host", "proxy.example.com")]).await, 200);
    for open in ["/", "/metrics", "/metrics/tenant/acme", "/healthz", "/readyz", "/api/v1/openapi.json"] {
        assert_eq!(http_get(http, open).await.0, 200, "{open}");
    }
    // A changed token holds at once.
    std::fs::write(proxy.files.dir().join("http.token"), "fedcba9876543210").unwrap();
    proxy.reload().unwrap();
    assert_eq!(ask(&[("Authorization", &right)]).await, 401);
    assert_eq!(ask(&[("Authorization", "Bearer fedcba9876543210")]).await, 200);
}

#[tokio::test]
async fn without_a_token_the_api_answers_this_machine_only() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files()).await;
    let rebound = http_get_with(proxy.http_address(), "/api/v1/tenants", &[("Host", "evil.example.com")]).await;
    assert_eq!(rebound.0, 403, "{}", rebound.1);
    let everywhere = Proxy::start(scene.files().set("http.address", "0.0.0.0:0")).await;
    let local = format!("127.0.0.1:{}", everywhere.http_address().port()).parse().unwrap();
    let (status, body) = http_get(local, "/api/v1/tenants").await;
    assert_eq!(status, 403);
    assert!(body.contains("http.token") && body.contains("http.client_ca"), "{body}");
    assert_eq!(http_get(local, "/metrics").await.0, 200);
}

#[tokio::test]
async fn a_client_certificate_opens_the_api_over_tls() {
    let scene = Scene::new().await;
    let (server, operators, others) = (DevCa::new().unwrap(), DevCa::new().unwrap(), DevCa::new().unwrap());
    let files =
        scene.files().certificate(&server, &["localhost"]).set("http.tls", true).set("http.client_ca", "ops.crt");
    std::fs::write(files.dir().join("ops.crt"), operators.certificate()).unwrap();
    let proxy = Proxy::start(files).await;
    let ask = async |config: rustls::ClientConfig| {
        let stream = TcpStream::connect(proxy.http_address()).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok::<_, std::io::Error>(http_ask(stream, "GET", "/api/v1/tenants", &[], "").await.0)
    };
    let certificate = operators.client("alice").unwrap();
    assert_eq!(ask(certs::client_with(&server, &certificate)).await.unwrap(), 200);
    assert_eq!(ask(certs::client(&server)).await.unwrap(), 403);
    // Whose it is stands behind what is ordered with it.
    let stream = TcpStream::connect(proxy.http_address()).await.unwrap();
    let config = certs::client_with(&server, &certificate);
    let stream = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let headers = [("Content-Type", "application/json")];
    let order = r#"{"id": "globex"}"#;
    let (status, told) = http_ask(stream, "POST", "/api/v1/tenants?dry_run=true", &headers, order).await;
    assert!(status == 202 && told.contains(r#""by":"api (alice)""#), "{told}");
    let stranger = others.client("mallory").unwrap();
    let config = certs::client_with(&server, &stranger);
    let stream = TcpStream::connect(proxy.http_address()).await.unwrap();
    let handshake = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await;
    // TLS 1.3 tells the client of it only with the first answer.
    let refused = match handshake {
        Err(_) => true,
        Ok(mut stream) => {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
            stream.read(&mut [0; 64]).await.is_err()
        }
    };
    assert!(refused, "another CA's certificate");
}

#[tokio::test]
async fn a_tenant_has_metrics_of_its_own() {
    let stage = Stage::with(|files| files.set("http.max_tenant_series", 0), &[]).await;
    let mut wire = stage.client().await;
    wire.send(&frontend::query("SELECT 1")).await.unwrap();
    wire.read_until_ready().await.unwrap();
    let http = stage.proxy.http_address();
    eventually!({
        let (status, text) = http_get(http, "/metrics/tenant/acme").await;
        assert_eq!(status, 200);
        text.contains("pgtenant_tenant_queries_total{tenant=\"acme\",instance_name=\"one\"} 1\n")
            && text.contains("quota=\"max_backends\"")
    });
    assert!(!http_get(http, "/metrics").await.1.contains("tenant=\"acme\""), "it is not listed");
    assert_eq!(http_get(http, "/metrics/tenant/globex").await.0, 404);
    tokio::time::timeout(Duration::from_secs(1), http_get(http, "/metrics/tenant/..%2f")).await.unwrap();
}

#[tokio::test]
async fn a_state_is_set_at_once_and_by_no_other_site() {
    let scene = Scene::new().await;
    let proxy = Proxy::start(scene.files()).await;
    let put = async |path: &str, headers: &[(&str, &str)], body: &str| {
        let stream = TcpStream::connect(proxy.http_address()).await.unwrap();
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        http_ask(stream, "PUT", path, &headers, body).await
    };
    let path = "/api/v1/tenants/acme/state";
    let mut inside = scene::connect(&proxy, &scene.acme).await;
    let suspend = r#"{"state": "suspended", "reason": "unpaid bills"}"#;
    for header in [("Origin", "https://evil.example.com"), ("Sec-Fetch-Site", "cross-site")] {
        assert_eq!(put(path, &[header], suspend).await.0, 403);
    }
    assert_eq!(put("/api/v1/tenants/globex/state", &[], suspend).await.0, 404);
    assert_eq!(put(path, &[], "{").await.0, 400);
    assert_eq!(put(path, &[], r#"{"state": "gone"}"#).await.0, 422);
    assert_eq!(put(path, &[], r#"{"states": null}"#).await.0, 422);
    let long = format!(r#"{{"state": null, "reason": "{}"}}"#, "x".repeat(20_000));
    assert_eq!(put(path, &[], &long).await.0, 413);
    inside.query("SELECT 1").await.unwrap();

    let (status, body) = put(path, &[], suspend).await;
    let state: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &state["state"], &state["by"]), (200, &"suspended".into(), &"api".into()), "{body}");
    let mut client = Wire::tcp(proxy.address()).await.unwrap();
    let refused = scene::log_in(&mut client, &scene.acme).await.unwrap_err();
    assert!(format!("{refused:?}").contains("unpaid bills"), "{refused:?}");
    eventually!(get(&proxy, "/api/v1/tenants").await["totals"]["clients"] == 0);
    let acme = get(&proxy, "/api/v1/tenants/acme").await;
    assert_eq!(acme["tenant"]["state"], "suspended");
    assert_eq!(acme["record"]["state"]["reason"], "unpaid bills");

    assert_eq!(put(path, &[], r#"{"state": null}"#).await.0, 200);
    scene::connect(&proxy, &scene.acme).await.query("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn a_changed_schema_is_told_by_whoever_may_change_a_state() {
    let scene = Scene::new().await;
    let files = scene.files();
    let token = scene::secret(&files, "http.token", "0123456789abcdef0123");
    let proxy = Proxy::start(files.set("http.token.file", scene::path_value(token))).await;
    let ask = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let stream = TcpStream::connect(proxy.http_address()).await.unwrap();
        http_ask(stream, method, path, headers, "").await.0
    };
    let path = "/api/v1/tenants/acme/schema-changed";
    let token = ("Authorization", "Bearer 0123456789abcdef0123");
    assert_eq!(ask("POST", path, &[]).await, 401);
    assert_eq!(ask("POST", path, &[token, ("Origin", "https://evil.example.com")]).await, 403);
    assert_eq!(ask("POST", "/api/v1/tenants/globex/schema-changed", &[token]).await, 404);
    assert_eq!(ask("GET", path, &[token]).await, 405);
    // Before anybody has used the tenant, and afterwards.
    assert_eq!(ask("POST", path, &[token]).await, 204);
    let mut client = scene::connect(&proxy, &scene.acme).await;
    client.query("SELECT 1").await.unwrap();
    assert_eq!(ask("POST", path, &[token]).await, 204);
    client.query("SELECT 1").await.unwrap();
}
