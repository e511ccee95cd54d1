//! From changed files to changed behaviour: read everything, check everything, then publish, or keep what was there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::admin::states;
use crate::config::{self, Config, ConfigError, TlsMode};
use crate::lifecycle::{Site, smoke};
use crate::metrics::Outcome;
use crate::net::{InstanceTlsError, Place, ServerTls, ServerTlsError};
use crate::session::Context;
use crate::sessions::Order;

/// Files are often written in several steps: act when it has been quiet for so long.
const QUIET: Duration = Duration::from_millis(200);
/// And after this in any case: somebody may write all the time.
const LONGEST_NOISE: Duration = Duration::from_secs(2);

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub struct Source {
    /// None: `proxy.toml` in the current folder.
    pub path: Option<PathBuf>,
    /// `--set key=value`.
    pub overrides: Vec<(String, String)>,
}

impl Source {
    /// With what the console's SET has set over it.
    fn with(&self, set: &BTreeMap<String, String>) -> Source {
        let set = set.iter().map(|(key, value)| (key.clone(), value.clone()));
        Source { path: self.path.clone(), overrides: self.overrides.iter().cloned().chain(set).collect() }
    }
}

#[derive(Debug, Error)]
pub enum LoadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Tls(#[from] ServerTlsError),
    #[error(transparent)]
    Instance(#[from] InstanceTlsError),
}

/// A configuration whose files were all read and found usable.
pub struct Loaded {
    pub config: Config,
    /// None where TLS is switched off.
    pub tls: Option<ServerTls>,
    /// Of the HTTP endpoint; none where it speaks plain HTTP.
    pub https: Option<Arc<rustls::ServerConfig>>,
}

/// Reads and checks everything that `source` names, certificates and CAs included.
///
/// # Errors
/// What is wrong, with file and key.
pub fn load(source: &Source) -> Result<Loaded, LoadError> {
    let config = config::load(source.path.as_deref(), &source.overrides)?;
    let tls = match config.tls.mode {
        TlsMode::Off => None,
        TlsMode::Required | TlsMode::Preferred => Some(ServerTls::load(&config.tls, &config.tenants)?),
    };
    let https = match &tls {
        Some(tls) if config.http.tls => Some(Arc::new(tls.https(config.http.client_ca.as_deref())?)),
        _ => None,
    };
    for instance in config.instances.values() {
        Place::new(instance.clone())?;
    }
    Ok(Loaded { config, tls, https })
}

/// What acts on tenants work with, as the files are now; `proxy`: where the running one is, else by the configuration.
///
/// # Errors
/// As [`load`].
pub fn site(source: &Source, proxy: Option<SocketAddr>) -> Result<Site, LoadError> {
    let config = Arc::new(load(source)?.config);
    let proxy = smoke::proxy_of(&config, proxy);
    let source = source.clone();
    let load = move || load(&source).map(|loaded| loaded.config).map_err(|error| error.to_string());
    Ok(Site::new(config, proxy).with_load(load))
}

/// Takes over a new configuration. Sessions of tenants that stay where they are notice nothing.
pub fn publish(loaded: Loaded, context: &Context) {
    let Loaded { config, tls, https } = loaded;
    warn_of_restart(&context.config.load(), &config);
    let change = context.registry.publish(&config.tenants);
    context.pools.reconfigure(&config);
    context.tracer.publish(&config);
    context.console.publish(&config.admin, &context.mock);
    for tenant in change.changed.iter().chain(&change.retired) {
        context.verifiers.forget(tenant.id.as_str());
    }
    states::heed(&change.changed, &context.sessions, &context.pools);
    if !change.retired.is_empty() {
        context.sessions.order(Order::Finish, |session| session.tenant.is_retired());
    }
    context.metrics.set_max_backends(config.instances.values().map(|it| (it.name.as_str(), it.max_backends)));
    if let Some(tls) = &tls {
        let certificates = tls.certificates();
        let expiry = certificates.all().iter().map(|it| (it.name.as_str(), it.facts.not_after.unix_timestamp()));
        context.metrics.set_certificates(expiry);
    }
    context.tls.store(tls.map(Arc::new));
    context.https.store(https);
    context.config.store(Arc::new(config));
    tracing::info!(
        added = change.added,
        changed = change.changed.len(),
        retired = change.retired.len(),
        "configuration published"
    );
}

fn warn_of_restart(old: &Config, new: &Config) {
    let fixed = [
        ("listen", old.listen != new.listen),
        ("http.address", old.http.address != new.http.address),
        ("log", old.log.filter != new.log.filter || old.log.format != new.log.format),
        ("tracing.endpoint", old.tracing.collector != new.tracing.collector),
        ("limits.max_clients", old.limits.max_clients != new.limits.max_clients),
        ("auth, but login_timeout and cleartext", fixed_auth(&old.auth) != fixed_auth(&new.auth)),
    ];
    for (key, _) in fixed.iter().filter(|(_, changed)| *changed) {
        tracing::warn!(key, "changed, but takes effect only after a restart");
    }
}

fn fixed_auth(auth: &config::Auth) -> config::Auth {
    config::Auth { login_timeout: Duration::ZERO, cleartext: false, ..auth.clone() }
}

/// Reads everything again, and forgets what the console's SET has set. A bad file keeps the last good state, and says so.
///
/// # Errors
/// What is wrong, with file and key.
pub fn reload(source: &Source, context: &Context) -> Result<(), LoadError> {
    let mut set = what_is_set(context);
    read_again(source, &BTreeMap::new(), context)?;
    set.clear();
    Ok(())
}

/// The same after a file has changed: what the console's SET has set holds on.
fn refresh(source: &Source, context: &Context) -> Result<(), LoadError> {
    let set = what_is_set(context);
    read_again(source, &set, context)
}

/// The console's SET: lays one more value over the files, or takes it away again. Nothing changes where it is wrong.
///
/// # Errors
/// What is wrong with the value, or else with the files.
pub fn set(source: &Source, context: &Context, key: &str, value: Option<String>) -> Result<(), LoadError> {
    let mut set = what_is_set(context);
    let mut wanted = set.clone();
    match value {
        Some(value) => _ = wanted.insert(key.to_owned(), value),
        None => _ = wanted.remove(key),
    }
    let loaded = load(&source.with(&wanted)).map_err(|error| said_by_set(error, key))?;
    context.metrics.reloaded(Outcome::Ok);
    publish(loaded, context);
    *set = wanted;
    Ok(())
}

/// Held while files are read and taken over: one after the other.
fn what_is_set(context: &Context) -> MutexGuard<'_, BTreeMap<String, String>> {
    context.set.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_again(source: &Source, set: &BTreeMap<String, String>, context: &Context) -> Result<(), LoadError> {
    let loaded = load(&source.with(set));
    context.metrics.reloaded(if loaded.is_ok() { Outcome::Ok } else { Outcome::Failed });
    match loaded {
        Ok(loaded) => {
            publish(loaded, context);
            Ok(())
        }
        Err(error) => {
            tracing::error!("configuration not reloaded, the last good one stays in force: {error}");
            Err(error)
        }
    }
}

/// Both lie over the files in the same way; only one of them was just written.
fn said_by_set(mut error: LoadError, key: &str) -> LoadError {
    if let LoadError::Config(ConfigError { problems }) = &mut error {
        for problem in problems.iter_mut().filter(|problem| problem.place == config::OVERRIDE && problem.key == key) {
            problem.place = "SET".to_owned();
        }
    }
    error
}

/// Reloads whenever one of the configuration's files changes. Ends when dropped.
///
/// # Errors
/// The system cannot watch files.
pub fn watch(source: Source, context: Arc<Context>) -> notify::Result<tokio::task::JoinHandle<()>> {
    let (changed, mut changes) = mpsc::channel::<Event>(64);
    // Events did not fit: nobody knows whether they were about files of ours.
    let missed = Arc::new(AtomicBool::new(false));
    let of_watcher = missed.clone();
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // Reading a file is an event too.
        if let Ok(event) = event
            && !matches!(event.kind, EventKind::Access(_))
            && changed.try_send(event).is_err()
        {
            of_watcher.store(true, Ordering::Relaxed);
        }
    })?;
    let mut watched = Watched { watcher, folders: Vec::new(), sources: Vec::new() };
    watched.follow(&context.config.load())?;
    Ok(tokio::spawn(async move {
        while let Some(event) = changes.recv().await {
            if !missed.swap(false, Ordering::Relaxed) && !concerns(&event, &watched.sources) {
                continue;
            }
            quiet(&mut changes, &watched.sources).await;
            loop {
                let (source, of_reload) = (source.clone(), context.clone());
                // Reading thousands of files takes a while: not on a thread that serves others.
                let reloaded = tokio::task::spawn_blocking(move || refresh(&source, &of_reload).is_ok()).await;
                let Ok(true) = reloaded else { break };
                match watched.follow(&context.config.load()) {
                    // What came into a new folder before it was watched is not read yet.
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(%error, "cannot watch a configuration file: send SIGHUP after changes");
                        break;
                    }
                }
            }
        }
    }))
}

/// Waits until our files are quiet. What else is written in their folders does not matter.
async fn quiet(changes: &mut mpsc::Receiver<Event>, sources: &[PathBuf]) {
    let at_last = Instant::now() + LONGEST_NOISE;
    let mut quiet = Instant::now() + QUIET;
    while let Ok(Some(event)) = tokio::time::timeout_at(quiet.min(at_last), changes.recv()).await {
        if concerns(&event, sources) {
            quiet = Instant::now() + QUIET;
        }
    }
}

struct Watched {
    watcher: RecommendedWatcher,
    folders: Vec<PathBuf>,
    /// Files and folders of ours, absolute as the paths of events are.
    sources: Vec<PathBuf>,
}

impl Watched {
    /// Folders are watched, not files: editors and orchestrators replace a file by another one.
    /// Whether there are new ones.
    fn follow(&mut self, config: &Config) -> notify::Result<bool> {
        self.sources = absolute(&config.sources);
        let before = self.folders.len();
        for source in &self.sources {
            let folder = if source.is_dir() { source.clone() } else { source.with_file_name("") };
            if !self.folders.contains(&folder) {
                self.watcher.watch(&folder, RecursiveMode::NonRecursive)?;
                self.folders.push(folder);
            }
        }
        Ok(self.folders.len() > before)
    }
}

/// A path that has no absolute form (the current folder is gone) stays as it is.
fn absolute(paths: &[PathBuf]) -> Vec<PathBuf> {
    paths.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect()
}

/// Whether an event is about one of our files, or about something in one of our folders.
fn concerns(event: &Event, sources: &[PathBuf]) -> bool {
    event.need_rescan()
        || event
            .paths
            .iter()
            .any(|path| sources.iter().any(|source| path == source || path.parent() == Some(source.as_path())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn noise_in_the_folder_delays_nothing_and_noise_in_our_files_not_for_ever() {
        let sources = [PathBuf::from("/etc/proxy.toml")];
        for (noise, longest) in [("/etc/audit.jsonl", QUIET), ("/etc/proxy.toml", LONGEST_NOISE)] {
            let (changed, mut changes) = mpsc::channel(64);
            let writer = tokio::spawn(async move {
                while changed.send(Event::new(EventKind::Any).add_path(noise.into())).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
            let begun = Instant::now();
            quiet(&mut changes, &sources).await;
            let elapsed = begun.elapsed();
            assert!(elapsed >= longest && elapsed < longest + Duration::from_secs(1), "{noise}: {elapsed:?}");
            writer.abort();
        }
    }

    #[test]
    fn a_configuration_named_by_a_relative_path_is_watched_too() {
        let sources = absolute(&["proxy.toml".into(), "tenants.d".into()]);
        let here = std::env::current_dir().unwrap();
        let concerned = |path| concerns(&Event::new(EventKind::Any).add_path(here.join(path)), &sources);
        assert!(concerned("proxy.toml") && concerned("tenants.d/acme.toml"));
        assert!(!concerned("other.toml") && !concerned("tenants.d/acme/x.toml"));
    }
}
