//! The signal to finish: sessions end at their next safe point, and the process waits for them.

use tokio::sync::watch;

/// How far the process is in ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Running,
    /// No new clients; transactions finish, then their sessions are closed with 57P01.
    Draining,
    /// The deadline has passed or a second signal came: everything ends at once.
    Ended,
}

/// One side tells, everybody else watches.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
}

impl Default for Drain {
    fn default() -> Self {
        Drain { phase: watch::Sender::new(Phase::Running) }
    }
}

impl Drain {
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let later = phase > *current;
            if later {
                *current = phase;
            }
            later
        });
    }

    /// Waits until `phase` or a later one is reached.
    pub async fn reached(&self, phase: Phase) {
        let mut watch = self.phase.subscribe();
        watch.wait_for(|current| *current >= phase).await.expect("self holds the sender");
    }
}
