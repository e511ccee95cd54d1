//! Acts on tenants that are ordered through the HTTP API, and carried out in the proxy's own process.
//!
//! They are the commands' own acts (`lifecycle`), with the same journals: when the process ends in the middle of one, the
//! same request, or the command, goes on where it was. What is known of an act lives in memory only.

mod act;
mod api;
mod books;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};

use act::{Done, Job, Unread};
pub use api::routes;
use books::{Books, Ordered, Refused, Seen};

use crate::lifecycle::Failure;
use crate::reload::{self, Source};

/// Acts that are at work at the same time; further ones wait.
const AT_ONCE: usize = 4;
/// How long an operation is known after its end, and its passwords wait to be read.
const KEEP: Duration = Duration::from_secs(15 * 60);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// All operations of this process.
pub struct Operations {
    source: Source,
    /// Where the first login goes; none: where the configuration says.
    proxy: Option<SocketAddr>,
    books: Mutex<Books<Unread>>,
    places: Semaphore,
}

impl Operations {
    /// `proxy`: our own address where the configuration does not tell it.
    pub fn new(source: Source, proxy: Option<SocketAddr>) -> Arc<Operations> {
        Arc::new(Operations { source, proxy, books: Mutex::default(), places: Semaphore::new(AT_ONCE) })
    }

    fn books(&self) -> MutexGuard<'_, Books<Unread>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with it as soon as there is a place.
    fn order(self: &Arc<Self>, job: Job, by: String) -> Result<Seen, Refused> {
        let ordered = Ordered { act: job.act.text(), tenant: job.tenant.clone(), dry_run: job.dry_run, by };
        let seen = self.books().order(ordered)?;
        tokio::spawn(self.clone().carry(seen.clone(), job));
        Ok(seen)
    }

    /// One operation's life.
    async fn carry(self: Arc<Self>, seen: Seen, job: Job) {
        let place = self.places.acquire().await.expect("never closed");
        self.books().begin(&seen.id);
        tracing::info!(operation = seen.id, act = seen.act, tenant = seen.tenant, by = seen.by, "act begun");
        let (result, ended) = oneshot::channel();
        let (operations, of_thread) = (self.clone(), seen.clone());
        // A thread of its own: locks and fsync block, and the programs that an act calls are killed when their thread ends.
        let thread = std::thread::Builder::new().name("operation".to_owned());
        let thread = thread.spawn(move || {
            // Nobody waits any more when the process is about to end.
            let _ = result.send(operations.act(&of_thread, &job));
        });
        let done = match thread {
            Ok(_) => ended.await.unwrap_or_else(|_| Err(Failure::Order("it panicked; see the log".to_owned()))),
            Err(error) => Err(Failure::Order(format!("no thread for it: {error}"))),
        };
        match &done {
            Ok(_) => tracing::info!(operation = seen.id, act = seen.act, tenant = seen.tenant, "act done"),
            Err(error) => {
                tracing::warn!(operation = seen.id, act = seen.act, tenant = seen.tenant, %error, "act failed");
            }
        }
        self.books().end(&seen.id, done, Instant::now());
        drop(place);
    }

    /// Forgets what is old, for ever.
    pub async fn keep_short(self: Arc<Self>) {
        let mut tick = tokio::time::interval(LOOK);
        loop {
            tick.tick().await;
            self.books().forget(KEEP, Instant::now());
        }
    }

    /// On its own thread, and with a runtime of its own.
    fn act(self: Arc<Self>, seen: &Seen, job: &Job) -> Result<Done<Unread>, Failure> {
        let failed = |why: &dyn std::fmt::Display| Failure::Order(why.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let mut site = reload::site(&self.source, self.proxy).map_err(|error| failed(&error))?;
        site.who.clone_from(&seen.by);
        let id = seen.id.clone();
        let site = Arc::new(site.with_progress(move |step| self.books().passed(&id, step)));
        runtime.map_err(|error| failed(&error))?.block_on(job.run(site, &seen.id))
    }
}
