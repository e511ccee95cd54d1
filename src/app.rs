//! The composition root: configuration in, a running proxy out; and its orderly end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::{ArcSwap, ArcSwapOption};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::admin::console::{Answer, Console, Request, Shutdown};
use crate::admin::http::{self, Probe};
use crate::admin::survey::{self, Survey};
use crate::auth::{Backoff, Mock};
use crate::config::{self, Config};
use crate::drain::{Drain, Phase};
use crate::lifecycle::shelf;
use crate::listener::Listeners;
use crate::metrics::{Metrics, QuotaSample, TenantSample};
use crate::net;
use crate::operations::{self, Operations};
use crate::pool::{Counts, Pools};
use crate::reload::{self, LoadError, Source};
use crate::session::Context;
use crate::sessions::{ClientCap, Order, Sessions};
use crate::tenant::{Registry, Tenant, Verifiers};
use crate::trace::{Road, Tracer};
use crate::workers::Workers;

const REAP: Duration = Duration::from_secs(1);
/// After the drain: for last words to clients and goodbyes to instances.
const LAST_STEPS: Duration = Duration::from_secs(2);

/// A running proxy.
pub struct App {
    context: Arc<Context>,
    source: Source,
    addresses: Vec<SocketAddr>,
    http_address: Option<SocketAddr>,
    told_to_end: watch::Receiver<Option<Shutdown>>,
    tasks: Vec<JoinHandle<()>>,
}

impl App {
    /// Builds everything and begins to accept.
    ///
    /// # Errors
    /// The configuration is wrong, or an address cannot be bound.
    pub async fn start(source: Source) -> anyhow::Result<App> {
        let loaded = reload::load(&source)?;
        let config = loaded.config.clone();
        let metrics = Metrics::new();
        let workers = Workers::start(config.listen.workers, config.listen.engine, net::warm_up)?;
        let workers = Arc::new(workers);
        let listeners = Listeners::bind(&config.listen)?;
        let addresses = listeners.addresses();
        let (console, requests) = Console::new();
        let (tracer, traces) = Tracer::new(metrics.clone());
        let context = Arc::new(context(&config, metrics, workers, console, tracer));
        reload::publish(loaded, &context);
        context.metrics.loaded();

        let mut tasks = vec![tokio::spawn(reap(context.clone()))];
        if let Some(collector) = config.tracing.collector.clone() {
            let road = Road::new(collector).context("cannot reach the collector (tracing.endpoint)")?;
            tasks.push(tokio::spawn(traces.export(road, context.metrics.clone())));
        }
        let http_address = match config.http.address {
            Some(address) => {
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("cannot listen on {address} (http.address)"))?;
                let bound = listener.local_addr()?;
                // A free port that was asked for is known to nobody else.
                let own = config.listen.addresses.first().filter(|address| address.port() == 0).and(addresses.first());
                let operations = Operations::new(source.clone(), own.copied());
                tasks.push(tokio::spawn(operations.clone().keep_short()));
                let routes = http::plain(Arc::new(State(context.clone())))
                    .merge(http::api(context.clone()))
                    .merge(operations::routes(operations, context.clone()));
                let of_context = context.clone();
                let tls: Arc<http::Tls> = Arc::new(move || of_context.https.load_full());
                if let Some(why) = http::closed(&config.http) {
                    tracing::error!(%address, "{why}");
                }
                let never = std::future::pending();
                tasks.push(tokio::spawn(http::serve(listener, routes, tls, Default::default(), never)));
                Some(bound)
            }
            None => None,
        };
        let (shutdown, told_to_end) = watch::channel(None);
        tasks.push(tokio::spawn(serve_console(requests, source.clone(), context.clone(), shutdown)));
        listeners.spawn(&context);
        match reload::watch(source.clone(), context.clone()) {
            Ok(task) => tasks.push(task),
            Err(error) => tracing::warn!(%error, "cannot watch the configuration: send SIGHUP after changes"),
        }
        Ok(App { context, source, addresses, http_address, told_to_end, tasks })
    }

    /// Where clients connect; free ports that were asked for are known now.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// What reads the configuration again, as SIGHUP does. Reading thousands of files takes a while: call it where that blocks
    /// nobody. The error says what is wrong; the last good configuration stays in force.
    pub fn reload(&self) -> impl FnOnce() -> Result<(), LoadError> + Send + use<> {
        let (source, context) = (self.source.clone(), self.context.clone());
        move || reload::reload(&source, &context)
    }

    /// What the console was told last about the end.
    pub fn shutdowns(&self) -> watch::Receiver<Option<Shutdown>> {
        self.told_to_end.clone()
    }

    /// Stops accepting, and waits until the last client has left of itself.
    pub async fn clients_gone(&self) {
        tracing::info!(sessions = self.context.sessions.count(), "waiting for clients to leave");
        self.context.metrics.set_draining();
        self.context.drain.advance(Phase::Draining);
        all_gone(&self.context).await;
    }

    /// Stops accepting, lets transactions finish, closes sessions with 57P01. Returns when all are gone, when
    /// `drain.timeout` is over, or when `hurry` is; then what is left is ended at once.
    pub async fn drain(self, hurry: impl Future<Output = ()>) {
        let context = &self.context;
        let timeout = context.config.load().drain.timeout;
        tracing::info!(sessions = context.sessions.count(), "draining");
        context.metrics.set_draining();
        context.drain.advance(Phase::Draining);
        context.sessions.order(Order::Finish, |_| true);
        tokio::select! {
            () = all_gone(context) => {}
            () = tokio::time::sleep(timeout) => tracing::warn!(sessions = context.sessions.count(), "drain timeout"),
            () = hurry => tracing::warn!(sessions = context.sessions.count(), "told to end at once"),
        }
        context.drain.advance(Phase::Ended);
        context.sessions.order(Order::End, |_| true);
        let last_steps = async {
            all_gone(context).await;
            context.pools.evict_all();
            while context.registry.all().iter().any(|tenant| !context.pools.is_empty(tenant)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(LAST_STEPS, last_steps).await;
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn context(config: &Config, metrics: Arc<Metrics>, workers: Arc<Workers>, console: Console, tracer: Tracer) -> Context {
    let mock = Mock::new(config.auth.mock_iterations);
    Context {
        config: ArcSwap::from_pointee(config.clone()),
        set: Mutex::default(),
        registry: Registry::default(),
        pools: Pools::new(config, workers.clone(), metrics.clone()),
        hubs: Arc::default(),
        verifiers: Verifiers::new(config.auth.verifier_ttl, mock.clone()),
        backoff: Backoff::new(&config.auth),
        tls: ArcSwapOption::empty(),
        https: ArcSwapOption::empty(),
        metrics,
        drain: Drain::default(),
        sessions: Arc::new(Sessions::default()),
        console,
        survey: Survey::default(),
        tracer,
        workers,
        clients: ClientCap::new(config.limits.max_clients),
        mock,
    }
}

async fn reap(context: Arc<Context>) {
    let mut tick = tokio::time::interval(REAP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        context.pools.reap();
        context.console.tick(&context.registry);
        context.survey.tick(&context.registry);
        let now = Instant::now();
        context.registry.all().iter().for_each(|tenant| tenant.usage.tick(&tenant.stats, now));
    }
}

/// Does what the console cannot do itself.
async fn serve_console(
    mut requests: mpsc::UnboundedReceiver<Request>,
    source: Source,
    context: Arc<Context>,
    shutdown: watch::Sender<Option<Shutdown>>,
) {
    while let Some(request) = requests.recv().await {
        match request {
            Request::Reload(answer) => {
                let (source, context) = (source.clone(), context.clone());
                answer_with(answer, move || reload::reload(&source, &context));
            }
            Request::Set { key, value, answer } => {
                let (source, context) = (source.clone(), context.clone());
                answer_with(answer, move || reload::set(&source, &context, &key, value));
            }
            Request::Shutdown(how) => _ = shutdown.send_replace(Some(how)),
        }
    }
}

/// Reading thousands of files takes a while: not on a thread that serves others.
fn answer_with(answer: Answer, read: impl FnOnce() -> Result<(), LoadError> + Send + 'static) {
    tokio::task::spawn_blocking(move || {
        // An operator who has left finds it in the log.
        let _ = answer.send(read().map_err(|error| error.to_string()));
    });
}

async fn all_gone(context: &Context) {
    let begun = Instant::now();
    while context.sessions.count() > 0 {
        // Sessions end within milliseconds or take their transaction's time: poll the slower, the longer it takes.
        let pause = (begun.elapsed() / 10).clamp(Duration::from_millis(1), Duration::from_millis(100));
        tokio::time::sleep(pause).await;
    }
}

/// What the HTTP endpoint shows.
struct State(Arc<Context>);

/// One tenant as it is now: what a [`TenantSample`] refers to.
struct Sampled {
    tenant: Arc<Tenant>,
    record: Arc<config::Tenant>,
    counts: Counts,
}

impl Sampled {
    fn new(tenant: Arc<Tenant>, context: &Context) -> Self {
        let (record, counts) = (tenant.record(), context.pools.counts(&tenant));
        Sampled { tenant, record, counts }
    }

    fn sample(&self) -> TenantSample<'_> {
        TenantSample {
            tenant: self.tenant.id.as_str(),
            instance: &self.record.instance.name,
            region: self.record.instance.region.as_deref(),
            stats: &self.tenant.stats,
            backends_idle: self.counts.idle.into(),
            backends_active: self.counts.active.into(),
            backends_connecting: self.counts.connecting.into(),
            highest_use: survey::highest_use(&self.tenant, self.counts),
        }
    }
}

impl Probe for State {
    fn metrics(&self) -> String {
        let context = &self.0;
        let tenants = context.registry.all();
        let sampled: Vec<Sampled> = tenants.into_iter().map(|tenant| Sampled::new(tenant, context)).collect();
        let samples: Vec<TenantSample<'_>> = sampled.iter().map(Sampled::sample).collect();
        let config = context.config.load();
        context.metrics.set_backups(&shelf::figures(&config, OffsetDateTime::now_utc()));
        context.metrics.encode(&samples, config.http.max_tenant_series)
    }

    fn tenant_metrics(&self, tenant: &str) -> Option<String> {
        let sampled = Sampled::new(self.0.registry.get(tenant)?, &self.0);
        let quotas = survey::quotas(&sampled.tenant, sampled.counts);
        let quotas = quotas.iter().map(|quota| QuotaSample {
            quota: quota.quota,
            limit: quota.limit,
            used: quota.used,
            refused: quota.refused,
        });
        Some(Metrics::encode_tenant(&sampled.sample(), &quotas.collect::<Vec<_>>()))
    }

    fn ready(&self) -> Result<(), String> {
        match self.0.drain.phase() {
            Phase::Running => Ok(()),
            Phase::Draining | Phase::Ended => Err("draining".to_owned()),
        }
    }
}
