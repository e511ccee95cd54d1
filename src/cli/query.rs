//! `pgtenant query`: asks many tenants the same, and says who answered.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::ConfigArgs;
use crate::config::duration;
use crate::lifecycle::query::format::{self, Format};
use crate::lifecycle::query::{Ask, Outcome, Plan, plan, run as ask_tenants};
use crate::lifecycle::{Failure, Site};
use crate::reload;
use crate::select::Selector;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant query --select all \"select count(*) from orders\"
  pgtenant query --select tier=gold,state=active --format csv -o orders.csv \"select id, total from orders\"
  pgtenant query --select region=eu --region eu \\
    --merge \"select tenant, n from all_tenants order by n desc limit 10\" \"select count(*) as n from orders\"

Each tenant is asked by a login that only reads, in a transaction that only reads, and the answers get a column tenant
before their own. They are taken one after the other: together they are not one consistent snapshot.

Exit status: 0 all have answered; 1 some have failed, were not asked, or had more rows than were taken; 2 nobody has
answered, or it is not possible as ordered.")]
pub(super) struct QueryArgs {
    /// Whom to ask: all, or terms such as tier=gold,region=eu|us,state!=suspended.
    #[arg(long, value_name = "SELECTOR")]
    select: Selector,
    /// One query that gives rows.
    sql: String,
    /// A query over the answers, which are the table all_tenants; its rows are the result.
    #[arg(long, value_name = "SQL")]
    merge: Option<String>,
    /// How the result is written.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// The same as --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Where it goes, with mode 0600; standard output without it.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Longest time for one tenant; default: query.timeout.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Most rows of one tenant; default: query.max_rows.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    max_rows: Option<u64>,
    /// Where this is: tenants that are pinned to a region are asked only there; default: query.region.
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// The instance where answers are merged; default: query.scratch_instance, or one of the tenants'.
    #[arg(long, value_name = "INSTANCE")]
    scratch_instance: Option<String>,
    /// Say who would be asked, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: QueryArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(carry_out(args)));
    result.unwrap_or_else(|error| {
        eprintln!("pgtenant: {}", super::told(&error));
        // Whatever it was: there is no result.
        ExitCode::from(2)
    })
}

async fn carry_out(args: QueryArgs) -> anyhow::Result<ExitCode> {
    let config = Arc::new(reload::load(&args.config.source())?.config);
    let tenants = args.select.select(&config)?;
    let known = &config.query;
    let ask = Ask {
        sql: args.sql,
        merge: args.merge,
        timeout: args.timeout.unwrap_or(known.timeout),
        max_rows: args.max_rows.unwrap_or(known.max_rows),
        region: args.region.or_else(|| known.region.clone()),
        scratch_instance: args.scratch_instance.or_else(|| known.scratch_instance.clone()),
        selector: args.select.to_string(),
    };
    let format = if args.json { Format::Json } else { args.format };
    if format == Format::Parquet && args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(Failure::Order("a Parquet file is not for a terminal: name one with -o".to_owned()).into());
    }
    let site = Arc::new(Site::new(config, None));
    let plan = plan(&site, tenants, &ask)?;
    if args.dry_run {
        say_plan(&plan, format == Format::Json);
        return Ok(ExitCode::SUCCESS);
    }
    let max_rows = ask.max_rows;
    let bar = bar(plan.asked.len());
    let result = ask_tenants(&site, plan, ask, &|tenant| {
        bar.inc(1);
        bar.set_message(tenant.to_owned());
    })
    .await;
    bar.finish_and_clear();
    let result = result?;
    if result.status() < 2 || format == Format::Json {
        let bytes = format::formatted(&result, format, max_rows)?;
        match &args.output {
            Some(path) => format::save(path, &bytes)?,
            None => std::io::stdout().write_all(&bytes)?,
        }
    }
    for (tenant, outcome) in &result.outcomes {
        match outcome {
            Outcome::Answered { .. } => {}
            Outcome::Failed(why) => eprintln!("! {tenant}: {why}"),
            Outcome::Skipped(why) => eprintln!("- {tenant}: not asked: {why}"),
        }
    }
    // Programs that read the result must not find a line of ours in it.
    let summary = result.summary(max_rows);
    match format == Format::Table && args.output.is_none() {
        true => println!("{summary}"),
        false => eprintln!("{summary}"),
    }
    Ok(ExitCode::from(result.status()))
}

/// How many have answered, for who sits at a terminal; gone when the result comes.
fn bar(tenants: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("query [{bar:30}] {pos:>4}/{len:<4} {elapsed:>5}  {wide_msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(Some(tenants as u64), ProgressDrawTarget::stderr()).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn say_plan(plan: &Plan, as_json: bool) {
    let asked: Vec<&str> = plan.asked.iter().map(|tenant| tenant.id.as_str()).collect();
    if as_json {
        let plan = json!({ "would_ask": asked, "skipped": plan.skipped, "would_merge_on": plan.scratch });
        return println!("{}", json!({ "dry_run": true, "plan": plan }));
    }
    for tenant in &plan.asked {
        println!("would ask {} on instance {}", tenant.id, tenant.instance.name);
    }
    for (tenant, why) in &plan.skipped {
        println!("would not ask {tenant}: {why}");
    }
    if let Some(place) = &plan.scratch {
        println!("would merge on instance {place}");
    }
}
