//! A result as people and programs read it: a table, CSV, JSON or Parquet.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Number, Value, json};

use super::super::{Failure, files};
use super::parquet;
use super::table::{Kind, Row, Table};
use super::{Outcome, Result as Answered};

/// A value that is not there, in a table.
const NULL: &str = "∅";

/// The forms of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// RFC 4180; a value that is not there is empty, an empty text is "".
    Csv,
    /// One object: rows, and what came of each tenant.
    Json,
    /// Apache Parquet.
    Parquet,
}

/// The result in the wanted form.
///
/// # Errors
/// Two columns have one name, where that matters.
pub fn formatted(result: &Answered, format: Format, max_rows: u64) -> Result<Vec<u8>, Failure> {
    match format {
        Format::Table => Ok(for_people(&result.table).into_bytes()),
        Format::Csv => Ok(csv(&result.table).into_bytes()),
        Format::Json => result.table.check_names().map(|()| format!("{}\n", as_json(result, max_rows)).into_bytes()),
        Format::Parquet => result.table.check_names().and_then(|()| parquet::written(&result.table)),
    }
}

/// Puts it into a file with mode 0600: tenants' data.
///
/// # Errors
/// It cannot be written.
pub fn save(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    files::replace(path, bytes).map_err(Failure::file("write", path))
}

/// Numbers to the right.
fn for_people(table: &Table) -> String {
    let shown = |value: &Option<String>| match value {
        None => NULL.to_owned(),
        // One row is one line, and nothing in it moves the cursor.
        Some(text) => {
            text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
        }
    };
    let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row.iter().map(shown).collect()).collect();
    let wide = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([table.columns[at].name.chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(wide).collect();
    let is_number = |at: usize| !matches!(table.columns[at].kind(), Kind::Text | Kind::Bool);
    let mut text = String::new();
    let mut line = |cells: &[&str]| {
        let padded = cells.iter().enumerate().map(|(at, cell)| match is_number(at) {
            true => format!("{cell:>width$}", width = widths[at]),
            false => format!("{cell:width$}", width = widths[at]),
        });
        let joined = padded.collect::<Vec<_>>().join(" | ");
        text.push_str(joined.trim_end());
        text.push('\n');
    };
    line(&table.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>());
    for row in &rows {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let rule = widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>().join("-+-");
    let head = text.find('\n').map_or(0, |end| end + 1);
    text.insert_str(head, &format!("{rule}\n"));
    text
}

fn csv(table: &Table) -> String {
    let quoted = |text: &str| match text.is_empty() || text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let head = table.columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(",");
    let mut text = head + "\r\n";
    for row in &table.rows {
        let cells = row.iter().map(|value| value.as_deref().map(quoted).unwrap_or_default());
        let _ = write!(text, "{}\r\n", cells.collect::<Vec<_>>().join(","));
    }
    text
}

fn as_json(result: &Answered, max_rows: u64) -> Value {
    let table = &result.table;
    let row = |row: &Row| {
        let cells = table.columns.iter().zip(row);
        cells.map(|(column, value)| (column.name.clone(), json_value(value.as_deref(), column.kind()))).collect()
    };
    let rows: Vec<Map<String, Value>> = table.rows.iter().map(row).collect();
    let outcome = |outcome: &Outcome| match outcome {
        Outcome::Answered { rows, cut } => json!({ "result": "ok", "rows": rows, "cut_off": cut }),
        Outcome::Failed(why) => json!({ "result": "failed", "why": why }),
        Outcome::Skipped(why) => json!({ "result": "skipped", "why": why }),
    };
    let tenants: Map<String, Value> =
        result.outcomes.iter().map(|(tenant, came)| (tenant.clone(), outcome(came))).collect();
    let columns: Vec<Value> =
        table.columns.iter().map(|column| json!({ "name": column.name, "type": column.sql_type })).collect();
    json!({ "columns": columns, "rows": rows, "tenants": tenants, "summary": result.summary(max_rows) })
}

/// Numbers that JSON's readers take exactly are numbers; the rest is as PostgreSQL writes it.
fn json_value(value: Option<&str>, kind: Kind) -> Value {
    let Some(text) = value else { return Value::Null };
    let other = || Value::from(text);
    match kind {
        Kind::Bool => Value::from(text == "t"),
        Kind::Int32 | Kind::Int64 => text.parse::<i64>().map_or_else(|_| other(), Value::from),
        Kind::Float32 | Kind::Float64 => text.parse().ok().and_then(Number::from_f64).map_or_else(other, Value::Number),
        Kind::Text => other(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Column;
    use super::*;

    fn result() -> Answered {
        let column = |name: &str, sql_type: &str| Column { name: name.into(), sql_type: sql_type.into() };
        let columns = vec![
            column("tenant", "text"),
            column("n", "int8"),
            column("x", "float8"),
            column("ok", "bool"),
            column("t", "text"),
        ];
        let row = |cells: [Option<&str>; 5]| cells.map(|cell| cell.map(str::to_owned)).to_vec();
        let rows = vec![
            row([Some("acme"), Some("12"), Some("0.5"), Some("t"), Some("a \"b\",\nc")]),
            row([Some("globex"), Some("7"), Some("NaN"), None, Some("")]),
        ];
        let outcomes = [
            ("acme".to_owned(), Outcome::Answered { rows: 1, cut: false }),
            ("initech".to_owned(), Outcome::Failed("down".into())),
        ];
        Answered { table: Table { columns, rows }, outcomes: outcomes.into(), merge_cut: false }
    }

    fn text(format: Format) -> String {
        String::from_utf8(formatted(&result(), format, 10).unwrap()).unwrap()
    }

    #[test]
    fn a_table_has_a_line_for_each_row() {
        let expected = "tenant |  n |   x | ok | t\n-------+----+-----+----+----------\nacme   | 12 | 0.5 | t  | a \"b\",\\nc\nglobex |  7 | NaN | ∅  |\n";
        assert_eq!(text(Format::Table), expected);
    }

    #[test]
    fn csv_tells_nothing_from_an_empty_text() {
        assert_eq!(text(Format::Csv), "tenant,n,x,ok,t\r\nacme,12,0.5,t,\"a \"\"b\"\",\nc\"\r\nglobex,7,NaN,,\"\"\r\n");
    }

    #[test]
    fn json_says_what_came_of_each_tenant() {
        let json: Value = serde_json::from_str(&text(Format::Json)).unwrap();
        assert_eq!(json["rows"][0], json!({ "tenant": "acme", "n": 12, "x": 0.5, "ok": true, "t": "a \"b\",\nc" }));
        assert_eq!(json["rows"][1]["x"], "NaN");
        assert_eq!(json["tenants"]["initech"], json!({ "result": "failed", "why": "down" }));
        assert_eq!(json["summary"], "1 ok, 1 failed, 0 skipped; not one consistent snapshot");
    }
}
