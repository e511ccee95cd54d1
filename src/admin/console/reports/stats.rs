//! What tenants did: SHOW STATS and its relatives.

use std::sync::PoisonError;

use super::super::View;
use super::super::averages::Sample;
use super::super::table::{Row, Value, row};
use super::tenants::sorted;

/// The columns behind `database`, in their order. What is not counted by tenant is 0.
fn figures(sample: &Sample) -> [u64; 11] {
    let Sample { transactions, queries, received, sent, query_micros, wait_micros } = *sample;
    [0, transactions, queries, received, sent, 0, query_micros, wait_micros, 0, 0, 0]
}

const NAMES: [&str; 11] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "received",
    "sent",
    "xact_time",
    "query_time",
    "wait_time",
    "client_parse_count",
    "server_parse_count",
    "bind_count",
];

/// Name, totals and averages of each tenant.
fn samples(view: View<'_>) -> Vec<(String, Sample, Sample)> {
    let averages = view.console.averages.lock().unwrap_or_else(PoisonError::into_inner);
    let sample = |name: &str, stats| (name.to_owned(), Sample::of(stats), averages.of(name));
    sorted(view).iter().map(|tenant| sample(tenant.id.as_str(), &tenant.stats)).collect()
}

fn with_name(name: String, figures: impl IntoIterator<Item = u64>) -> Row {
    std::iter::once(Value::from(name)).chain(figures.into_iter().map(Value::from)).collect()
}

pub(super) fn stats(view: View<'_>) -> Vec<Row> {
    let row = |(name, total, average)| with_name(name, figures(&total).into_iter().chain(figures(&average)));
    samples(view).into_iter().map(row).collect()
}

pub(super) fn totals_by_tenant(view: View<'_>) -> Vec<Row> {
    samples(view).into_iter().map(|(name, total, _)| with_name(name, figures(&total))).collect()
}

pub(super) fn averages(view: View<'_>) -> Vec<Row> {
    samples(view).into_iter().map(|(name, _, average)| with_name(name, figures(&average))).collect()
}

/// Over all tenants. The averages of times are weighted by the queries that they are of.
pub(super) fn totals(view: View<'_>) -> Vec<Row> {
    let (mut total, mut average) = ([0_u64; 11], [0_u64; 11]);
    let mut busy = 0_u64;
    for (_, of_tenant, lately) in samples(view) {
        let add = |sums: &mut [u64; 11], figures: [u64; 11]| {
            sums.iter_mut().zip(figures).for_each(|(sum, figure)| *sum = sum.saturating_add(figure));
        };
        add(&mut total, figures(&of_tenant));
        add(&mut average, figures(&lately));
        busy = busy.saturating_add(lately.query_micros.saturating_mul(lately.queries));
    }
    average[6] = busy / average[2].max(1);
    let rows = |prefix: &str, figures: [u64; 11]| {
        let name = |name: &str| match (prefix, name) {
            ("avg_", "received") => "avg_recv".to_owned(),
            _ => format!("{prefix}{name}"),
        };
        NAMES.iter().zip(figures).map(|(it, figure)| row![name(it), figure]).collect::<Vec<Row>>()
    };
    [rows("total_", total), rows("avg_", average)].concat()
}
