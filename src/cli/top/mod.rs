//! `pgtenant top`: a running proxy's tenants in a terminal, over its JSON API.

mod screen;
mod terminal;

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;

use super::EndpointArgs;
use crate::admin::ask::Endpoint;
use crate::admin::survey::{Instances, Order, Sort, Tenants};
use screen::{Look, State};
use terminal::{Key, Terminal};

/// Longest answer that is read, in bytes: a thousand tenants take about one.
const MAX_ANSWER: usize = 8 << 20;
/// Without a terminal that would say how wide it is.
const WIDTH: usize = 120;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant top
  pgtenant top --once --sort waiting --limit 3
  pgtenant top --url https://10.0.0.5:9930 --ca ca.crt --token-file http.token

Exit status: 0 ended by its user, or printed; 1 the proxy does not answer, or not to us; 2 the arguments.")]
pub struct TopArgs {
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// Sort by score, id, instance, clients, waiting, wait, backends, use, queries, errors, pins or busy.
    #[arg(long, default_value = "score", value_parser = sort)]
    sort: Sort,
    /// Show only tenants with all these words in id, instance, region, tier, state or reasons.
    #[arg(long, default_value = "")]
    filter: String,
    /// Tenants that --once prints.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 2.0)]
    interval: f64,
    /// Print one look and end, as is done where standard output is no terminal.
    #[arg(long)]
    once: bool,
}

fn sort(text: &str) -> Result<Sort, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

/// Shows tenants until `q` is pressed, or prints them once.
pub fn run(args: &TopArgs) -> anyhow::Result<()> {
    let endpoint = args.endpoint.endpoint()?;
    let mut state = State { sort: args.sort, filter: args.filter.clone(), ..State::default() };
    if args.once || !stdout().is_terminal() {
        let look = ask(&endpoint, &state, args.limit)?;
        let lines = screen::once(&look, &state, WIDTH);
        // Whoever reads may have had enough (`| head`).
        let _ = std::io::Write::write_all(&mut stdout(), lines.as_bytes());
        return Ok(());
    }
    let interval = Duration::try_from_secs_f64(args.interval.clamp(0.2, 3600.0)).context("--interval")?;
    let first = ask(&endpoint, &state, 1)?;
    drop(first);
    let mut terminal = Terminal::begin()?;
    watch(&mut terminal, &endpoint, &mut state, interval)
}

fn watch(terminal: &mut Terminal, endpoint: &Endpoint, state: &mut State, interval: Duration) -> anyhow::Result<()> {
    let mut look = None;
    let mut due = Instant::now();
    loop {
        let (width, height) = terminal.size();
        if !state.paused && Instant::now() >= due {
            match ask(endpoint, state, height + state.offset) {
                Ok(taken) => (look, state.trouble) = (Some(taken), None),
                // What was there is shown on: the proxy may be back in a moment.
                Err(error) => state.trouble = Some(format!("{error:#}")),
            }
            due = Instant::now() + interval;
        }
        terminal.draw(&screen::lines(look.as_ref(), state, width, height))?;
        let left = if state.paused { Duration::from_secs(3600) } else { due.saturating_duration_since(Instant::now()) };
        if let Some(key) = terminal.key(left)? {
            match state.press(key, height) {
                screen::Pressed::End => return Ok(()),
                screen::Pressed::AskAgain => due = Instant::now(),
                screen::Pressed::Draw => {}
            }
        }
    }
}

fn ask(endpoint: &Endpoint, state: &State, limit: usize) -> anyhow::Result<Look> {
    let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut path = format!("/api/v1/tenants?limit={limit}&sort={}", word(serde_json::to_value(state.sort)?));
    if let Some(order) = state.order {
        path += &format!("&order={}", word(serde_json::to_value::<Order>(order)?));
    }
    if !state.filter.is_empty() {
        path += &format!("&filter={}", escaped(&state.filter));
    }
    let tenants: Tenants = serde_json::from_str(&get(endpoint, &path)?).context("the proxy's answer is not ours")?;
    let instances: Instances = serde_json::from_str(&get(endpoint, "/api/v1/instances")?)?;
    Ok(Look { tenants, instances: instances.instances })
}

fn get(endpoint: &Endpoint, path: &str) -> anyhow::Result<String> {
    let answer = endpoint.get(path, MAX_ANSWER)?;
    if answer.status == 200 {
        return Ok(answer.body);
    }
    let told: Option<serde_json::Value> = serde_json::from_str(&answer.body).ok();
    let reason = told.as_ref().and_then(|it| it["error"].as_str()).unwrap_or("not what pgtenant answers");
    let hint = if answer.status == 401 { "; give it with --token-file or PGTENANT_HTTP_TOKEN" } else { "" };
    bail!("{} refuses: {reason}{hint} (HTTP {})", endpoint.url, answer.status)
}

/// For the query part of a URL (RFC 3986 section 2.3).
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_travel_as_they_are() {
        assert_eq!(escaped("acme eu-1&limit=9%é"), "acme%20eu-1%26limit%3D9%25%C3%A9");
    }

    #[test]
    fn sorts_are_those_of_the_api() {
        assert_eq!(sort("use"), Ok(Sort::Use));
        assert!(sort("size").unwrap_err().contains("score"));
    }
}
