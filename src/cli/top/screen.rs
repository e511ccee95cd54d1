//! What `top` shows, as text: pure, whatever the terminal.

use super::Key;
use crate::admin::survey::{Instance, Order, Sort, TenantFigures, Tenants};

/// Instances that are listed.
const MAX_INSTANCES: usize = 4;
/// From this score on a tenant's reasons stand out.
const HOT: f64 = 30.0;

/// What the proxy said.
pub(super) struct Look {
    pub tenants: Tenants,
    pub instances: Vec<Instance>,
}

/// What the reader wishes.
#[derive(Default)]
pub(super) struct State {
    pub sort: Sort,
    /// None: the sort's own.
    pub order: Option<Order>,
    pub filter: String,
    /// The filter as it was before it is typed.
    pub typing: Option<String>,
    pub paused: bool,
    /// First tenant that is shown.
    pub offset: usize,
    pub help: bool,
    /// Why the last look failed.
    pub trouble: Option<String>,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pressed {
    End,
    AskAgain,
    Draw,
}

/// How a part of a line looks. None of it is the only sign of anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Bold,
    Soft,
    /// Column heads.
    Reversed,
    Hot,
}

impl Style {
    /// The escape sequence (ECMA-48 SGR); reset after each part.
    pub fn attributes(self, colours: bool) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Bold => "\x1b[1m",
            Style::Soft if colours => "\x1b[2m",
            Style::Soft => "",
            Style::Reversed => "\x1b[7m",
            Style::Hot if colours => "\x1b[1;31m",
            Style::Hot => "\x1b[1m",
        }
    }
}

/// One line, no wider than the screen.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub parts: Vec<(String, Style)>,
}

impl Line {
    fn new(text: impl Into<String>, style: Style) -> Self {
        Line { parts: vec![(text.into(), style)] }
    }

    /// Cuts what is beyond `width`.
    fn cut(mut self, width: usize) -> Self {
        let mut left = width;
        for (text, _) in &mut self.parts {
            *text = text.chars().filter(|letter| !letter.is_control()).take(left).collect();
            left -= text.chars().count();
        }
        self
    }

    fn text(&self) -> String {
        self.parts.iter().map(|(text, _)| text.as_str()).collect::<String>().trim_end().to_owned()
    }
}

struct Column {
    title: &'static str,
    key: char,
    sort: Sort,
    width: usize,
    right: bool,
    /// Columns with a higher one go first where the screen is narrow.
    rank: u8,
    text: fn(&TenantFigures) -> String,
}

#[rustfmt::skip]
const COLUMNS: [Column; 12] = [
    Column { title: "TENANT", key: 'n', sort: Sort::Id, width: 20, right: false, rank: 0, text: |t| t.id.clone() },
    Column { title: "SCORE", key: 's', sort: Sort::Score, width: 6, right: true, rank: 0, text: |t| number(t.score) },
    Column { title: "WHY", key: 's', sort: Sort::Score, width: 14, right: false, rank: 1, text: why },
    Column { title: "WAITING", key: 'w', sort: Sort::Waiting, width: 8, right: true, rank: 0, text: |t| t.waiting.to_string() },
    Column { title: "LONGEST", key: 'l', sort: Sort::Wait, width: 8, right: true, rank: 3, text: longest },
    Column { title: "BACKENDS", key: 'b', sort: Sort::Backends, width: 19, right: false, rank: 1, text: backends },
    Column { title: "QUOTA", key: 'u', sort: Sort::Use, width: 6, right: true, rank: 2, text: |t| percent(t.highest_use) },
    Column { title: "CLIENTS", key: 'c', sort: Sort::Clients, width: 8, right: true, rank: 2, text: |t| t.clients.to_string() },
    Column { title: "QUERIES/s", key: 't', sort: Sort::Queries, width: 10, right: true, rank: 1, text: |t| number(t.rates.queries) },
    Column { title: "ERRORS/s", key: 'e', sort: Sort::Errors, width: 9, right: true, rank: 2, text: |t| number(t.rates.errors) },
    Column { title: "PINS", key: 'p', sort: Sort::Pins, width: 5, right: true, rank: 3, text: |t| t.pins.to_string() },
    Column { title: "INSTANCE", key: 'i', sort: Sort::Instance, width: 12, right: false, rank: 4, text: |t| t.instance.clone() },
];

fn number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.1}M", value / 1e6),
        value if value >= 1e4 => format!("{:.1}k", value / 1e3),
        value if value >= 100.0 || value == value.round() => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

fn percent(part: f64) -> String {
    if part > 0.0 { format!("{:.0}%", part * 100.0) } else { "-".to_owned() }
}

fn seconds(value: f64) -> String {
    match value {
        value if value <= 0.0 => "-".to_owned(),
        value if value < 1.0 => format!("{:.0}ms", value * 1e3),
        value if value < 100.0 => format!("{value:.1}s"),
        value => format!("{:.0}min", value / 60.0),
    }
}

fn longest(tenant: &TenantFigures) -> String {
    seconds(tenant.longest_wait_seconds)
}

fn why(tenant: &TenantFigures) -> String {
    match tenant.state.as_str() {
        "active" => tenant.why.join(" "),
        state => [&[state.to_owned()], &tenant.why[..]].concat().join(" "),
    }
}

fn bar(part: f64, width: usize) -> String {
    let full = (part.clamp(0.0, 1.0) * width as f64).round() as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(width - full))
}

fn backends(tenant: &TenantFigures) -> String {
    let used = tenant.backends.active + tenant.backends.connecting;
    match tenant.quotas.iter().find(|quota| quota.quota == "max_backends") {
        Some(quota) => {
            format!("{} {used}/{}", bar(quota.used_part(), 8), quota.limit.map_or("-".to_owned(), number))
        }
        None => used.to_string(),
    }
}

/// The columns that fit, with the room that each gets.
fn fitting(width: usize) -> Vec<(&'static Column, usize)> {
    let mut columns: Vec<(&Column, usize)> = COLUMNS.iter().map(|column| (column, column.width)).collect();
    let taken = |columns: &[(&Column, usize)]| columns.iter().map(|(_, width)| width + 2).sum::<usize>() - 2;
    while taken(&columns) > width {
        let Some(last) = columns.iter().map(|(column, _)| column.rank).max().filter(|rank| *rank > 0) else { break };
        let at = columns.iter().rposition(|(column, _)| column.rank == last).expect("the highest is among them");
        columns.remove(at);
    }
    let spare = width.saturating_sub(taken(&columns)).min(43);
    columns[0].1 += spare;
    columns
}

fn head(columns: &[(&'static Column, usize)], state: &State) -> String {
    let title = |column: &Column| match column.sort == state.sort && column.title != "WHY" {
        true if column.right => format!(">{}", column.title),
        true => format!("{}<", column.title),
        false => column.title.to_owned(),
    };
    let cells = columns.iter().map(|(column, width)| cell(&title(column), *width, column.right));
    cells.collect::<Vec<_>>().join("  ")
}

fn cell(text: &str, width: usize, right: bool) -> String {
    let cut: String = match text.chars().count() > width && !right {
        true => text.chars().take(width.saturating_sub(1)).chain(['~']).collect(),
        false => text.to_owned(),
    };
    if right { format!("{cut:>width$}") } else { format!("{cut:<width$}") }
}

fn row(tenant: &TenantFigures, columns: &[(&'static Column, usize)]) -> Line {
    let mut line = Line::default();
    for (column, width) in columns {
        let style = match column.title {
            "TENANT" => Style::Bold,
            "WHY" if tenant.score >= HOT || tenant.state != "active" => Style::Hot,
            _ => Style::Plain,
        };
        line.parts.push((cell(&(column.text)(tenant), *width, column.right), style));
        line.parts.push(("  ".to_owned(), Style::Plain));
    }
    line.parts.pop();
    line
}

fn summary(tenants: &Tenants) -> String {
    let (totals, rates) = (&tenants.totals, &tenants.totals.rates);
    format!(
        "{} tenants, {} hurt | {} clients, {} waiting, {} pinned | {} backends in use | {} queries/s, {} errors/s",
        tenants.total,
        totals.hurting,
        totals.clients,
        totals.waiting,
        totals.pins,
        totals.backends.active + totals.backends.connecting,
        number(rates.queries),
        number(rates.errors)
    )
}

fn of_instance(instance: &Instance, name_width: usize) -> String {
    let used = instance.backends.active + instance.backends.connecting;
    let part = used as f64 / instance.max_backends.max(1) as f64;
    format!(
        "{:<name_width$}  {} {used}/{} backends, headroom {}, {} waiting, {} queries/s, {} tenants",
        instance.name,
        bar(part, 16),
        instance.max_backends,
        instance.headroom,
        instance.waiting,
        number(instance.rates.queries),
        instance.tenants
    )
}

fn instances(look: &Look) -> Vec<Line> {
    let shown = &look.instances[..look.instances.len().min(MAX_INSTANCES)];
    let name_width = shown.iter().map(|it| it.name.chars().count()).max().unwrap_or(0);
    let mut lines: Vec<Line> =
        shown.iter().map(|instance| Line::new(of_instance(instance, name_width), Style::Plain)).collect();
    if look.instances.len() > shown.len() {
        let more = look.instances.len() - shown.len();
        lines.push(Line::new(format!("and {more} instances with more headroom"), Style::Soft));
    }
    lines
}

/// Everything, for a pipe or file.
pub(super) fn once(look: &Look, state: &State, width: usize) -> String {
    let columns = fitting(width);
    let mut lines = vec![Line::new(summary(&look.tenants), Style::Plain)];
    lines.extend(instances(look));
    lines.push(Line::default());
    lines.push(Line::new(head(&columns, state), Style::Plain));
    lines.extend(look.tenants.tenants.iter().map(|tenant| row(tenant, &columns)));
    lines.into_iter().map(|line| line.cut(usize::MAX).text() + "\n").collect()
}

/// The screen of a terminal of this size.
pub(super) fn lines(look: Option<&Look>, state: &State, width: usize, height: usize) -> Vec<Line> {
    let mut lines = vec![title(look, state)];
    if state.help {
        lines.extend(HELP.lines().map(|line| Line::new(line, Style::Plain)));
    } else if let Some(look) = look {
        lines.push(Line::new(summary(&look.tenants), Style::Plain));
        lines.extend(instances(look));
        lines.push(Line::default());
        let columns = fitting(width);
        lines.push(Line::new(format!("{:<width$}", head(&columns, state)), Style::Reversed));
        let room = height.saturating_sub(lines.len() + 1);
        let shown = look.tenants.tenants.iter().skip(state.offset).take(room);
        lines.extend(shown.map(|tenant| row(tenant, &columns)));
        if look.tenants.matched == 0 {
            lines.push(Line::new("no tenant matches", Style::Soft));
        }
    }
    lines.truncate(height.saturating_sub(1));
    lines.resize_with(height.saturating_sub(1), Line::default);
    lines.push(foot(state));
    lines.into_iter().map(|line| line.cut(width)).collect()
}

fn title(look: Option<&Look>, state: &State) -> Line {
    let version = look.map_or("", |look| look.tenants.version.as_str());
    let mut line = Line::new(format!("pgtenant {version} "), Style::Bold);
    let (text, style) = match (&state.trouble, look) {
        (Some(trouble), _) => (trouble.clone(), Style::Hot),
        (None, Some(look)) if look.tenants.draining => ("draining: no new clients".to_owned(), Style::Hot),
        (None, _) if state.paused => ("paused".to_owned(), Style::Bold),
        (None, _) => ("live".to_owned(), Style::Plain),
    };
    line.parts.push((text, style));
    if let Some(look) = look.filter(|look| look.tenants.matched < look.tenants.total) {
        line.parts.push((format!(" | {} of {} match", look.tenants.matched, look.tenants.total), Style::Plain));
    }
    line
}

fn foot(state: &State) -> Line {
    match &state.typing {
        Some(_) => Line::new(format!("filter: {}_", state.filter), Style::Bold),
        None if state.filter.is_empty() => Line::new("q ends  h help  / filter  space pauses", Style::Soft),
        None => Line::new(format!("filter: {}  (/ changes it, escape takes it away)", state.filter), Style::Soft),
    }
}

const HELP: &str = "
Tenants, those that hurt most first. SCORE is 0 to 100 and made of WHY: queue, quota, errors, logins, pins.

  s score     w waiting    l time waited   b backends   u highest quota   c clients
  t queries   e errors     p pins          n name       i instance        y time that backends were busy
  r turns the order around

  / filter by words in id, instance, region, tier, state, reasons; enter keeps it, escape takes it away
  up, down, page up, page down, home: move through the tenants
  space pauses, h closes this, q ends
";

impl State {
    pub fn press(&mut self, key: Key, height: usize) -> Pressed {
        if self.typing.is_some() {
            return self.type_filter(key);
        }
        match key {
            Key::Letter('q') | Key::Interrupt => return Pressed::End,
            Key::Letter('h' | '?') => self.help = !self.help,
            Key::Escape if self.help => self.help = false,
            Key::Escape => {
                self.filter.clear();
                return self.anew();
            }
            Key::Letter('/') => self.typing = Some(self.filter.clone()),
            Key::Letter(' ') => {
                self.paused = !self.paused;
                return Pressed::AskAgain;
            }
            Key::Letter('r') => {
                let falls = !matches!(self.sort, Sort::Id | Sort::Instance);
                self.order = match self.order {
                    Some(_) => None,
                    None if falls => Some(Order::Asc),
                    None => Some(Order::Desc),
                };
                return self.anew();
            }
            Key::Letter(letter) => {
                let busy = (letter == 'y').then_some(Sort::Busy);
                let Some(sort) = COLUMNS.iter().find(|column| column.key == letter).map(|column| column.sort).or(busy)
                else {
                    return Pressed::Draw;
                };
                (self.sort, self.order) = (sort, None);
                return self.anew();
            }
            Key::Down => return self.scroll(self.offset + 1),
            Key::Up => return self.scroll(self.offset.saturating_sub(1)),
            Key::PageDown => return self.scroll(self.offset + height / 2),
            Key::PageUp => return self.scroll(self.offset.saturating_sub(height / 2)),
            Key::Home => return self.scroll(0),
            Key::Enter | Key::Backspace | Key::Resized => {}
        }
        Pressed::Draw
    }

    fn type_filter(&mut self, key: Key) -> Pressed {
        match key {
            Key::Interrupt => return Pressed::End,
            Key::Enter => self.typing = None,
            Key::Escape => {
                self.filter = self.typing.take().unwrap_or_default();
                return self.anew();
            }
            Key::Backspace => {
                self.filter.pop();
                return self.anew();
            }
            Key::Letter(letter) => {
                self.filter.push(letter);
                return self.anew();
            }
            _ => {}
        }
        Pressed::Draw
    }

    /// Others come to the top.
    fn anew(&mut self) -> Pressed {
        self.offset = 0;
        Pressed::AskAgain
    }

    fn scroll(&mut self, offset: usize) -> Pressed {
        self.offset = offset.min(900);
        Pressed::AskAgain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look() -> Look {
        let tenant = |id: &str, score: f64, waiting: u64| {
            let used = score.min(10.0);
            serde_json::json!({
                "id": id, "instance": "pg1", "region": null, "tier": "gold", "state": "active", "mode": "transaction", "score": score,
                "why": if score > 0.0 { vec!["queue", "quota"] } else { vec![] }, "clients": 12, "waiting": waiting,
                "longest_wait_seconds": 1.25, "pins": 0, "backends": { "active": used, "idle": 0, "connecting": 0 },
                "highest_use": used / 10.0, "rates": rates(),
                "quotas": [{ "quota": "max_backends", "unit": "backends", "limit": 10.0, "used": used, "refused": 0 }],
            })
        };
        fn rates() -> serde_json::Value {
            let names = [
                "queries",
                "transactions",
                "errors",
                "logins",
                "login_failures",
                "received_bytes",
                "sent_bytes",
                "wait_seconds",
                "backend_seconds",
            ];
            names.iter().map(|name| ((*name).to_owned(), 1234.0.into())).collect::<serde_json::Map<_, _>>().into()
        }
        let backends = serde_json::json!({ "active": 1, "idle": 0, "connecting": 0 });
        let integers = |mut value: serde_json::Value| {
            value["backends"]["active"] = (value["score"].as_f64().unwrap().min(10.0) as u64).into();
            value
        };
        let tenants = serde_json::json!({
            "window_seconds": 5.0, "draining": false, "version": "1.2.3", "total": 10000, "matched": 2,
            "totals": { "clients": 24, "waiting": 7, "pins": 0, "backends": backends, "rates": rates(), "hurting": 1 },
            "tenants": [
                integers(tenant("greedy-\u{1b}[2Jtenant-with-a-long-name", 60.0, 7)), integers(tenant("calm", 0.0, 0)),
            ],
        });
        let instance = serde_json::json!({
            "name": "pg1", "address": "127.0.0.1:5432", "region": null, "tenants": 10000, "clients": 24, "waiting": 7,
            "backends": { "active": 45, "idle": 5, "connecting": 0 }, "max_backends": 90, "headroom": 45,
            "rates": rates(),
        });
        Look {
            tenants: serde_json::from_value(tenants).unwrap(),
            instances: vec![serde_json::from_value(instance).unwrap()],
        }
    }

    #[test]
    fn a_look_is_a_table_of_plain_text() {
        let text = once(&look(), &State::default(), 140);
        for part in [
            "10000 tenants, 1 hurt | 24 clients, 7 waiting, 0 pinned",
            "pg1  [########........] 45/90 backends, headroom 45",
            ">SCORE",
            "queue quota",
            "[########] 10/10",
            "1234",
        ] {
            assert!(text.contains(part), "{part:?} in:\n{text}");
        }
        assert!(!text.contains('\x1b'), "what the proxy says gives the terminal no orders:\n{text}");
    }

    #[test]
    fn every_line_fits_whatever_the_size() {
        let look = look();
        for column in &COLUMNS {
            assert!(column.title.len() < column.width, "{}: no room for the sign of its order", column.title);
        }
        for (width, height) in [(200, 50), (120, 30), (80, 24), (40, 10), (20, 3), (1, 1)] {
            let lines = lines(Some(&look), &State::default(), width, height);
            assert_eq!(lines.len(), height, "{width}x{height}");
            let longest = lines.iter().map(|line| line.text().chars().count()).max().unwrap();
            assert!(longest <= width, "{longest} of {width}");
        }
        let narrow = once(&look, &State::default(), 80);
        assert!(narrow.contains("WAITING") && !narrow.contains("INSTANCE"), "{narrow}");
    }

    #[test]
    fn keys_change_the_order_and_the_filter() {
        let mut state = State { offset: 5, ..State::default() };
        assert_eq!(state.press(Key::Letter('w'), 24), Pressed::AskAgain);
        assert_eq!((state.sort, state.order, state.offset), (Sort::Waiting, None, 0));
        state.press(Key::Letter('r'), 24);
        assert_eq!(state.order, Some(Order::Asc));
        state.press(Key::Letter('/'), 24);
        for letter in "aqc".chars() {
            assert_eq!(state.press(Key::Letter(letter), 24), Pressed::AskAgain, "q is a letter here");
        }
        state.press(Key::Backspace, 24);
        state.press(Key::Enter, 24);
        assert_eq!((state.filter.as_str(), state.typing.is_none()), ("aq", true));
        state.press(Key::Escape, 24);
        assert_eq!(state.filter, "");
        assert_eq!(state.press(Key::Letter('q'), 24), Pressed::End);
        assert_eq!(state.press(Key::Interrupt, 24), Pressed::End);
    }

    #[test]
    fn trouble_is_told_and_the_last_look_stays() {
        let state = State { trouble: Some("no answer".to_owned()), ..State::default() };
        let lines = lines(Some(&look()), &state, 100, 20);
        assert!(lines[0].text().contains("no answer"));
        assert!(lines.iter().any(|line| line.text().starts_with("calm")));
    }

    #[test]
    fn each_column_has_its_key_and_help_names_it() {
        for column in &COLUMNS {
            assert!(HELP.contains(&format!(" {} ", column.key)), "{}", column.title);
        }
    }
}
