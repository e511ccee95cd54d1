//! How far pg_dump or pg_restore is, for who sits at a terminal: from `pg_stat_progress_copy`, against tables' sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::contents::fields;
use super::manifest::Table;
use crate::lifecycle::instance::Instance;
use crate::lifecycle::quote::literal;

const LOOK: Duration = Duration::from_millis(200);
/// The bar goes on turning between two looks.
const TURN: Duration = Duration::from_millis(100);

/// A bar on standard error, or nothing.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// `shown`: on a terminal only, whatever it says.
    pub fn new(shown: bool, whose: &str) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        bar.set_prefix(whose.to_owned());
        let progress = Progress { bar };
        progress.step("begins");
        // Only now: it would be drawn in another style first.
        if shown {
            progress.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        progress
    }

    /// What is done now, of which nobody knows how long it takes.
    pub fn step(&self, what: &str) {
        self.show("{prefix}  {spinner} {elapsed:>4}  {wide_msg}", what);
    }

    fn show(&self, template: &str, what: &str) {
        let style = ProgressStyle::with_template(template).expect("a template").progress_chars("=> ");
        self.bar.set_message(what.to_owned());
        self.bar.set_style(style);
        self.bar.enable_steady_tick(TURN);
    }

    /// Follows the copies of a database's tables until it is dropped. Sizes are estimates: what is copied is text, what
    /// lies on the disk is not.
    pub async fn follow(&self, what: &str, instance: &Instance, database: &str, tables: &[Table]) -> Infallible {
        if self.bar.is_hidden() {
            return std::future::pending().await;
        }
        let sizes: BTreeMap<String, u64> = tables.iter().map(|table| (table.full_name(), table.bytes)).collect();
        self.bar.set_length(sizes.values().sum());
        let template = "{prefix}  {spinner} {elapsed:>4}  [{bar:20}] {bytes} of ~{total_bytes}  {wide_msg}";
        self.show(template, what);
        let mut seen = Seen::default();
        loop {
            // A look that fails is not worth a word: the tool itself will say what is wrong.
            if let Some(copies) = look(instance, database).await {
                let names: Vec<&str> = copies.keys().map(String::as_str).collect();
                if !names.is_empty() {
                    self.bar.set_message(format!("{what} {}", names.join(", ")));
                }
                self.bar.set_position(seen.position(&copies, &sizes));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Bytes copied by table, of those that are being copied.
async fn look(instance: &Instance, database: &str) -> Option<BTreeMap<String, u64>> {
    let client = instance.look(database).await.ok()?;
    let sql = format!(
        "SELECT n.nspname || '.' || c.relname, p.bytes_processed
           FROM pg_stat_progress_copy p JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE p.datname = {}",
        literal(database)
    );
    let rows = instance.rows(&client, "ask how far it is", &sql).await.ok()?;
    let copies = rows.into_iter().map(|row| {
        let [table, bytes] = fields(row);
        (table, bytes.parse().unwrap_or_default())
    });
    Some(copies.collect())
}

/// Tables that were seen being copied: those that no longer are have been copied.
#[derive(Default)]
struct Seen {
    begun: BTreeSet<String>,
    reached: u64,
}

impl Seen {
    /// Bytes of the tables' sizes; never less than before.
    fn position(&mut self, copies: &BTreeMap<String, u64>, sizes: &BTreeMap<String, u64>) -> u64 {
        self.begun.extend(copies.keys().cloned());
        let size = |table: &String| sizes.get(table).copied().unwrap_or_default();
        let position = self.begun.iter().map(|table| match copies.get(table) {
            Some(&bytes) => bytes.min(size(table)),
            None => size(table),
        });
        self.reached = self.reached.max(position.sum());
        self.reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_never_goes_back() {
        let sizes = BTreeMap::from([("a".to_owned(), 100), ("b".to_owned(), 50)]);
        let mut seen = Seen::default();
        let copies = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
        assert_eq!(seen.position(&copies(&[("a", 30)]), &sizes), 30);
        assert_eq!(seen.position(&copies(&[("a", 300)]), &sizes), 100);
        assert_eq!(seen.position(&copies(&[("b", 20)]), &sizes), 120);
        assert_eq!(seen.position(&copies(&[("b", 10)]), &sizes), 120);
        assert_eq!(seen.position(&copies(&[]), &sizes), 150);
    }
}
