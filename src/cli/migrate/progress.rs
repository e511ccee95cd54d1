//! What a run tells while it goes on: a bar for each wave on a terminal, lines elsewhere, JSON where it is asked for.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::lifecycle::migrate::bake::Verdict;
use crate::lifecycle::migrate::run::{Event, Listener};
use crate::lifecycle::migrate::state::{Row, State};
use crate::lifecycle::migrate::work::Note;
use crate::lifecycle::several;

/// The bar of the look at all tenants, before the first wave.
const LOOK: &str = "look";

/// See the module.
pub(super) struct Progress {
    json: bool,
    terminal: bool,
    bar: Mutex<ProgressBar>,
    /// Reasons that were told: a dead instance has the same one for all its tenants.
    told: Mutex<BTreeSet<String>>,
}

impl Progress {
    pub fn new(json: bool) -> Progress {
        let terminal = !json && std::io::stderr().is_terminal();
        Progress { json, terminal, bar: Mutex::new(ProgressBar::hidden()), told: Mutex::default() }
    }

    pub fn listener(self: &Arc<Self>) -> Listener {
        let progress = self.clone();
        Arc::new(move |event: &Event<'_>| progress.tell(event))
    }

    /// Something that is not about one tenant.
    pub fn remark(&self, text: &str) {
        match self.json {
            true => println!("{}", json!({ "remark": text })),
            false => self.line(text),
        }
    }

    /// The last bar stays as it is.
    pub fn end(&self) {
        leave(&self.bar());
    }

    fn bar(&self) -> std::sync::MutexGuard<'_, ProgressBar> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Above the bar.
    fn line(&self, text: &str) {
        match self.terminal {
            true => self.bar().suspend(|| eprintln!("{text}")),
            false => eprintln!("{text}"),
        }
    }

    fn trouble(&self, tenant: &str, what: &str, why: &str) {
        if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(why.to_owned()) {
            self.line(&format!("{tenant}: {what}: {why}"));
        }
    }

    fn begin_bar(&self, label: String, length: usize) {
        if !self.terminal {
            return;
        }
        let mut current = self.bar();
        leave(&current);
        let style = ProgressStyle::with_template("{prefix:>14} [{bar:30}] {pos:>4}/{len:<4} {elapsed:>5}  {wide_msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
        let bar = ProgressBar::with_draw_target(Some(length as u64), ProgressDrawTarget::stderr());
        bar.set_style(style);
        bar.set_prefix(label);
        bar.enable_steady_tick(Duration::from_millis(200));
        *current = bar;
    }

    fn tell(&self, event: &Event<'_>) {
        if self.json {
            if let Some(value) = as_json(event) {
                println!("{value}");
            }
            return;
        }
        match event {
            Event::Looks { tenants } => self.begin_bar(LOOK.to_owned(), *tenants),
            Event::Looked => self.bar().inc(1),
            Event::Wave { number, of, wave } => {
                let label = format!("{} ({number}/{of})", wave.label);
                match self.terminal {
                    true => self.begin_bar(label, wave.tenants.len()),
                    false => eprintln!("wave {label}: {}", several(wave.tenants.len(), "tenant")),
                }
            }
            Event::Note { tenant, note: Note::Runs { version } } => {
                self.bar().set_message(format!("{tenant}: {version}"));
            }
            Event::Note { tenant, note: Note::Waits { version, attempt, pause } } => {
                let pause = pause.as_secs_f64();
                self.line(&format!("{tenant}: {version} waits for a lock, attempt {} in {pause:.1} s", attempt + 1));
            }
            Event::Became { tenant, row } => {
                if row.wave.is_some() {
                    let bar = self.bar();
                    bar.inc(1);
                    bar.set_message("");
                }
                match &row.state {
                    State::Failed { why, .. } => self.trouble(tenant, "failed", why),
                    State::Drift { why } => self.trouble(tenant, "drift", &why.join("; ")),
                    _ => {}
                }
            }
            Event::Bakes { wave, time } => {
                self.line(&format!("wave {}: watched for {} s", wave.label, time.as_secs_f64()));
            }
            Event::Baked { wave, verdict } => {
                let text = match verdict {
                    Verdict::Good(text) => format!("well: {text}"),
                    Verdict::NotWatched(why) => format!("not watched: {why}"),
                    Verdict::Bad(text) => format!("not well: {text}"),
                };
                self.line(&format!("wave {}: {text}", wave.label));
            }
            Event::Remark(text) => self.line(text),
        }
    }
}

/// A wave's bar stays, and what follows begins on a line of its own; that of the look goes.
fn leave(bar: &ProgressBar) {
    if bar.is_hidden() || bar.is_finished() {
        return;
    }
    if bar.prefix() == LOOK {
        return bar.finish_and_clear();
    }
    bar.abandon();
    eprintln!();
}

fn as_json(event: &Event<'_>) -> Option<Value> {
    Some(match event {
        Event::Looks { .. } | Event::Looked | Event::Note { note: Note::Runs { .. }, .. } => return None,
        Event::Wave { number, of, wave } => {
            json!({ "wave": wave.label, "number": number, "of": of, "tenants": wave.tenants })
        }
        Event::Note { tenant, note: Note::Waits { version, attempt, pause } } => {
            json!({ "tenant": tenant, "waits": version, "attempt": attempt, "pause": pause.as_secs_f64() })
        }
        Event::Became { tenant, row } => of_row(tenant, row),
        Event::Bakes { wave, time } => json!({ "bakes": wave.label, "seconds": time.as_secs_f64() }),
        Event::Baked { wave, verdict } => {
            let (result, what) = match verdict {
                Verdict::Good(text) => ("good", text),
                Verdict::NotWatched(text) => ("not-watched", text),
                Verdict::Bad(text) => ("bad", text),
            };
            json!({ "baked": wave.label, "result": result, "what": what })
        }
        Event::Remark(text) => json!({ "remark": text }),
    })
}

/// A tenant's row as one object.
pub(super) fn of_row(tenant: &str, row: &Row) -> Value {
    let mut value = json!(row);
    value["tenant"] = tenant.into();
    value
}
