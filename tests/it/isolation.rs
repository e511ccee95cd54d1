//! A tenant's credentials open its own database and no other, whatever the hints: many random combinations.

use std::collections::HashMap;
use std::sync::Arc;

use pgtenant::cli::demo::certificates::DevCa;
use pgtenant::cli::demo::tenant::{Onboarded, Order, onboard};
use rustls::ClientConfig;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::harness::frontend::V3_0;
use crate::harness::proxy::{Proxy, ProxyFiles};
use crate::harness::random::{Random, seed};
use crate::harness::scene::{marker, password};
use crate::harness::wire::Wire;
use crate::harness::{certs, postgres};

const TENANTS: usize = 20;
const INSTANCES: usize = 3;
const COMBINATIONS: usize = 1000;
/// Logins under way at a time: enough to mix tenants on every worker.
const AT_A_TIME: usize = 24;

/// One client: whose credentials it has, and which tenants its hints name.
#[derive(Debug, Clone, Default)]
struct Combination {
    credentials: usize,
    sni: Option<usize>,
    options: Option<usize>,
    suffix: Option<usize>,
    database: Option<usize>,
}

impl Combination {
    /// One hint most often, sometimes two; they name the credentials' own tenant about as often as another's.
    fn random(random: &mut Random) -> Combination {
        let mut combination = Combination { credentials: random.below(TENANTS), ..Combination::default() };
        for _ in 0..1 + random.below(4) / 3 {
            let own = random.below(2) == 0;
            let named = if own { combination.credentials } else { random.below(TENANTS) };
            match random.below(4) {
                0 => combination.sni = Some(named),
                1 => combination.options = Some(named),
                2 => combination.suffix = Some(named),
                _ => combination.database = Some(named),
            }
        }
        combination
    }

    fn is_right(&self) -> bool {
        let hints = [self.sni, self.options, self.suffix, self.database];
        hints.into_iter().flatten().all(|named| named == self.credentials)
    }
}

struct Town {
    tenants: Vec<Onboarded>,
    proxy: Proxy,
    tls: Arc<ClientConfig>,
}

impl Town {
    /// Tenants on different instances share the names of their roles, and of their databases.
    async fn new() -> (Town, Vec<postgres::Postgres>) {
        let (one, two, three) = tokio::join!(postgres::start(), postgres::start(), postgres::start());
        let instances = vec![one, two, three];
        let ca = DevCa::new().unwrap();
        let mut files = ProxyFiles::new()
            .certificate(&ca, &["localhost", "*.db.localhost"])
            .set("tls.default_certificate", "localhost")
            .set("routing.sni_domains", vec!["db.localhost"])
            .set("auth.free_attempts", 1_000_000);
        for (number, instance) in instances.iter().enumerate() {
            files = files.instance(&format!("pg{number}"), instance);
        }
        let mut tenants = Vec::new();
        for number in 0..TENANTS {
            let (tenant, name) = (format!("tenant{number}"), format!("app{}", number / INSTANCES));
            let order = Order {
                instance: format!("pg{}", number % INSTANCES),
                database: name.clone(),
                role: name,
                ..Order::shared(&tenant, "")
            };
            let onboarded = onboard(&instances[number % INSTANCES], &order).await.unwrap();
            files = files.set(&format!("routing.databases.{tenant}_db"), tenant).tenant(&onboarded);
            tenants.push(onboarded);
        }
        let proxy = Proxy::start(files).await;
        (Town { tenants, proxy, tls: Arc::new(certs::client(&ca)) }, instances)
    }

    /// The marker that the client reads, or the SQLSTATE that it gets.
    async fn try_out(&self, combination: &Combination) -> Result<String, String> {
        let id = |number: usize| &self.tenants[number].tenant;
        let credentials = &self.tenants[combination.credentials];
        let sni = combination.sni.map_or("localhost".to_owned(), |named| format!("{}.db.localhost", id(named)));
        let suffix = combination.suffix.map_or_else(String::new, |named| format!(".{}", id(named)));
        let user = format!("{}{suffix}", credentials.role);
        let options = combination.options.map(|named| format!("-c tenant={}", id(named)));
        let database = combination.database.map(|named| format!("{}_db", id(named)));
        let mut parameters = vec![("user", user.as_str())];
        parameters.extend(options.as_deref().map(|options| ("options", options)));
        parameters.extend(database.as_deref().map(|database| ("database", database)));
        let mut client = Wire::tls(self.proxy.address(), self.tls.clone(), &sni).await.unwrap();
        let login = client.login_with(V3_0, &parameters, password(credentials)).await;
        login.map_err(|error| error.sqlstate().to_owned())?;
        Ok(marker(&mut client).await)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_combinations_of_credentials_and_hints() {
    let (town, _instances) = Town::new().await;
    let town = Arc::new(town);
    let seed = seed();
    println!("PGT_SEED={seed}");
    let mut random = Random::new(seed);
    let (places, mut clients) = (Arc::new(Semaphore::new(AT_A_TIME)), JoinSet::new());
    for _ in 0..COMBINATIONS {
        let (town, places, combination) = (town.clone(), places.clone(), Combination::random(&mut random));
        clients.spawn(async move {
            let _place = places.acquire().await.expect("never closed");
            let result = town.try_out(&combination).await;
            (combination, result)
        });
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    while let Some(done) = clients.join_next().await {
        let (combination, result) = done.unwrap();
        let own = &town.tenants[combination.credentials].tenant;
        match &result {
            Ok(read) => assert!(combination.is_right() && read == own, "{combination:?} read {read}, seed {seed}"),
            Err(code) => {
                let refused = !combination.is_right() && ["28P01", "28000"].contains(&code.as_str());
                assert!(refused, "{combination:?} got {code}, seed {seed}");
            }
        }
        *counts.entry(result.map_or_else(|code| code, |_| "connected".to_owned())).or_default() += 1;
    }
    println!("{counts:?}");
    assert!(counts["connected"] > COMBINATIONS / 4, "{counts:?}");
    assert!(counts["28P01"] > COMBINATIONS / 10, "{counts:?}");
}
