//! The threads that carry sessions: one current-thread runtime each, and for every tenant the one it is at home on.
//!
//! A tenant's sessions and backends on one thread means that a backend's wake-up is the client's: no work is stolen and
//! nothing is locked against another core.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use thiserror::Error;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::config::Engine;
use crate::net::ring;

/// Why there are no workers.
#[derive(Debug, Error)]
pub enum WorkersError {
    #[error("cannot start worker threads: {0}")]
    Threads(#[from] io::Error),
    #[error(
        "listen.engine is \"io_uring\", and the kernel does not have it or does not allow it ({0}): use Linux 6.1 or newer, \
         allow it (sysctl kernel.io_uring_disabled, seccomp), or set \"auto\""
    )]
    NoRing(io::Error),
}

/// See the module. Dropping it ends the threads once their current step is over.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    hasher: ahash::RandomState,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Worker {
    handle: Handle,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Workers {
    /// Each thread runs `first` before its first session.
    ///
    /// # Errors
    /// A thread or its reactor cannot be made, or there is no io_uring where there must be.
    pub fn start(count: usize, engine: Engine, first: fn()) -> Result<Self, WorkersError> {
        let ring = match (engine, ring::probe()) {
            (Engine::Epoll, _) => false,
            (_, Ok(())) => true,
            (Engine::Auto, Err(error)) => {
                tracing::info!(%error, "no io_uring: epoll");
                false
            }
            (Engine::IoUring, Err(error)) => return Err(WorkersError::NoRing(error)),
        };
        let workers = (0..count.max(1)).map(|number| Worker::start(number, ring, first)).collect::<io::Result<_>>()?;
        Ok(Workers { workers, hasher: ahash::RandomState::new(), next: AtomicUsize::new(0) })
    }

    /// Where the tenant is at home.
    pub fn home(&self, tenant: &str) -> &Handle {
        let hash = self.hasher.hash_one(tenant) as usize;
        &self.workers[hash % self.workers.len()].handle
    }

    /// One after the other, for clients whose tenant is not known yet.
    pub fn any(&self) -> &Handle {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        &self.workers[next % self.workers.len()].handle
    }
}

impl Worker {
    fn start(number: usize, ring: bool, first: fn()) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().on_thread_park(ring::before_sleep).build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            first();
            if ring {
                match ring::enter() {
                    Ok(()) => drop(runtime.spawn(ring::drive())),
                    Err(error) => tracing::warn!(%error, "no io_uring for a worker thread: epoll"),
                }
            }
            // Either way it is time to go: told so, or the other side is gone.
            let _ = runtime.block_on(ended);
            drop(runtime);
            ring::leave();
        })?;
        Ok(Worker { handle, end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A worker's own task may hold the last reference: a thread cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static PREPARED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }

    #[test]
    fn every_thread_is_prepared_before_its_first_task() {
        let workers = Workers::start(3, Engine::Auto, || PREPARED.set(true)).unwrap();
        let (told, results) = std::sync::mpsc::channel();
        for _ in 0..3 {
            let told = told.clone();
            workers.any().spawn(async move { told.send(PREPARED.get()) });
        }
        assert!((0..3).all(|_| results.recv().unwrap()));
    }
}
