//! The demo: throwaway PostgreSQL instances, a development CA, tenants on them, a proxy in front, and the proof that it
//! does its job. The integration tests build on the same blocks, so that what the demo shows is what the tests prove.
//!
//! - [`postgres`]: a throwaway instance, started, stopped, killed and restarted at will;
//! - [`certificates`]: the development CA;
//! - [`tenant`]: onboards a tenant on an instance and writes its record;
//! - `setup`: all of that once, with the proxy over it;
//! - `proof`: every check, with `client` (logins by each hint), `load` (pgbench) and `psql`; `table` shows it.

pub mod certificates;
mod client;
mod load;
pub mod postgres;
mod postmaster;
mod proof;
mod psql;
mod screen;
mod setup;
mod table;
mod template;
pub mod tenant;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use screen::Screen;
use setup::Site;

#[derive(Debug, Args)]
#[command(after_help = "Example:
  pgtenant demo --once

Exit status: 0 all was proven; 1 something was not, or PostgreSQL is not installed.")]
pub struct DemoArgs {
    /// End after the proof, with exit status 0 or 1.
    #[arg(long)]
    once: bool,
}

/// Runs the demo until Ctrl-C, or until the proof is done; nothing is left behind.
///
/// # Errors
/// Something could not be started, the proof failed, or it was interrupted before its end.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let result = runtime.block_on(demo(args.once));
    // Waits for an instance that is just being made: it ends as nobody takes it.
    drop(runtime);
    result
}

async fn demo(once: bool) -> anyhow::Result<()> {
    let mut ends = ends()?;
    let screen = Screen::new();
    screen.heading("pgtenant demo: one endpoint, three tenants, every tenant its own PostgreSQL")?;
    let site = tokio::select! {
        site = Site::set_up(&screen) => site?,
        _ = ends.recv() => anyhow::bail!("interrupted during the set-up; everything is removed again"),
    };
    let shown = show(&site, &screen, once, &mut ends).await;
    let removed = site.remove(async { ends.recv().await.unwrap_or_default() }).await;
    shown.and(removed)?;
    screen.print("Done: proxy, instances and folders are gone.\n")?;
    Ok(())
}

/// Proves, prints, and serves until it is told to end.
async fn show(site: &Site, screen: &Screen, once: bool, ends: &mut mpsc::Receiver<()>) -> anyhow::Result<()> {
    let rows = tokio::select! {
        rows = proof::prove(site, screen) => rows?,
        _ = ends.recv() => anyhow::bail!("interrupted during the proof; everything is removed again"),
    };
    screen.print(&format!("\n{}\n", table::render(&rows, screen.colour)))?;
    if let Some(failures) = table::failures(&rows) {
        anyhow::bail!("{failures}\nthe proxy's log ends:\n{}", site.log_end());
    }
    if once {
        return Ok(());
    }
    screen.heading("Try it in another terminal")?;
    screen.print(&psql::invitation(site))?;
    let (proxy, http, folder) = (site.address(), site.http_address(), site.folder().display());
    screen.print(&format!(
        "\n  proxy    {proxy}\n  metrics  http://{http}/metrics\n  folder   {folder} (proxy.toml, tenants.d, proxy.log)\n"
    ))?;
    screen.print("\nServing until Ctrl-C.\n")?;
    ends.recv().await;
    screen.print("\nFinishing transactions; Ctrl-C again ends at once.\n")?;
    Ok(())
}

/// Tells of each SIGINT, SIGTERM and SIGHUP (the terminal is closed): all of them end the demo, orderly.
fn ends() -> anyhow::Result<mpsc::Receiver<()>> {
    let (tell, told) = mpsc::channel(4);
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals = signal(kind).context("cannot listen to signals")?;
        let tell = tell.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                // A full channel holds more than enough of them.
                let _ = tell.try_send(());
            }
        });
    }
    Ok(told)
}
