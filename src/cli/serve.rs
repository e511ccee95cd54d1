//! `pgtenant serve`: the proxy, until it is told to end.

use std::future::pending;

use anyhow::Context as _;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::admin::console::Shutdown;
use crate::app::App;
use crate::logging;
use crate::reload::{self, Source};

/// Runs until SIGTERM or SIGINT has drained it; a second one ends it at once. SIGHUP reads the configuration again.
pub fn run(source: Source) -> anyhow::Result<()> {
    // Read once before anything is logged: how to log is written there.
    let loaded = reload::load(&source).map_err(|error| anyhow::anyhow!("the configuration cannot be used\n{error}"))?;
    logging::init(&loaded.config.log)?;
    drop(loaded);
    // The sessions have their own threads: this one accepts, reloads and answers HTTP.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(source))
}

async fn serve(source: Source) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let app = App::start(source).await?;
    for address in app.addresses() {
        tracing::info!(%address, "listening");
    }
    if let Some(address) = app.http_address() {
        tracing::info!(%address, "metrics and health");
    }
    notify(&[NotifyState::Ready]);
    let mut shutdowns = app.shutdowns();
    let how = loop {
        tokio::select! {
            told = signals.next() => match told {
                // The log has the outcome.
                Told::Reload => _ = tokio::task::spawn_blocking(app.reload()).await,
                Told::End => break Shutdown::Transactions,
            },
            how = told_to_end(&mut shutdowns, |_| true) => break how,
        }
    };
    notify(&[NotifyState::Stopping]);
    if how == Shutdown::Clients {
        tokio::select! {
            () = app.clients_gone() => {}
            () = signals.end() => {}
            _ = told_to_end(&mut shutdowns, |how| how != Shutdown::Clients) => {}
        }
    }
    app.drain(async {
        tokio::select! {
            () = signals.end() => {}
            _ = told_to_end(&mut shutdowns, |how| how == Shutdown::Now) => {}
        }
    })
    .await;
    tracing::info!("ended");
    Ok(())
}

/// Waits until the console is told to end the process like this.
async fn told_to_end(shutdowns: &mut watch::Receiver<Option<Shutdown>>, wanted: impl Fn(Shutdown) -> bool) -> Shutdown {
    match shutdowns.wait_for(|how| how.is_some_and(&wanted)).await {
        Ok(how) => how.unwrap_or(Shutdown::Transactions),
        // The console is gone, and tells nobody any more.
        Err(_) => pending().await,
    }
}

/// Without systemd there is nobody to tell.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "service manager not told");
    }
}

enum Told {
    Reload,
    End,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits until the process is told to end.
    async fn end(&mut self) {
        while let Told::Reload = self.next().await {}
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            Some(()) = self.terminate.recv() => Told::End,
            Some(()) = self.interrupt.recv() => Told::End,
            Some(()) = self.hang_up.recv() => Told::Reload,
            else => pending().await,
        }
    }
}
