//! The first tokens of a statement, which tell what kind of statement it is.

use super::Alone;
use super::lex::{Kind, Token};
use super::words;

/// More tokens than any statement has whose end matters to us.
const KEPT: usize = 32;

/// Bytes of an identifier that PostgreSQL keeps (NAMEDATALEN - 1).
const MAX_NAME: usize = 63;

/// The first tokens of a statement.
pub struct Head<'a> {
    sql: &'a [u8],
    tokens: Vec<Token>,
    longer: bool,
}

/// What a statement does to the transaction.
pub enum Control {
    /// It begins or ends it, and no more than that.
    Plain(Alone),
    /// A savepoint is made, released or gone back to.
    Savepoint,
    /// AND CHAIN, two-phase commit, or what we do not know.
    More,
}

impl<'a> Head<'a> {
    pub fn new(sql: &'a [u8]) -> Head<'a> {
        Head { sql, tokens: Vec::with_capacity(8), longer: false }
    }

    pub fn push(&mut self, token: Token) {
        if self.tokens.len() < KEPT {
            self.tokens.push(token);
        } else {
            self.longer = true;
        }
    }

    pub fn clear(&mut self) {
        self.tokens.clear();
        self.longer = false;
    }

    /// Where the statement begins; none if it is empty.
    pub fn start(&self) -> Option<usize> {
        self.tokens.first().map(|token| match token.kind {
            Kind::Quoted { .. } => token.start - 1,
            _ => token.start,
        })
    }

    /// The word at `at`; empty if there is none without quotes.
    pub fn word(&self, at: usize) -> &'a [u8] {
        match self.tokens.get(at) {
            Some(token) if matches!(token.kind, Kind::Word { .. }) => token.text(self.sql),
            _ => &[],
        }
    }

    pub fn is(&self, at: usize, word: &[u8]) -> bool {
        self.word(at).eq_ignore_ascii_case(word)
    }

    pub fn is_sign(&self, at: usize, sign: u8) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is_sign(sign))
    }

    /// Whether the statement has `length` tokens and no more.
    pub fn ends_at(&self, length: usize) -> bool {
        self.tokens.len() == length && !self.longer
    }

    /// Whether the parameter whose name ends before `at` gets a value, or its name goes on.
    pub fn assigns(&self, at: usize) -> bool {
        self.is_sign(at, b'=') || self.is_sign(at, b'.') || self.is(at, b"to") || self.is(at, b"from")
    }

    /// A parameter's name at `at` in lower case, its parts joined with dots, and where the tokens behind it begin.
    pub fn parameter(&self, at: usize) -> (Option<String>, usize) {
        let mut name = self.identifier(at);
        let mut next = at + 1;
        while self.is_sign(next, b'.') {
            name = name.zip(self.identifier(next + 1)).map(|(name, part)| name + "." + &part);
            next += 2;
        }
        (name.map(|name| name.to_ascii_lowercase()), next)
    }

    /// The name of a channel or a prepared statement at `at`, as PostgreSQL keeps it.
    pub fn name(&self, at: usize) -> Option<String> {
        let name = self.identifier(at)?;
        let keyword = matches!(self.tokens.get(at)?.kind, Kind::Word { .. }) && words::is_reserved(&name);
        (!keyword).then_some(name)
    }

    /// An identifier that is text, with its letters in lower case unless it is quoted.
    fn identifier(&self, at: usize) -> Option<String> {
        let token = self.tokens.get(at)?;
        let text = str::from_utf8(token.text(self.sql)).ok()?;
        let mut name = match token.kind {
            Kind::Word { .. } => text.to_ascii_lowercase(),
            Kind::Quoted { .. } => text.replace("\"\"", "\""),
            _ => return None,
        };
        while name.len() > MAX_NAME {
            name.pop();
        }
        (!name.is_empty()).then_some(name)
    }

    /// What a statement that begins with one of the words of transaction control does.
    pub fn control(&self) -> Control {
        let at = if self.is(1, b"work") || self.is(1, b"transaction") { 2 } else { 1 };
        let plain = self.ends_at(at)
            || (self.is(at, b"and") && self.is(at + 1, b"no") && self.is(at + 2, b"chain") && self.ends_at(at + 3));
        match self.word(0).to_ascii_lowercase().as_slice() {
            b"begin" if self.are_modes(at) => Control::Plain(Alone::Begin),
            b"start" if self.is(1, b"transaction") && self.are_modes(at) => Control::Plain(Alone::Begin),
            b"commit" | b"end" if plain => Control::Plain(Alone::Commit),
            b"rollback" | b"abort" if plain => Control::Plain(Alone::Rollback),
            b"rollback" if self.is(at, b"to") => Control::Savepoint,
            b"savepoint" | b"release" => Control::Savepoint,
            _ => Control::More,
        }
    }

    /// Whether all that stands from `at` on is transaction modes, with or without commas.
    fn are_modes(&self, mut at: usize) -> bool {
        const MODES: [&[&[u8]]; 8] = [
            &[b"isolation", b"level", b"serializable"],
            &[b"isolation", b"level", b"repeatable", b"read"],
            &[b"isolation", b"level", b"read", b"committed"],
            &[b"isolation", b"level", b"read", b"uncommitted"],
            &[b"read", b"only"],
            &[b"read", b"write"],
            &[b"deferrable"],
            &[b"not", b"deferrable"],
        ];
        while !self.ends_at(at) {
            let is_here = |mode: &&&[&[u8]]| mode.iter().enumerate().all(|(offset, word)| self.is(at + offset, word));
            let Some(mode) = MODES.iter().find(is_here) else { return false };
            at += mode.len();
            if self.is_sign(at, b',') {
                at += 1;
                if self.ends_at(at) {
                    return false;
                }
            }
        }
        true
    }
}
