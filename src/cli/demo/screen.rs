//! The demo's terminal: a line for each step, with its time; colour only where there is a terminal.

use std::io::{self, IsTerminal, Write, stdout};
use std::time::Instant;

/// So that the times stand in a column.
const STEP_WIDTH: usize = 60;

/// Standard output. A closed one is an error, which ends the demo as any other does, and no panic.
pub(super) struct Screen {
    pub(super) colour: bool,
}

impl Screen {
    pub(super) fn new() -> Screen {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen { colour: wanted && stdout().is_terminal() }
    }

    pub(super) fn print(&self, text: &str) -> io::Result<()> {
        let mut out = stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Bold, where there is colour.
    pub(super) fn heading(&self, text: &str) -> io::Result<()> {
        self.print(&if self.colour { format!("\x1b[1m{text}\x1b[0m\n") } else { format!("{text}\n") })
    }

    /// Says what begins, does it, and adds how long it took.
    pub(super) async fn step<T>(&self, what: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.print(&format!("  {what:STEP_WIDTH$}"))?;
        let line = OpenLine { screen: self, begun: Instant::now(), done: false };
        let result = work.await?;
        line.finish()?;
        Ok(result)
    }
}

/// A step under way; its line is ended also when the step fails or is interrupted.
struct OpenLine<'a> {
    screen: &'a Screen,
    begun: Instant,
    done: bool,
}

impl OpenLine<'_> {
    fn finish(mut self) -> io::Result<()> {
        self.done = true;
        self.screen.print(&format!("{:5.1} s\n", self.begun.elapsed().as_secs_f64()))
    }
}

impl Drop for OpenLine<'_> {
    fn drop(&mut self) {
        if !self.done {
            // The failure itself is reported by whoever gets it.
            let _ = self.screen.print("\n");
        }
    }
}
