//! What became of all tenants as a table, by wave and by instance, and who is not where the run leads.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::lifecycle::migrate::state::{Column, Report, Row, State};
use crate::lifecycle::several;

/// Tenants whose trouble is listed.
const LISTED: usize = 20;

/// How many there are of each kind.
pub(super) fn counts(report: &Report) -> Value {
    Column::ALL.iter().map(|column| (column.text().replace(' ', "-"), json!(report.count(*column)))).collect()
}

/// In one line.
pub(super) fn summary(report: &Report) -> String {
    let there = Column::ALL.iter().map(|column| (report.count(*column), column.text()));
    let told: Vec<String> =
        there.filter(|(count, _)| *count > 0).map(|(count, text)| format!("{count} {text}")).collect();
    let stopped = report.stopped.as_ref().map(|why| format!("; stopped: {why}")).unwrap_or_default();
    let all = several(report.tenants.len(), "tenant");
    format!("{} of {all} in {:.1} s{stopped}", told.join(", "), report.seconds)
}

pub(super) fn text(report: &Report) -> String {
    let used: Vec<Column> = Column::ALL.into_iter().filter(|column| report.count(*column) > 0).collect();
    let mut rows: Vec<(String, Vec<usize>)> = Vec::new();
    let mut waves: BTreeMap<(usize, &str), Vec<&Row>> = BTreeMap::new();
    let place = |wave: &str| report.waves.iter().position(|label| label == wave).unwrap_or(report.waves.len());
    let mut instances: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in report.tenants.values() {
        let wave = row.wave.as_deref().map_or((usize::MAX, "in no wave"), |wave| (place(wave), wave));
        waves.entry(wave).or_default().push(row);
        instances.entry(&row.instance).or_default().push(row);
    }
    let count = |rows: &[&Row]| {
        let of = |column: &Column| rows.iter().filter(|row| row.state.column() == *column).count();
        used.iter().map(of).collect::<Vec<usize>>()
    };
    if waves.len() > 1 {
        let name = |&(place, wave): &(usize, &str)| match place {
            usize::MAX => wave.to_owned(),
            _ => format!("wave {wave}"),
        };
        rows.extend(waves.iter().map(|(wave, of)| (name(wave), count(of))));
    }
    if instances.len() > 1 {
        rows.extend(instances.iter().map(|(instance, of)| (format!("instance {instance}"), count(of))));
    }
    rows.push(("all".to_owned(), used.iter().map(|column| report.count(*column)).collect()));
    let mut text = table(&used, &rows);
    text += &troubles(report);
    let _ = writeln!(text, "{}", summary(report));
    text
}

fn table(columns: &[Column], rows: &[(String, Vec<usize>)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = format!("{:width$}", "");
    for column in columns {
        let _ = write!(text, "  {:>11}", column.text());
    }
    text.push('\n');
    for (name, counts) in rows {
        let _ = write!(text, "{name:width$}");
        for count in counts {
            match count {
                0 => text += "            .",
                count => _ = write!(text, "  {count:>11}"),
            }
        }
        text.push('\n');
    }
    text
}

/// Everybody with trouble, those first that nothing but a decision helps; equal ones of many are told once.
fn troubles(report: &Report) -> String {
    let mut by_trouble: BTreeMap<(Column, String), Vec<&str>> = BTreeMap::new();
    for (tenant, row) in &report.tenants {
        let why = match &row.state {
            State::Drift { why } => why.join("; "),
            State::Failed { why, versions } if versions.is_empty() => why.clone(),
            State::Failed { why, versions } => format!("{why} (after {versions:?})"),
            _ => continue,
        };
        by_trouble.entry((row.state.column(), why)).or_default().push(tenant);
    }
    let mut text = String::new();
    for ((column, why), tenants) in by_trouble.iter().take(LISTED) {
        let named = tenants.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let more = if tenants.len() > 5 { format!(" and {} more", tenants.len() - 5) } else { String::new() };
        let _ = writeln!(text, "{}: {named}{more}: {why}", column.text());
    }
    if by_trouble.len() > LISTED {
        let _ = writeln!(text, "… and {} further reasons; --json tells all", by_trouble.len() - LISTED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_counts_by_wave_and_instance() {
        let waves = ["canary", "10%", "rest"].map(str::to_owned).to_vec();
        let mut report = Report { seconds: 1.25, waves, ..Report::default() };
        let mut add = |id: &str, instance: &str, wave: Option<&str>, state: State| {
            let row = Row { instance: instance.to_owned(), wave: wave.map(str::to_owned), version: None, state };
            report.tenants.insert(id.to_owned(), row);
        };
        let migrated = || State::Migrated { versions: vec![1], seconds: 0.5, retries: 0 };
        add("acme", "one", Some("canary"), migrated());
        add("globex", "two", Some("rest"), migrated());
        add("hooli", "two", Some("10%"), migrated());
        add("initech", "two", Some("rest"), State::Failed { why: "it broke".to_owned(), versions: vec![] });
        add("umbrella", "one", None, State::Drift { why: vec!["1_a was edited".to_owned()] });
        let expected = "\
\x20                migrated        drift       failed
wave canary             1            .            .
wave 10%                1            .            .
wave rest               1            .            1
in no wave              .            1            .
instance one            1            1            .
instance two            2            .            1
all                     3            1            1
drift: umbrella: 1_a was edited
failed: initech: it broke
3 migrated, 1 drift, 1 failed of 5 tenants in 1.2 s
";
        assert_eq!(text(&report), expected);
        assert_eq!(counts(&report)["not-reached"], 0);
    }
}
