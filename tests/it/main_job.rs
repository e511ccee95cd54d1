//! The main job: a client lands in its own tenant's database, through the tenant's bounded pool.

use pgtenant::cli::demo::tenant::{Order, onboard};
use secrecy::ExposeSecret;

use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::wire::Wire;

#[tokio::test]
async fn a_client_reaches_its_own_tenant_by_options_and_by_suffix() {
    let pg = postgres::start().await;
    let acme = onboard(&pg, &Order::shared("acme", "one")).await.unwrap();
    let globex = onboard(&pg, &Order::shared("globex", "one")).await.unwrap();
    let proxy = Proxy::start(ProxyFiles::new().instance("one", &pg).tenant(&acme).tenant(&globex)).await;
    for tenant in [&acme, &globex] {
        let mut client = Wire::tcp(proxy.address()).await.unwrap();
        let user = format!("{}.{}", tenant.role, tenant.tenant);
        client.login(&user, &tenant.database, tenant.password.expose_secret()).await.unwrap();
        let rows = client.query("SELECT tenant FROM marker").await;
        assert_eq!(rows.unwrap(), [[Some(tenant.tenant.clone())]]);
    }
}
