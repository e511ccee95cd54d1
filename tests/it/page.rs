//! The operators' page in a headless Chromium; left out, with a message, where there is none.

use std::path::Path;
use std::process::{Command, Stdio};

use pgtenant::cli::demo::tenant::{Onboarded, Order, onboard};

use crate::harness::frontend::query;
use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles, http_get};
use crate::harness::scene::connect;

/// The first browser that runs.
fn browser() -> Option<String> {
    let named = std::env::var("PGTENANT_TEST_BROWSER").ok();
    let known = ["chromium", "chromium-browser", "google-chrome"].map(str::to_owned);
    named.into_iter().chain(known).find(|program| {
        let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    })
}

#[tokio::test]
async fn the_page_works_in_a_browser() {
    let Some(browser) = browser() else {
        return eprintln!("SKIPPED: there is no Chromium (Debian: chromium), so the page was not tried");
    };
    let postgres = postgres::start().await;
    let order = Order::shared("tenant00", "one");
    let first = onboard(&postgres, &order).await.unwrap();
    let mut files =
        ProxyFiles::new().instance("one", &postgres).tenant_with(&first, &[("pool.max_backends", 1.into())]);
    // The others need no database of their own to be looked at.
    for number in 1..60 {
        let tenant = format!("tenant{number:02}");
        files = files.tenant(&Onboarded { database: tenant.clone(), tenant, ..first.clone() });
    }
    files = files.set("pool.queue_timeout", "120s");
    let proxy = Proxy::start(files).await;
    let (mut one, mut two) = (connect(&proxy, &first).await, connect(&proxy, &first).await);
    one.query("BEGIN; SELECT 1").await.unwrap();
    two.send(&query("SELECT 1")).await.unwrap();
    let http = proxy.http_address();
    crate::eventually!(http_get(http, "/api/v1/tenants?limit=1").await.1.contains("\"waiting\":1"));

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/check.py");
    let url = format!("http://localhost:{}/", http.port());
    let mut check = tokio::process::Command::new("python3");
    check.arg("-B").arg(script).args(["--url", &url, "--browser", &browser]).kill_on_drop(true);
    if let Some(folder) = std::env::var_os("PGTENANT_TEST_SHOTS") {
        check.arg("--shots").arg(folder);
    }
    let output = check.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
