//! One migration's text in one direction: its markers, its statements, and whether they run in one transaction. Pure.

use crate::sql::split::{self, Piece};

/// What is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// All of it in one transaction, together with its entry in the history.
    pub transaction: bool,
    /// Of a script in one transaction the only one; of any other one after the other, each with a note of its own in the
    /// history.
    pub groups: Vec<Group>,
}

/// Statements that succeed or fail together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// The script's own BEGIN, with its modes; none: nothing but ours.
    pub begin: Option<String>,
    pub statements: Vec<Statement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub sql: String,
    /// In its file, from 1 on.
    pub line: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Ordinary,
    /// DO and CALL, which may commit on their way.
    MayCommit,
    /// PostgreSQL refuses it inside of a transaction block; it may run again when it was cut off.
    Alone,
    /// CREATE INDEX CONCURRENTLY, which leaves an invalid index of this name behind when it is cut off.
    ConcurrentIndex(Option<String>),
}

impl Kind {
    /// PostgreSQL refuses it inside of a transaction block.
    pub fn runs_alone(&self) -> bool {
        matches!(self, Kind::Alone | Kind::ConcurrentIndex(_))
    }
}

/// The two directions of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sections<'a> {
    pub up: Section<'a>,
    pub down: Option<Section<'a>>,
}

/// A part of a file, as it stands there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Section<'a> {
    pub text: &'a str,
    /// Lines before it in its file.
    pub lines_before: usize,
    pub no_transaction: bool,
    /// goose's StatementBegin … StatementEnd: ranges of `text` that are one statement each.
    marked: Vec<std::ops::Range<usize>>,
}

/// sqlx: such a file runs without a transaction.
const NO_TRANSACTION: &str = "-- no-transaction";

impl<'a> Section<'a> {
    /// A file that is all one direction, as sqlx's and golang-migrate's are.
    ///
    /// # Errors
    /// It has markers of tools that keep both directions in one file.
    pub fn whole(text: &'a str) -> Result<Section<'a>, String> {
        if let Some((line, marker)) = markers(text).next() {
            return Err(format!(
                "line {}: the marker {:?} belongs into a file <version>_<name>.sql",
                line.number, marker
            ));
        }
        let no_transaction = text.trim_start_matches('\u{feff}').starts_with(NO_TRANSACTION);
        Ok(Section { text, lines_before: 0, no_transaction, marked: Vec::new() })
    }
}

/// A marker of dbmate's or goose's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker<'a> {
    /// dbmate: `-- migrate:up transaction:false`.
    Dbmate { up: bool, options: &'a str },
    /// goose: `-- +goose Up`.
    Goose(&'a str),
}

#[derive(Debug, Clone, Copy)]
struct Line {
    /// From 1 on.
    number: usize,
    start: usize,
    /// Behind its line break.
    end: usize,
}

fn markers(text: &str) -> impl Iterator<Item = (Line, Marker<'_>)> {
    let mut start = 0;
    text.split_inclusive('\n').enumerate().filter_map(move |(index, raw)| {
        let line = Line { number: index + 1, start, end: start + raw.len() };
        start = line.end;
        marker(raw.trim()).map(|marker| (line, marker))
    })
}

fn marker(line: &str) -> Option<Marker<'_>> {
    let rest = line.strip_prefix("--")?.trim_start();
    if let Some(rest) = rest.strip_prefix("+goose") {
        return Some(Marker::Goose(rest.trim()));
    }
    let rest = rest.strip_prefix("migrate:")?;
    let (up, options) = match (rest.strip_prefix("up"), rest.strip_prefix("down")) {
        (Some(options), _) => (true, options),
        (_, Some(options)) => (false, options),
        _ => return None,
    };
    (options.is_empty() || options.starts_with(char::is_whitespace))
        .then_some(Marker::Dbmate { up, options: options.trim() })
}

/// Takes a file `<version>_<name>.sql` apart: dbmate's or goose's, or one without markers, which has no way down.
///
/// # Errors
/// The markers contradict each other, or say what is not known here.
pub fn sections(text: &str) -> Result<Sections<'_>, String> {
    let found: Vec<(Line, Marker<'_>)> = markers(text).collect();
    match found.first() {
        None => Ok(Sections { up: Section::whole(text)?, down: None }),
        Some((_, Marker::Dbmate { .. })) => dbmate(text, &found),
        Some((_, Marker::Goose(_))) => goose(text, &found),
    }
}

fn dbmate<'a>(text: &'a str, found: &[(Line, Marker<'a>)]) -> Result<Sections<'a>, String> {
    let (mut up, mut down) = (None, None);
    for (index, (line, marker)) in found.iter().enumerate() {
        let Marker::Dbmate { up: is_up, options } = *marker else {
            return Err(format!("line {}: markers of dbmate and of goose in one file", line.number));
        };
        let end = found.get(index + 1).map_or(text.len(), |(next, _)| next.start);
        let no_transaction = match options {
            "" | "transaction:true" => false,
            "transaction:false" => true,
            other => {
                return Err(format!("line {}: option {other:?} is not known; there is transaction:false", line.number));
            }
        };
        let section =
            Section { text: &text[line.end..end], lines_before: line.number, no_transaction, marked: Vec::new() };
        let place = if is_up { &mut up } else { &mut down };
        if place.replace(section).is_some() {
            return Err(format!("line {}: a second migrate:{}", line.number, if is_up { "up" } else { "down" }));
        }
    }
    nothing_before(text, found)?;
    Ok(Sections { up: up.ok_or("there is no -- migrate:up")?, down })
}

fn goose<'a>(text: &'a str, found: &[(Line, Marker<'a>)]) -> Result<Sections<'a>, String> {
    let mut sections: [Option<Section<'a>>; 2] = [None, None];
    let (mut current, mut no_transaction, mut opened) = (None, false, None);
    for (index, (line, marker)) in found.iter().enumerate() {
        let at = |what: &str| Err(format!("line {}: {what}", line.number));
        let Marker::Goose(word) = *marker else { return at("markers of dbmate and of goose in one file") };
        match (word.to_ascii_lowercase().as_str(), opened) {
            ("up" | "down", Some(_)) => return at("StatementBegin without StatementEnd"),
            (direction @ ("up" | "down"), None) => {
                let place = usize::from(direction == "down");
                if sections[place].is_some() {
                    return at("the same direction twice");
                }
                let is_end = |(_, marker): &&(Line, Marker<'_>)| matches!(marker, Marker::Goose(word) if word.eq_ignore_ascii_case("up") || word.eq_ignore_ascii_case("down"));
                let end = found[index + 1..].iter().find(is_end).map_or(text.len(), |(next, _)| next.start);
                sections[place] =
                    Some(Section { text: &text[line.end..end], lines_before: line.number, ..Section::default() });
                current = Some((place, line.end));
            }
            ("no transaction", _) => no_transaction = true,
            ("statementbegin", None) => opened = Some(line.end),
            ("statementend", Some(begin)) => {
                let Some((place, base)) = current else { return at("StatementEnd before Up") };
                let section = sections[place].as_mut().expect("it is current");
                section.marked.push(begin.saturating_sub(base)..line.start - base);
                opened = None;
            }
            ("statementbegin", Some(_)) => return at("StatementBegin within another"),
            ("statementend", None) => return at("StatementEnd without StatementBegin"),
            _ => return at(&format!("goose's {word:?} is not known here")),
        }
    }
    if opened.is_some() {
        return Err("StatementBegin without StatementEnd".to_owned());
    }
    nothing_before(text, found)?;
    let [up, down] = sections.map(|section| section.map(|section| Section { no_transaction, ..section }));
    Ok(Sections { up: up.ok_or("there is no -- +goose Up")?, down })
}

/// What stands before the first marker would never run.
fn nothing_before(text: &str, found: &[(Line, Marker<'_>)]) -> Result<(), String> {
    let before = found.first().map_or("", |(line, _)| &text[..line.start]);
    match split::statements(before) {
        Ok(pieces) if pieces.is_empty() => Ok(()),
        _ => Err("SQL before the first marker, which would never run".to_owned()),
    }
}

impl Script {
    /// # Errors
    /// What PostgreSQL or this program could not run as it is meant, with its line.
    pub fn new(section: &Section<'_>) -> Result<Script, String> {
        let statements = cut(section)?;
        let mut script = match section.no_transaction {
            true => Script { transaction: false, groups: grouped(statements)? },
            false => in_one_transaction(statements)?,
        };
        script.groups.retain(|group| !group.statements.is_empty());
        Ok(script)
    }
}

type Cut = (Statement, Vec<String>);

fn cut(section: &Section<'_>) -> Result<Vec<Cut>, String> {
    let mut cuts = Vec::new();
    let mut done = 0;
    for marked in &section.marked {
        push(section, done..marked.start, false, &mut cuts)?;
        push(section, marked.clone(), true, &mut cuts)?;
        done = marked.end;
    }
    push(section, done..section.text.len(), false, &mut cuts)?;
    Ok(cuts)
}

/// `whole`: the range is one statement, whatever it looks like.
fn push(section: &Section<'_>, range: std::ops::Range<usize>, whole: bool, to: &mut Vec<Cut>) -> Result<(), String> {
    let text = &section.text[range.clone()];
    let before = section.lines_before + section.text[..range.start].matches('\n').count();
    let pieces = split::statements(text).map_err(|_| "a string, comment or quoted name does not end".to_owned())?;
    let pieces = match (whole, pieces.first(), pieces.last()) {
        (true, Some(first), Some(last)) => vec![Piece { range: first.range.start..last.range.end, ..first.clone() }],
        _ => pieces,
    };
    for piece in pieces {
        let line = before + piece.line;
        refuse(&piece).map_err(|what| format!("line {line}: {what}"))?;
        let kind = kind(&piece.head);
        to.push((Statement { sql: text[piece.range].to_owned(), line, kind }, piece.head));
    }
    Ok(())
}

fn refuse(piece: &Piece) -> Result<(), String> {
    let first = piece.head.first().map_or("", String::as_str);
    if first == "\\" {
        return Err("a command of psql, which is not SQL".to_owned());
    }
    if first == "copy" && piece.reads_stdin {
        return Err("COPY … FROM stdin, which has no data here; write INSERT".to_owned());
    }
    Ok(())
}

fn kind(head: &[String]) -> Kind {
    let words: Vec<&str> = head.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["create", "index", "concurrently", rest @ ..] | ["create", "unique", "index", "concurrently", rest @ ..] => {
            let rest = rest.strip_prefix(&["if", "not", "exists"]).unwrap_or(rest);
            Kind::ConcurrentIndex(rest.first().filter(|name| **name != "on").map(|name| (*name).to_owned()))
        }
        ["vacuum" | "reindex" | "cluster", ..] | ["drop", "index", "concurrently", ..] => Kind::Alone,
        ["do" | "call", ..] => Kind::MayCommit,
        _ => Kind::Ordinary,
    }
}

/// What begins or ends a transaction.
#[derive(PartialEq)]
enum Border {
    Begin,
    Commit,
    Other,
}

fn border(head: &[String]) -> Option<Border> {
    let words: Vec<&str> = head.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["begin", ..] | ["start", "transaction", ..] => Some(Border::Begin),
        ["commit" | "end"] | ["commit" | "end", "work" | "transaction"] => Some(Border::Commit),
        ["rollback" | "abort", rest @ ..] if !rest.contains(&"to") => Some(Border::Other),
        ["commit" | "end", ..] | ["prepare", "transaction", ..] => Some(Border::Other),
        _ => None,
    }
}

/// A BEGIN at the start with a COMMIT at the end is what we do ourselves.
fn in_one_transaction(mut cuts: Vec<Cut>) -> Result<Script, String> {
    let at = |cuts: &[Cut], index: usize| cuts.get(index).and_then(|(_, head)| border(head));
    let mut begin = None;
    if cuts.len() > 1 && at(&cuts, 0) == Some(Border::Begin) && at(&cuts, cuts.len() - 1) == Some(Border::Commit) {
        cuts.pop();
        begin = Some(cuts.remove(0).0.sql);
    }
    if let Some((statement, _)) = cuts.iter().find(|(_, head)| border(head).is_some()) {
        let line = statement.line;
        return Err(format!(
            "line {line}: it ends the transaction that it runs in; mark the file as one without a transaction \
             (-- no-transaction, transaction:false, NO TRANSACTION)"
        ));
    }
    let statements: Vec<Statement> = cuts.into_iter().map(|(statement, _)| statement).collect();
    // golang-migrate has no marker: there, a statement that is alone in its file runs alone.
    if let [only] = statements.as_slice()
        && only.kind.runs_alone()
    {
        return Ok(Script { transaction: false, groups: vec![Group { begin: None, statements }] });
    }
    if let Some(statement) = statements.iter().find(|it| matches!(it.kind, Kind::ConcurrentIndex(_))) {
        return Err(format!(
            "line {}: CREATE INDEX CONCURRENTLY cannot run in a transaction; mark the file as one without \
             (-- no-transaction, transaction:false, NO TRANSACTION)",
            statement.line
        ));
    }
    Ok(Script { transaction: true, groups: vec![Group { begin, statements }] })
}

/// Each statement by itself, but for those between BEGIN and COMMIT.
fn grouped(cuts: Vec<Cut>) -> Result<Vec<Group>, String> {
    let mut groups = Vec::new();
    let mut open: Option<Group> = None;
    for (statement, head) in cuts {
        let wrong = |what: &str| Err(format!("line {}: {what}", statement.line));
        match (border(&head), open.take()) {
            (Some(Border::Begin), None) => open = Some(Group { begin: Some(statement.sql), ..Group::default() }),
            (Some(Border::Begin), Some(_)) => return wrong("BEGIN within a transaction"),
            (Some(Border::Commit), Some(group)) => groups.push(group),
            (Some(Border::Commit), None) => return wrong("COMMIT without BEGIN"),
            (Some(Border::Other), _) => {
                return wrong("ROLLBACK, PREPARE TRANSACTION and AND CHAIN have no place in a migration");
            }
            (None, Some(mut group)) => {
                group.statements.push(statement);
                open = Some(group);
            }
            (None, None) => groups.push(Group { begin: None, statements: vec![statement] }),
        }
    }
    match open {
        Some(_) => Err("BEGIN without COMMIT".to_owned()),
        None => Ok(groups),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Result<Script, String> {
        Script::new(&sections(text)?.up)
    }

    fn texts(script: &Script) -> Vec<Vec<&str>> {
        script.groups.iter().map(|group| group.statements.iter().map(|it| it.sql.as_str()).collect()).collect()
    }

    #[test]
    fn a_file_without_markers_is_all_up() {
        let text = "CREATE TABLE t (x int);\nINSERT INTO t VALUES (';');";
        let found = sections(text).unwrap();
        assert_eq!(found.down, None);
        let script = Script::new(&found.up).unwrap();
        assert!(script.transaction);
        assert_eq!(texts(&script), [["CREATE TABLE t (x int)", "INSERT INTO t VALUES (';')"]]);
        let bare = script_of("-- no-transaction\nSELECT 1; SELECT 2");
        assert!(!bare.transaction);
        assert_eq!(texts(&bare), [["SELECT 1"], ["SELECT 2"]]);
    }

    fn script_of(text: &str) -> Script {
        script(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn dbmates_markers_are_read() {
        let text = "-- a remark\n-- migrate:up\nCREATE TABLE t ();\n\n-- migrate:down\nDROP TABLE t;\n";
        let found = sections(text).unwrap();
        assert_eq!(found.up.text, "CREATE TABLE t ();\n\n");
        let down = Script::new(&found.down.unwrap()).unwrap();
        assert_eq!((texts(&down), down.groups[0].statements[0].line), (vec![vec!["DROP TABLE t"]], 6));
        let bare = sections("-- migrate:up transaction:false\nVACUUM;\n--migrate:down transaction:true\n").unwrap();
        assert!(bare.up.no_transaction && !bare.down.unwrap().no_transaction);
    }

    #[test]
    fn gooses_markers_are_read() {
        let text = "-- +goose NO TRANSACTION\n-- +goose Up\nSELECT 1;\n-- +goose StatementBegin\nSELECT 2; SELECT 3;\n\
                    -- +goose StatementEnd\nSELECT 4;\n-- +goose Down\nSELECT 5;";
        let found = sections(text).unwrap();
        let up = Script::new(&found.up).unwrap();
        assert!(!up.transaction);
        assert_eq!(texts(&up), [["SELECT 1"], ["SELECT 2; SELECT 3"], ["SELECT 4"]]);
        assert_eq!(up.groups[2].statements[0].line, 7);
        assert_eq!(texts(&Script::new(&found.down.unwrap()).unwrap()), [["SELECT 5"]]);
    }

    #[test]
    fn transactions_in_a_file_are_understood_or_refused() {
        let wrapped = script_of("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT 1; COMMIT;");
        assert_eq!(wrapped.groups[0].begin.as_deref(), Some("BEGIN ISOLATION LEVEL SERIALIZABLE"));
        assert_eq!(texts(&wrapped), [["SELECT 1"]]);
        let groups = script_of("-- no-transaction\nSELECT 1; BEGIN; SELECT 2; SELECT 3; END; SELECT 4");
        assert_eq!(texts(&groups), [vec!["SELECT 1"], vec!["SELECT 2", "SELECT 3"], vec!["SELECT 4"]]);
        let savepoints = script_of("SAVEPOINT a; SELECT 1; ROLLBACK TO SAVEPOINT a; RELEASE a");
        assert!(savepoints.transaction);
    }

    #[test]
    fn what_runs_alone_is_known() {
        let only = script_of("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS \"By Name\" ON t (name);");
        assert!(!only.transaction);
        assert_eq!(only.groups[0].statements[0].kind, Kind::ConcurrentIndex(Some("By Name".to_owned())));
        let unnamed = script_of("-- no-transaction\nCREATE INDEX CONCURRENTLY ON t (x); VACUUM t;");
        assert_eq!(unnamed.groups[0].statements[0].kind, Kind::ConcurrentIndex(None));
        assert_eq!(unnamed.groups[1].statements[0].kind, Kind::Alone);
    }

    #[test]
    fn what_would_not_run_as_it_is_meant_is_refused() {
        for (text, reason) in [
            ("SELECT 1; COMMIT; SELECT 2", "line 1: it ends the transaction"),
            ("BEGIN; SELECT 1", "it ends the transaction"),
            ("SELECT 1;\nCREATE INDEX CONCURRENTLY i ON t (x)", "line 2: CREATE INDEX CONCURRENTLY"),
            ("COPY t FROM stdin;", "has no data here"),
            ("\\i other.sql", "a command of psql"),
            ("SELECT '", "does not end"),
            ("-- no-transaction\nBEGIN; SELECT 1", "BEGIN without COMMIT"),
            ("-- no-transaction\nSELECT 1; COMMIT", "COMMIT without BEGIN"),
            ("-- no-transaction\nBEGIN; SELECT 1; ROLLBACK", "have no place"),
            ("-- migrate:down\nSELECT 1", "there is no -- migrate:up"),
            ("-- migrate:up\n-- migrate:up\n", "a second migrate:up"),
            ("-- migrate:up transactions:false\n", "is not known"),
            ("SELECT 1;\n-- migrate:up\n", "before the first marker"),
            ("-- migrate:up\n-- +goose Down\n", "of dbmate and of goose"),
            ("-- +goose Down\n", "there is no -- +goose Up"),
            ("-- +goose Up\n-- +goose StatementBegin\n", "without StatementEnd"),
            ("-- +goose Up\n-- +goose ENVSUB ON\n", "is not known here"),
        ] {
            let error = script(text).map(|script| texts(&script).concat().join("|")).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(Section::whole("-- migrate:down\n").unwrap_err().contains("belongs into a file"));
    }
}
