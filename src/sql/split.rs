//! A text of several statements, cut at the semicolons that PostgreSQL's own tools would cut it at.

use std::ops::Range;

use super::lex::{Kind, Lexer, Token};

/// Words at a statement's beginning that are looked at.
const HEAD: usize = 8;

/// One statement of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// From its first token to its last one, without semicolon.
    pub range: Range<usize>,
    /// Line of its first token in the text, from 1 on.
    pub line: usize,
    /// Up to eight tokens from its beginning: words in lower case, quoted identifiers as they are, signs.
    pub head: Vec<String>,
    /// Some word of it is `stdin`.
    pub reads_stdin: bool,
}

/// A string, comment or quoted name that does not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unended;

/// The statements of `sql`, empty ones left out. Semicolons within parentheses and within `BEGIN ATOMIC … END` end none.
/// Strings are read with `standard_conforming_strings` on.
///
/// # Errors
/// The text ends inside of a string or comment.
pub fn statements(sql: &str) -> Result<Vec<Piece>, Unended> {
    let bytes = sql.as_bytes();
    let mut lexer = Lexer::new(bytes, true);
    let mut pieces = Vec::new();
    let mut current: Option<Piece> = None;
    let mut nesting = Nesting::default();
    let (mut line, mut counted) = (1, 0);
    while let Some(token) = lexer.next() {
        if token.is_sign(b';') && nesting.is_outside() {
            pieces.extend(current.take());
            nesting = Nesting::default();
            continue;
        }
        let start = outer_start(&token, bytes);
        let piece = current.get_or_insert_with(|| {
            line += bytes[counted..start].iter().filter(|&&byte| byte == b'\n').count();
            counted = start;
            Piece { range: start..start, line, head: Vec::new(), reads_stdin: false }
        });
        piece.range.end = token.outer_end();
        let text = told(&token, sql);
        piece.reads_stdin |= text == "stdin";
        nesting.follow(&token, &text);
        if piece.head.len() < HEAD {
            piece.head.push(text);
        }
    }
    pieces.extend(current);
    if lexer.in_doubt() { Err(Unended) } else { Ok(pieces) }
}

fn outer_start(token: &Token, sql: &[u8]) -> usize {
    let quoted = matches!(token.kind, Kind::Quoted { .. }) && token.start > 0 && sql[token.start - 1] == b'"';
    token.start - usize::from(quoted)
}

fn told(token: &Token, sql: &str) -> String {
    let text = String::from_utf8_lossy(token.text(sql.as_bytes())).into_owned();
    match token.kind {
        Kind::Word { .. } => text.to_lowercase(),
        Kind::Quoted { .. } => text.replace("\"\"", "\""),
        _ => text,
    }
}

/// What may hold semicolons: parentheses, and the body of an SQL-standard function.
#[derive(Debug, Default)]
struct Nesting {
    parentheses: u32,
    /// BEGIN ATOMIC and the CASEs inside it, which END ends as well.
    blocks: u32,
    after_begin: bool,
}

impl Nesting {
    fn is_outside(&self) -> bool {
        self.parentheses == 0 && self.blocks == 0
    }

    fn follow(&mut self, token: &Token, text: &str) {
        let is_word = matches!(token.kind, Kind::Word { .. });
        let after_begin = std::mem::replace(&mut self.after_begin, is_word && text == "begin");
        match text {
            "(" if token.is_sign(b'(') => self.parentheses += 1,
            ")" if token.is_sign(b')') => self.parentheses = self.parentheses.saturating_sub(1),
            "atomic" if is_word && after_begin => self.blocks += 1,
            "case" if is_word && self.blocks > 0 => self.blocks += 1,
            "end" if is_word && self.blocks > 0 => self.blocks -= 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(sql: &str) -> Vec<&str> {
        statements(sql).unwrap().into_iter().map(|piece| &sql[piece.range]).collect()
    }

    #[test]
    fn statements_are_cut_where_they_end() {
        for (sql, pieces) in [
            ("", &[][..]),
            (" ; ;-- nothing\n/* ; */", &[]),
            ("SELECT 1", &["SELECT 1"]),
            ("SELECT 1; SELECT ';' ;", &["SELECT 1", "SELECT ';'"]),
            ("SELECT \"a;b\"; SELECT $x$;$x$", &["SELECT \"a;b\"", "SELECT $x$;$x$"]),
            ("SELECT 1 -- ;\n + 1; /* a; /* b; */ */ SELECT 2", &["SELECT 1 -- ;\n + 1", "SELECT 2"]),
            ("DO $$BEGIN NULL; END$$; SELECT 1", &["DO $$BEGIN NULL; END$$", "SELECT 1"]),
            (
                "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); SELECT 3",
                &["CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)", "SELECT 3"],
            ),
            (
                "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END; SELECT 1",
                &[
                    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
                    "SELECT 1",
                ],
            ),
            ("BEGIN; SELECT E'\\';'; COMMIT", &["BEGIN", "SELECT E'\\';'", "COMMIT"]),
            ("\"x\"; 'y'", &["\"x\"", "'y'"]),
        ] {
            assert_eq!(cut(sql), pieces, "{sql}");
        }
    }

    #[test]
    fn what_does_not_end_is_an_error() {
        for sql in ["SELECT '", "SELECT $$ x", "/* ", "SELECT \"a"] {
            assert_eq!(statements(sql), Err(Unended), "{sql}");
        }
    }

    #[test]
    fn heads_and_lines_are_told() {
        let pieces = statements("-- one\nCREATE Unique INDEX \"My\" ON t (x);\n\nCOPY t FROM STDIN").unwrap();
        assert_eq!(pieces[0].head[..4], ["create", "unique", "index", "My"]);
        assert_eq!((pieces[0].line, pieces[1].line), (2, 4));
        assert_eq!((pieces[0].reads_stdin, pieces[1].reads_stdin), (false, true));
    }
}
