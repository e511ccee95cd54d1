//! The tokens of SQL text, as PostgreSQL's scan.l has them, as far as it takes to tell words from strings and comments.
//!
//! Bytes from 0x80 on are letters, as there. Numbers fall apart into digits, signs and words, which matters to nobody.

use memchr::{memchr, memchr2, memmem};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An identifier or keyword. `hints` are the bits of its letters that `may_be_advisory` asks for.
    Word { hints: u8 },
    /// `"…"`: the token's range is without the quotes.
    Quoted { hints: u8 },
    /// `U&"…"`
    Unicode,
    /// A string of any kind. Plain: what stands between its quotes is its value.
    Literal { plain: bool },
    /// Any other byte, or a row of digits, of which it has the first.
    Sign(u8),
}

#[derive(Debug, Clone, Copy)]
pub struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

impl Token {
    pub fn text<'a>(&self, sql: &'a [u8]) -> &'a [u8] {
        &sql[self.start..self.end]
    }

    /// Where it ends in the text, its quote included.
    pub fn outer_end(&self) -> usize {
        self.end + usize::from(matches!(self.kind, Kind::Quoted { .. }))
    }

    pub fn is_sign(&self, byte: u8) -> bool {
        self.kind == Kind::Sign(byte)
    }

    /// Whether its letters allow that `advisory` is part of it.
    pub fn may_be_advisory(&self) -> bool {
        matches!(self.kind, Kind::Word { hints } | Kind::Quoted { hints } if hints & HINTS == HINTS)
    }
}

// What a byte may begin, in the low bits, and what it is inside a word, in the high ones.
const OTHER: u8 = 0;
const QUOTE: u8 = 1;
const DOUBLE_QUOTE: u8 = 2;
const DOLLAR: u8 = 3;
const MINUS: u8 = 4;
const SLASH: u8 = 5;
const DIGIT: u8 = 6;
const BEGINS: u8 = 7;
const SPACE: u8 = 0x08;
const LETTER: u8 = 0x10;
const PART: u8 = 0x80;
// Some letters of `advisory` that few words have together.
const HINTS: u8 = V | Y;
const V: u8 = 0x40;
const Y: u8 = 0x20;

static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [OTHER; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
            b'v' | b'V' => LETTER | PART | V,
            b'y' | b'Y' => LETTER | PART | Y,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => LETTER | PART,
            b'0'..=b'9' => DIGIT | PART,
            b'$' => DOLLAR | PART,
            b'\'' => QUOTE,
            b'"' => DOUBLE_QUOTE,
            b'-' => MINUS,
            b'/' => SLASH,
            _ => OTHER,
        };
        byte += 1;
    }
    table
}

/// Whether `byte` can be inside an identifier.
pub fn is_part(byte: u8) -> bool {
    CLASS[usize::from(byte)] & PART != 0
}

#[derive(Debug, Clone)]
pub struct Lexer<'a> {
    sql: &'a [u8],
    at: usize,
    /// `standard_conforming_strings`: a backslash in '…' is a backslash.
    standard: bool,
    cut_off: bool,
    /// A backslash that escapes stands behind a byte from 0x80 on.
    odd_escape: bool,
}

impl<'a> Lexer<'a> {
    pub fn new(sql: &'a [u8], standard: bool) -> Lexer<'a> {
        Lexer { sql, at: 0, standard, cut_off: false, odd_escape: false }
    }

    /// Whether what was read so far may be something else to PostgreSQL: it ended inside a string or comment, or what
    /// we took for a backslash may be half a character of an encoding such as SJIS.
    pub fn in_doubt(&self) -> bool {
        self.cut_off || (self.odd_escape && str::from_utf8(self.sql).is_err())
    }

    #[inline(always)]
    pub fn next(&mut self) -> Option<Token> {
        loop {
            let start = self.at;
            let &byte = self.sql.get(start)?;
            let class = CLASS[usize::from(byte)];
            // The two most common ones have a bit of their own, which is faster than a jump table.
            if class & LETTER != 0 {
                return Some(self.word(start));
            }
            if class & SPACE != 0 {
                self.at += 1;
                continue;
            }
            match class & BEGINS {
                QUOTE => return Some(self.string(start, start, !self.standard)),
                DOUBLE_QUOTE => return Some(self.quoted(start)),
                DOLLAR => return Some(self.dollar(start)),
                MINUS if self.sql.get(start + 1) == Some(&b'-') => self.line_comment(),
                SLASH if self.sql.get(start + 1) == Some(&b'*') => self.block_comment(),
                DIGIT => return Some(self.digits(start)),
                _ => return Some(self.token(Kind::Sign(byte), start, start + 1)),
            }
        }
    }

    #[inline(always)]
    fn token(&mut self, kind: Kind, start: usize, end: usize) -> Token {
        self.at = end;
        Token { kind, start, end }
    }

    #[inline(always)]
    fn word(&mut self, start: usize) -> Token {
        let mut hints = 0;
        let mut end = start;
        while let Some(&byte) = self.sql.get(end) {
            let class = CLASS[usize::from(byte)];
            if class & PART == 0 {
                break;
            }
            hints |= class;
            end += 1;
        }
        if end == start + 1
            && let Some(b'\'' | b'&') = self.sql.get(end)
            && let Some(token) = self.prefixed(start)
        {
            return token;
        }
        self.token(Kind::Word { hints }, start, end)
    }

    #[inline(always)]
    fn digits(&mut self, start: usize) -> Token {
        let mut end = start + 1;
        while self.sql.get(end).is_some_and(u8::is_ascii_digit) {
            end += 1;
        }
        self.token(Kind::Sign(self.sql[start]), start, end)
    }

    /// E'…', B'…', X'…', N'…', U&'…' and U&"…".
    #[cold]
    fn prefixed(&mut self, start: usize) -> Option<Token> {
        match (self.sql[start].to_ascii_lowercase(), self.sql.get(start + 1)?, self.sql.get(start + 2)) {
            (b'e', b'\'', _) => Some(self.string(start, start + 1, true)),
            (b'n', b'\'', _) => Some(self.string(start, start + 1, !self.standard)),
            (b'b' | b'x', b'\'', _) => Some(self.string(start, start + 1, false)),
            (b'u', b'&', Some(b'\'')) => Some(self.string(start, start + 2, false)),
            (b'u', b'&', Some(b'"')) => {
                let end = self.quoted(start + 2).outer_end();
                Some(Token { kind: Kind::Unicode, start, end })
            }
            _ => None,
        }
    }

    /// A string whose quote is at `open`. Its parts on several lines are one string, escapes and all.
    fn string(&mut self, start: usize, open: usize, escapes: bool) -> Token {
        let mut plain = start == open;
        let mut at = open + 1;
        loop {
            let rest = self.sql.get(at..).unwrap_or_default();
            let found = if escapes { memchr2(b'\'', b'\\', rest) } else { memchr(b'\'', rest) };
            let Some(found) = found else {
                self.cut_off = true;
                return self.token(Kind::Literal { plain: false }, start, self.sql.len());
            };
            let end = at + found;
            if self.sql[end] == b'\\' {
                self.odd_escape |= self.sql[end - 1] >= 0x80;
                at = end + 2;
            } else if self.sql.get(end + 1) == Some(&b'\'') {
                at = end + 2;
            } else if let Some(next) = self.continued(end + 1) {
                at = next;
            } else {
                return self.token(Kind::Literal { plain }, start, end + 1);
            }
            plain = false;
        }
    }

    /// Where a string goes on that ended before `at`: behind white space with a line break in it and another quote.
    fn continued(&self, mut at: usize) -> Option<usize> {
        let mut lines = false;
        loop {
            match self.sql.get(at)? {
                b'\n' | b'\r' => lines = true,
                b'-' if self.sql.get(at + 1) == Some(&b'-') => {
                    // The line break is left for the next round.
                    at += memchr2(b'\n', b'\r', &self.sql[at..])? - 1;
                }
                b'\'' if lines => return Some(at + 1),
                byte if CLASS[usize::from(*byte)] == SPACE => {}
                _ => return None,
            }
            at += 1;
        }
    }

    /// An identifier in quotes. Two quotes inside stand for one.
    #[inline(always)]
    fn quoted(&mut self, open: usize) -> Token {
        let start = open + 1;
        let mut hints = 0;
        let mut end = start;
        loop {
            match self.sql.get(end) {
                Some(b'"') if self.sql.get(end + 1) == Some(&b'"') => end += 2,
                Some(b'"') => {
                    self.at = end + 1;
                    break;
                }
                Some(&byte) => {
                    hints |= CLASS[usize::from(byte)];
                    end += 1;
                }
                None => {
                    self.cut_off = true;
                    return self.token(Kind::Literal { plain: false }, open, self.sql.len());
                }
            }
        }
        Token { kind: Kind::Quoted { hints }, start, end }
    }

    /// `$tag$…$tag$`, a parameter such as `$1`, or a dollar out of place.
    fn dollar(&mut self, start: usize) -> Token {
        let mut end = start + 1;
        while let Some(&byte) = self.sql.get(end) {
            let class = CLASS[usize::from(byte)];
            if class & PART == 0 || byte == b'$' || (end == start + 1 && class & LETTER == 0) {
                break;
            }
            end += 1;
        }
        if self.sql.get(end) != Some(&b'$') {
            return self.token(Kind::Sign(b'$'), start, start + 1);
        }
        let (tag, body) = self.sql[start..].split_at(end + 1 - start);
        match memmem::find(body, tag) {
            Some(length) => self.token(Kind::Literal { plain: false }, start, end + 1 + length + tag.len()),
            None => {
                self.cut_off = true;
                self.token(Kind::Literal { plain: false }, start, self.sql.len())
            }
        }
    }

    fn line_comment(&mut self) {
        self.at = memchr2(b'\n', b'\r', &self.sql[self.at..]).map_or(self.sql.len(), |length| self.at + length);
    }

    /// Comments in `/* */` nest.
    fn block_comment(&mut self) {
        let mut at = self.at + 2;
        let mut depth = 1;
        while depth > 0 {
            let Some(found) = self.sql.get(at..).and_then(|rest| memchr2(b'*', b'/', rest)) else {
                self.cut_off = true;
                at = self.sql.len();
                break;
            };
            at += found;
            match (self.sql[at], self.sql.get(at + 1)) {
                (b'*', Some(b'/')) => (depth, at) = (depth - 1, at + 2),
                (b'/', Some(b'*')) => (depth, at) = (depth + 1, at + 2),
                _ => at += 1,
            }
        }
        self.at = at;
    }
}
