//! Tenants that want more of an instance than it has.

use pgtenant::cli::demo::postgres::Postgres;
use pgtenant::cli::demo::tenant::{Onboarded, Order, onboard};
use tokio::task::JoinHandle;
use toml::Value;

use crate::eventually;
use crate::harness::postgres;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::stage::client;
use crate::harness::wire::Wire;

/// Two tenants, acme and globex, on an instance that gives them two backends.
struct Scarce {
    /// Dropped last.
    _postgres: Postgres,
    proxy: Proxy,
    acme: Onboarded,
    globex: Onboarded,
}

impl Scarce {
    async fn new(of_the_proxy: &[(&str, Value)]) -> Self {
        let postgres = postgres::start().await;
        let mut files = ProxyFiles::new().instance("one", &postgres).set("instances.one.max_backends", 2);
        for (key, value) in of_the_proxy {
            files = files.set(key, value.clone());
        }
        let acme = onboard(&postgres, &Order::shared("acme", "one")).await.unwrap();
        let globex = onboard(&postgres, &Order::shared("globex", "one")).await.unwrap();
        let files = files.tenant(&acme).tenant(&globex);
        let proxy = Proxy::start(files).await;
        Scarce { _postgres: postgres, proxy, acme, globex }
    }

    async fn client(&self, tenant: &Onboarded) -> Wire {
        client(self.proxy.address(), tenant).await
    }

    /// A client that holds a backend.
    async fn holder(&self, tenant: &Onboarded) -> Wire {
        let mut holder = self.client(tenant).await;
        holder.query("BEGIN; SELECT 1").await.unwrap();
        holder
    }

    /// Lets the tenant's client wait for a backend, and hold it when it has it.
    async fn waits(&self, tenant: &Onboarded, mut client: Wire) -> JoinHandle<Wire> {
        let task = tokio::spawn(async move {
            client.query("BEGIN; SELECT 1").await.unwrap();
            client
        });
        let series = format!("pgtenant_tenant_clients_waiting{{tenant=\"{}\"", tenant.tenant);
        eventually!(self.proxy.metric(&series).await == 1.0);
        task
    }
}

#[tokio::test]
async fn what_is_guaranteed_to_a_tenant_comes_back_at_the_next_release() {
    let scarce = Scarce::new(&[("fairness.lend_after", "0s".into())]).await;
    let acme = scarce.client(&scarce.acme).await;
    let globex = scarce.client(&scarce.globex).await;
    let mut holders = [scarce.holder(&scarce.globex).await, scarce.holder(&scarce.globex).await];
    scarce.proxy.files.rewrite_tenant(&scarce.acme, &[("pool.guaranteed_backends", 1.into())]);
    scarce.proxy.reload().unwrap();
    let globex = scarce.waits(&scarce.globex, globex).await;
    let acme = scarce.waits(&scarce.acme, acme).await;
    holders[0].query("COMMIT").await.unwrap();
    // The later one of acme comes first, though.
    let _acme = acme.await.unwrap();
    assert!(!globex.is_finished());
    holders[1].query("COMMIT").await.unwrap();
    globex.await.unwrap();
}

#[tokio::test]
async fn a_queue_that_stands_is_shortened_by_an_error_that_leaves_the_session() {
    let shed: [(&str, Value); 2] =
        [("fairness.shed_target", "100ms".into()), ("fairness.shed_interval", "100ms".into())];
    let scarce = Scarce::new(&shed).await;
    let mut waiter = scarce.client(&scarce.globex).await;
    let mut holders = [scarce.holder(&scarce.globex).await, scarce.holder(&scarce.globex).await];
    let error = waiter.query("SELECT 1").await.unwrap_err();
    assert_eq!((error.severity(), error.sqlstate()), ("ERROR", "53300"));
    assert_eq!(error.message(), "the database server is overloaded");
    for holder in &mut holders {
        holder.query("COMMIT").await.unwrap();
    }
    waiter.query("SELECT 1").await.unwrap();
    assert_eq!(scarce.proxy.metric("pgtenant_requests_shed_total{instance_name=\"one\"").await, 1.0);
}
