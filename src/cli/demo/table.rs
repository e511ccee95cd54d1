//! The table of what was proved: what, how, and what came of it, in aligned columns.

use std::fmt::Write as _;

use crate::cli::told;

/// One line of the proof.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) how: String,
    pub(super) result: anyhow::Result<String>,
}

impl Row {
    pub(super) fn new(what: &'static str, how: impl Into<String>, result: anyhow::Result<String>) -> Row {
        Row { what, how: how.into(), result }
    }
}

/// The rows under a heading; rows about the same thing name it once. Why something failed is too long for a column:
/// [`failures`] has it.
pub(super) fn render(rows: &[Row], colour: bool) -> String {
    let width = |heading: &str, cells: &mut dyn Iterator<Item = usize>| cells.fold(heading.len(), usize::max);
    let what_width = width("what", &mut rows.iter().map(|row| row.what.chars().count()));
    let how_width = width("how", &mut rows.iter().map(|row| row.how.chars().count()));
    let paint = |code: &str, text: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };

    let heading = format!("{:what_width$}  {:how_width$}  result", "what", "how");
    let mut text = format!("  {}\n", paint("1", &heading));
    let mut before = "";
    for Row { what, how, result } in rows {
        let named = if *what == before { "" } else { what };
        before = what;
        let result = match result {
            Ok(result) => format!("{}  {result}", paint("32", "ok")),
            Err(_) => paint("1;31", "FAILED"),
        };
        writeln!(text, "  {named:what_width$}  {how:how_width$}  {result}").expect("a String takes everything");
    }
    text
}

/// A line for each row that failed, with its reason; none when all is well.
pub(super) fn failures(rows: &[Row]) -> Option<String> {
    let failed: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let why = row.result.as_ref().err()?;
            Some(format!("{} ({}): {}", row.what, row.how, told(why)))
        })
        .collect();
    match &failed[..] {
        [] => None,
        [one] => Some(format!("the proof failed: {one}")),
        several => Some(format!("the proof failed in {} places:\n  {}", several.len(), several.join("\n  "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        vec![
            Row::new("own database", "SNI", Ok("3 of 3".to_owned())),
            Row::new("own database", "options=-c tenant=…", Err(anyhow::anyhow!("refused").context("acme"))),
            Row::new("cancel", "", Ok("57014".to_owned())),
        ]
    }

    #[test]
    fn columns_are_aligned() {
        let expected = "  what          how                  result\n  \
                        own database  SNI                  ok  3 of 3\n  \
                        \u{20}             options=-c tenant=…  FAILED\n  \
                        cancel                             ok  57014\n";
        assert_eq!(render(&rows(), false), expected);
        assert!(render(&rows(), true).contains("\x1b[32mok\x1b[0m  3 of 3"));
    }

    #[test]
    fn a_failure_is_told_with_its_reason() {
        assert_eq!(
            failures(&rows()).as_deref(),
            Some("the proof failed: own database (options=-c tenant=…): acme: refused")
        );
        assert_eq!(failures(&rows()[..1]), None);
    }
}
