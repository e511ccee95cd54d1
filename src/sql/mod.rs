//! A fast look at the text of a request: what may it do to its session?
//!
//! Most texts do nothing of note, which the first pass finds without allocating. What is in doubt counts as yes: a mark
//! too many costs a backend that is kept a little longer, a mark too few loses a client's state.

mod head;
pub(crate) mod lex;
mod marks;
pub mod split;
mod statement;
#[cfg(test)]
mod tests;
mod words;
mod writing;

use std::ops::Range;

use lex::{Kind, Lexer};
pub use marks::Marks;
use statement::Scan;
pub use writing::{asks_to_write, ends_transaction};

/// What the text of a request may do to its session.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Look {
    /// Kinds of session state that it may make, change or take away.
    pub marks: Marks,
    /// Parameters that it sets or resets by name, in lower case, each once. SET LOCAL is not listed: it ends with the
    /// transaction.
    pub parameters: Vec<String>,
    /// Statements that go back to a parameter's default, in the order of the text.
    pub resets: Vec<Reset>,
    /// What LISTEN and UNLISTEN name, in the order of the text; none stands for all channels. Ones that we cannot read
    /// stand for a channel without a name.
    pub channels: Vec<Option<String>>,
    /// The text is exactly one statement, and it is one of these.
    pub alone: Option<Alone>,
}

/// A statement that goes back to a parameter's default, such as `RESET x` or `SET x TO DEFAULT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// Where it stands in the text, without its semicolon.
    pub range: Range<usize>,
    /// How many statements stand before it, empty ones not counted.
    pub statement: usize,
    /// The parameter in lower case, none for ALL.
    pub name: Option<String>,
    /// SET LOCAL: for this transaction only.
    pub local: bool,
    /// PostgreSQL's command tag for it.
    pub tag: &'static str,
}

/// Statements that can be answered, or understood in full, without PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alone {
    /// BEGIN or START TRANSACTION, with any modes.
    Begin,
    /// COMMIT or END, without AND CHAIN.
    Commit,
    /// ROLLBACK or ABORT, without AND CHAIN.
    Rollback,
    Listen(String),
    Unlisten(String),
    UnlistenAll,
    DiscardAll,
    Deallocate(String),
    DeallocateAll,
}

/// What `sql` may do to its session; None if nothing of note. `standard_strings` is the session's
/// `standard_conforming_strings`.
pub fn look(sql: &[u8], standard_strings: bool) -> Option<Box<Look>> {
    if !deserves_a_closer_look(sql, standard_strings) {
        return None;
    }
    let look = Scan::new(sql, standard_strings).run();
    (look != Look::default()).then(|| Box::new(look))
}

/// Whether a text's first letters allow that it begins or ends a transaction, listens, or makes, changes or drops
/// something: what a session looks for before it takes a backend. White space may stand before them.
pub fn may_be_command(sql: &[u8]) -> bool {
    let sql = if sql.first().is_some_and(u8::is_ascii_alphabetic) { sql } else { sql.trim_ascii_start() };
    let Some(letters) = sql.first_chunk::<2>() else { return false };
    matches!(
        &[letters[0] | 0x20, letters[1] | 0x20],
        b"be" | b"st" | b"co" | b"en" | b"ro" | b"ab" | b"li" | b"un" | b"dr" | b"al" | b"cr"
    )
}

/// The first word of a text that begins with one: its first eight letters in lower case, zeros behind.
pub fn first_word(sql: &[u8]) -> [u8; 8] {
    let mut word = [0; 8];
    let letters = sql.trim_ascii_start().iter().take_while(|byte| byte.is_ascii_alphabetic());
    word.iter_mut().zip(letters).for_each(|(to, letter)| *to = letter.to_ascii_lowercase());
    word
}

/// Whether `sql` is a statement that PostgreSQL refuses while anybody is connected to the database that it is about.
pub fn touches_a_database(sql: &[u8]) -> bool {
    let mut words = sql.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).skip(1);
    may_be_command(sql)
        && matches!(&first_word(sql), b"drop\0\0\0\0" | b"alter\0\0\0" | b"create\0\0")
        && words.next().is_some_and(|word| word.eq_ignore_ascii_case(b"DATABASE"))
}

fn deserves_a_closer_look(sql: &[u8], standard_strings: bool) -> bool {
    let mut lexer = Lexer::new(sql, standard_strings);
    let mut first = true;
    while let Some(token) = lexer.next() {
        match token.kind {
            // Inside parentheses it ends no statement: the closer look will tell.
            Kind::Sign(b';') => {
                first = true;
                continue;
            }
            Kind::Word { .. } | Kind::Quoted { .. } => {
                let word = token.text(sql);
                if words::is_of_note(word) || token.may_be_advisory() || (first && words::is_leading(word)) {
                    return true;
                }
            }
            Kind::Unicode => return true,
            Kind::Literal { .. } if words::is_moment(token.text(sql)) => return true,
            Kind::Literal { .. } | Kind::Sign(_) => {}
        }
        first = false;
    }
    lexer.in_doubt()
}

/// Whether `sql` may call nextval or setval, by a column's default too. Triggers and functions apart: nobody can see
/// those. Strings are read as with `standard_conforming_strings`, and text that ends in one counts as yes.
pub fn may_advance_sequence(sql: &[u8]) -> bool {
    const ANYWHERE: [&[u8]; 7] = [b"nextval", b"setval", b"insert", b"merge", b"copy", b"default", b"execute"];
    // They run what is inside a procedure, or fill a new column.
    const FIRST: [&[u8]; 3] = [b"call", b"do", b"alter"];
    let listed = |list: &[&[u8]], word: &[u8]| list.iter().any(|listed| word.eq_ignore_ascii_case(listed));
    let mut lexer = Lexer::new(sql, true);
    let mut first = true;
    while let Some(token) = lexer.next() {
        let word = token.text(sql);
        match token.kind {
            Kind::Word { .. } if listed(&ANYWHERE, word) || (first && listed(&FIRST, word)) => return true,
            Kind::Quoted { .. } if listed(&ANYWHERE[..2], word) => return true,
            Kind::Unicode => return true,
            _ => first = token.is_sign(b';') || (first && token.is_sign(b'(')),
        }
    }
    lexer.in_doubt()
}
