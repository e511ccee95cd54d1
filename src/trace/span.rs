//! Spans as they were measured, before anybody has decided to keep them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::parent::Parent;

/// What a span is of (OpenTelemetry's SpanKind).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Internal = 1,
    Server = 2,
    Client = 3,
}

/// A part of the time.
#[derive(Debug)]
pub(super) struct Part {
    pub name: &'static str,
    pub kind: Kind,
    pub begin: Instant,
    pub end: Instant,
}

/// A root span with the parts that it is made of.
#[derive(Debug)]
pub(super) struct Trace {
    pub name: &'static str,
    pub parent: Option<Parent>,
    pub begin: Instant,
    pub end: Instant,
    pub parts: Vec<Part>,
    pub attributes: Vec<(&'static str, String)>,
    /// What went wrong.
    pub failure: Option<String>,
}

impl Trace {
    pub fn took(&self) -> Duration {
        self.end.saturating_duration_since(self.begin)
    }
}

/// Turns the monotonic clock into the time of day.
pub(super) struct Clock {
    instant: Instant,
    since_epoch: Duration,
}

impl Clock {
    pub fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { instant: Instant::now(), since_epoch }
    }

    /// Nanoseconds since 1970, as OTLP's JSON has them: 64 bits in a string.
    pub fn nanos(&self, at: Instant) -> String {
        let ago = self.instant.saturating_duration_since(at);
        self.since_epoch.saturating_sub(ago).as_nanos().to_string()
    }
}
