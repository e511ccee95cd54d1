//! The proof of the main job: each tenant reaches its own database and no other, whichever way it is named.
//!
//! Every check is a real login against the running proxy. Failed logins count against the proxy's back-off (five are
//! free for an address and tenant, a successful one clears them): the order here keeps below that.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::Client;

use super::client::{Door, Refusal, Way};
use super::screen::Screen;
use super::setup::{NOBODY, Site, Tenant};
use super::table::Row;
use super::{load, psql};
use crate::tenant::route::Hints;
use crate::wire::sqlstate;

/// For what takes milliseconds unless it is broken.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
const SLEEP: &str = "SELECT pg_sleep(60)";

/// Checks everything, whatever fails on the way; an error means that checking itself was impossible.
pub(super) async fn prove(site: &Site, screen: &Screen) -> anyhow::Result<Vec<Row>> {
    let proof = Proof { site, door: site.door()? };
    let mut rows = screen.step("logging in everywhere, by every way, with every password", proof.logins()).await?;
    let first = &site.tenants[0];
    let what = format!("running pgbench with {} clients as {}", load::CLIENTS, first.id());
    rows.extend(screen.step(&what, async { Ok(under_load(site, first).await) }).await?);
    rows.push(Row::new("psql", format!("{} lines, sslmode=verify-full", psql::LINES.len()), psql::prove(site).await));
    rows.push(Row::new("metrics", "GET /metrics", proof.metrics().await));
    Ok(rows)
}

async fn under_load(site: &Site, tenant: &Tenant) -> Vec<Row> {
    let how = format!("{} clients, prepared, TLS, {} s", load::CLIENTS, load::SECONDS);
    let load = match load::fill(site, tenant).await {
        Ok(()) => load::run(site, tenant).await,
        Err(error) => Err(error.context("pgbench --initialize")),
    };
    match load {
        Ok(load) => {
            let sampled = format!("pg_stat_activity, {} samples", load.samples);
            vec![Row::new("pgbench", how, load.throughput), Row::new("backends meanwhile", sampled, load.backends)]
        }
        Err(error) => vec![Row::new("pgbench", how, Err(error))],
    }
}

struct Proof<'a> {
    site: &'a Site,
    door: Door,
}

impl Proof<'_> {
    async fn logins(&self) -> anyhow::Result<Vec<Row>> {
        let (mut own, mut foreign, mut unknown) = (Vec::new(), Vec::new(), Ok(()));
        for way in Way::ALL {
            own.push(Row::new("its own database", way.to_string(), self.own(way).await));
            foreign.push(Row::new("another's database", way.to_string(), self.foreign(way).await));
            unknown = unknown.and(self.unknown(way).await);
        }
        own.push(Row::new("its own database", "Unix socket, user=app.<tenant>", self.own_by_unix_socket().await));
        let mut rows = own;
        rows.extend(foreign);
        let same = unknown.map(|()| "the answer to a wrong password".to_owned());
        rows.push(Row::new("unknown tenant", "by each of the three", same));
        rows.extend(self.disagreements().await);
        rows.push(Row::new("no TLS", "sslmode=disable", self.without_tls().await));
        rows.push(Row::new("cancel", SLEEP, self.cancel().await));
        Ok(rows)
    }

    /// Every tenant reads its own marker row.
    async fn own(&self, way: Way) -> anyhow::Result<String> {
        for tenant in &self.site.tenants {
            let client = self.enter(tenant, way).await?;
            reads_own_row(&client, tenant).await?;
        }
        Ok(format!("{0} of {0} read their own row", self.site.tenants.len()))
    }

    async fn own_by_unix_socket(&self) -> anyhow::Result<String> {
        for tenant in &self.site.tenants {
            let hints = hints(tenant, Way::UserSuffix);
            let client = self.door.connect_unix(&hints, &tenant.onboarded.password).await;
            reads_own_row(&client.with_context(|| tenant.id().to_owned())?, tenant).await?;
        }
        Ok(format!("{0} of {0} read their own row", self.site.tenants.len()))
    }

    async fn enter(&self, tenant: &Tenant, way: Way) -> anyhow::Result<Client> {
        let client = self.door.connect(&hints(tenant, way), &tenant.onboarded.password).await;
        client.with_context(|| tenant.id().to_owned())
    }

    /// Every tenant's password is refused at every other tenant, though the role has the same name.
    async fn foreign(&self, way: Way) -> anyhow::Result<String> {
        let mut refused = 0;
        for target in &self.site.tenants {
            for other in self.site.tenants.iter().filter(|other| other.id() != target.id()) {
                match self.door.connect(&hints(target, way), &other.onboarded.password).await {
                    Ok(_) => bail!("{}'s password opens {}'s database", other.id(), target.id()),
                    Err(refusal) => wrong_password(&refusal)
                        .with_context(|| format!("{}'s password at {}", other.id(), target.id()))?,
                }
                refused += 1;
            }
        }
        Ok(format!("{refused} of {refused} refused ({})", sqlstate::INVALID_PASSWORD))
    }

    /// A tenant that does not exist and a wrong password cannot be told apart.
    async fn unknown(&self, way: Way) -> anyhow::Result<()> {
        let [first, second, ..] = &self.site.tenants[..] else { bail!("there is one tenant only") };
        let password = &second.onboarded.password;
        let nobody = way.hints(NOBODY, &first.onboarded.role);
        let known = hints(first, way);
        let unknown = refused(self.door.connect(&nobody, password).await, "an unknown tenant")?;
        let wrong = refused(self.door.connect(&known, password).await, "a wrong password")?;
        wrong_password(&unknown)?;
        let (unknown, wrong) = (unknown.told(&nobody.user), wrong.told(&known.user));
        ensure!(unknown == wrong, "{way}: an unknown tenant gets {unknown:?}, a wrong password {wrong:?}");
        Ok(())
    }

    /// Two hints, two tenants, and the right password for the first: refused all the same.
    async fn disagreements(&self) -> Vec<Row> {
        let [one, two, three] = &self.site.tenants[..] else { return Vec::new() };
        let cases = [
            (one, Way::Sni, two, Way::Options),
            (two, Way::Sni, three, Way::UserSuffix),
            (three, Way::Options, one, Way::UserSuffix),
        ];
        let mut rows = Vec::new();
        for (right, first, wrong, second) in cases {
            let hints = both(&hints(right, first), &hints(wrong, second));
            let result = refused(self.door.connect(&hints, &right.onboarded.password).await, "a disagreement");
            let result = result.and_then(|refusal| {
                ensure!(refusal.code().starts_with("28"), "{refusal}");
                Ok(format!("refused ({})", refusal.code()))
            });
            rows.push(Row::new("hints that disagree", describe(&hints), result));
        }
        rows
    }

    async fn without_tls(&self) -> anyhow::Result<String> {
        let tenant = &self.site.tenants[0];
        let attempt = self.door.connect_without_tls(&hints(tenant, Way::Options), &tenant.onboarded.password).await;
        let refusal = refused(attempt, "a connection in the clear")?;
        ensure!(refusal.code() == sqlstate::INVALID_AUTHORIZATION, "{refusal}");
        Ok(format!("refused ({})", refusal.code()))
    }

    /// A query that would take a minute ends when it is told to.
    async fn cancel(&self) -> anyhow::Result<String> {
        let tenant = &self.site.tenants[0];
        let client = self.enter(tenant, Way::Sni).await?;
        let watcher = tenant.postgres.connect("postgres").await?;
        let token = client.cancel_token();
        let cancelled = async {
            let active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1";
            while watcher.query_one(active, &[&SLEEP]).await?.get::<_, i64>(0) == 0 {
                tokio::time::sleep(POLL).await;
            }
            let begun = Instant::now();
            self.door.cancel(&token).await?;
            anyhow::Ok(begun)
        };
        let both = async { tokio::join!(client.simple_query(SLEEP), cancelled) };
        let Ok((slept, begun)) = tokio::time::timeout(PATIENCE, both).await else {
            bail!("not cancelled within {} s", PATIENCE.as_secs());
        };
        let took = begun?.elapsed();
        let refusal = refused(slept.map_err(Refusal::from), "a cancelled query")?;
        ensure!(refusal.code() == sqlstate::QUERY_CANCELED, "{refusal}");
        Ok(format!("cancelled within {} ms ({})", took.as_millis() + 1, refusal.code()))
    }

    /// Prometheus sees queries of every tenant.
    async fn metrics(&self) -> anyhow::Result<String> {
        let get = tokio::time::timeout(PATIENCE, http_get(self.site)).await;
        let text = get.with_context(|| format!("no answer within {} s", PATIENCE.as_secs()))??;
        for tenant in &self.site.tenants {
            let series = format!("pgtenant_tenant_queries_total{{tenant=\"{}\"", tenant.id());
            let value =
                text.lines().find_map(|line| line.strip_prefix(&series)?.rsplit(' ').next()?.parse::<f64>().ok());
            ensure!(value.is_some_and(|queries| queries > 0.0), "{series}…}} is {value:?}");
        }
        let lines = text.lines().filter(|line| !line.starts_with('#')).count();
        Ok(format!("{lines} series, every tenant in them"))
    }
}

async fn reads_own_row(client: &Client, tenant: &Tenant) -> anyhow::Result<()> {
    let rows = client.query("SELECT tenant FROM marker", &[]).await.with_context(|| tenant.id().to_owned())?;
    let read: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(read == [tenant.id()], "{} reads {read:?}", tenant.id());
    Ok(())
}

fn hints(tenant: &Tenant, way: Way) -> Hints {
    way.hints(tenant.id(), &tenant.onboarded.role)
}

/// The hints of both; a user with a suffix is the second's.
fn both(first: &Hints, second: &Hints) -> Hints {
    Hints {
        sni: first.sni.clone().or_else(|| second.sni.clone()),
        option: first.option.clone().or_else(|| second.option.clone()),
        user: second.user.clone(),
        ..Hints::default()
    }
}

fn describe(hints: &Hints) -> String {
    let mut parts = Vec::new();
    parts.extend(hints.sni.as_ref().map(|name| format!("SNI {}", name.trim_end_matches(".localhost"))));
    parts.extend(hints.option.as_ref().map(|tenant| format!("options {tenant}")));
    parts.extend(hints.user.contains('.').then(|| format!("user {}", hints.user)));
    parts.join(", ")
}

fn refused<T>(attempt: Result<T, Refusal>, what: &str) -> anyhow::Result<Refusal> {
    match attempt {
        Ok(_) => bail!("{what} is not refused"),
        Err(refusal) => Ok(refusal),
    }
}

fn wrong_password(refusal: &Refusal) -> anyhow::Result<()> {
    ensure!(refusal.code() == sqlstate::INVALID_PASSWORD, "{refusal}, and not {}", sqlstate::INVALID_PASSWORD);
    Ok(())
}

/// The body of a GET of `/metrics`, with a 200.
async fn http_get(site: &Site) -> anyhow::Result<String> {
    let address = site.http_address();
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1.1 200"), "{status}");
    Ok(body.to_owned())
}
