//! The closer look: statement by statement, each by its first words, and by the words of note anywhere in it.

use std::ops::Range;

use super::head::{Control, Head};
use super::lex::{Kind, Lexer, Token};
use super::{Alone, Look, Marks, Reset, words};

/// Parameters and resets that we list of one text. No real one has as many, and a hostile one must not cost us more.
const MAX_LISTED: usize = 64;

/// Parameters that end with the transaction even if they are SET without LOCAL.
const OF_TRANSACTION: [&str; 3] = ["transaction_isolation", "transaction_read_only", "transaction_deferrable"];

const SEARCH_PATH: &str = "search_path";

/// The state of a closer look.
pub struct Scan<'a> {
    sql: &'a [u8],
    lexer: Lexer<'a>,
    look: Look,
    /// Statements before this one.
    statements: usize,
    /// Some statement is about transactions; and it does more than make a savepoint, or begin or end one.
    transaction: bool,
    more: bool,
    head: Head<'a>,
    previous: Option<Token>,
    parentheses: usize,
    /// How many ENDs are missing in the body of a routine in standard SQL, BEGIN ATOMIC … END.
    blocks: usize,
    /// The statement is DO or CALL.
    opaque: bool,
    /// UPDATE stood in the statement.
    updates: bool,
    /// The search path changes.
    path: bool,
}

impl<'a> Scan<'a> {
    pub fn new(sql: &'a [u8], standard_strings: bool) -> Scan<'a> {
        Scan {
            sql,
            lexer: Lexer::new(sql, standard_strings),
            look: Look::default(),
            statements: 0,
            transaction: false,
            more: false,
            head: Head::new(sql),
            previous: None,
            parentheses: 0,
            blocks: 0,
            opaque: false,
            updates: false,
            path: false,
        }
    }

    pub fn run(mut self) -> Look {
        while let Some(token) = self.lexer.next() {
            match token.kind {
                Kind::Sign(b';') if self.parentheses == 0 && self.blocks == 0 => {
                    self.end_statement();
                    continue;
                }
                Kind::Sign(b'(') => self.parentheses += 1,
                Kind::Sign(b')') => self.parentheses = self.parentheses.saturating_sub(1),
                Kind::Sign(_) => {}
                Kind::Word { .. } => self.word(token),
                Kind::Quoted { .. } => self.name(token),
                Kind::Unicode => self.unicode(token),
                Kind::Literal { .. } if self.opaque => self.look.marks |= words::in_body(token.text(self.sql)),
                Kind::Literal { .. } if words::is_moment(token.text(self.sql)) => self.look.marks |= Marks::MOMENT,
                Kind::Literal { .. } => {}
            }
            self.library(token);
            self.head.push(token);
            self.previous = Some(token);
        }
        let cut_off = self.lexer.in_doubt() || self.blocks > 0;
        self.end_statement();
        if cut_off {
            self.look.marks |= Marks::OPAQUE;
        }
        if cut_off || self.statements > 1 {
            self.look.alone = None;
            self.more |= self.transaction;
        }
        if self.more {
            self.look.marks |= Marks::TRANSACTION;
        }
        // Behind `SET search_path = 'pg_temp'`, what is made without a schema is temporary.
        if self.path && words::has(self.sql, b"pg_temp") {
            self.look.marks |= Marks::TEMPORARY;
        }
        self.look
    }

    fn previous_is(&self, words: &[&[u8]]) -> bool {
        self.previous.is_some_and(|token| {
            matches!(token.kind, Kind::Word { .. })
                && words.iter().any(|word| token.text(self.sql).eq_ignore_ascii_case(word))
        })
    }

    /// A keyword or a name without quotes.
    fn word(&mut self, token: Token) {
        let word = token.text(self.sql);
        let is = |other: &[u8]| word.eq_ignore_ascii_case(other);
        match word.len() {
            2 | 4 if self.head.start().is_none() && (is(b"do") || is(b"call")) => {
                self.opaque = true;
                self.look.marks |= Marks::OPAQUE;
            }
            3 | 4 if self.blocks > 0 && self.is_keyword_here() && (is(b"end") || is(b"case")) => {
                self.blocks = if is(b"end") { self.blocks - 1 } else { self.blocks + 1 };
            }
            4 if is(b"hold") && self.head.is(0, b"declare") && !self.previous_is(&[b"without"]) => {
                self.look.marks |= Marks::CURSOR;
            }
            6 if is(b"update") => self.updates = true,
            6 if is(b"atomic") && self.previous_is(&[b"begin"]) && self.makes_a_routine() => {
                self.blocks = self.blocks.max(1);
            }
            7 if is(b"execute") && (self.head.is(0, b"explain") || self.previous_is(&[b"as"])) => {
                self.look.marks |= Marks::EXECUTE;
            }
            4 | 9 if is(b"temp") || is(b"temporary") => {
                if self.previous_is(&[b"create", b"replace", b"local", b"global", b"into", b"discard"]) {
                    self.look.marks |= Marks::TEMPORARY;
                }
            }
            _ => self.name(token),
        }
    }

    /// A function in C brings its library with it, which may keep anything.
    fn library(&mut self, token: Token) {
        let is_c = |text: &[u8]| text.eq_ignore_ascii_case(b"c") || text.eq_ignore_ascii_case(b"'c'");
        if is_c(token.text(self.sql)) && self.previous_is(&[b"language"]) && self.makes_a_routine() {
            self.look.marks |= Marks::LOAD;
        }
    }

    /// Whether the next word is no label or column, which may be called as a keyword is.
    fn is_keyword_here(&self) -> bool {
        !self.previous_is(&[b"as"]) && !self.previous.is_some_and(|token| token.is_sign(b'.'))
    }

    fn makes_a_routine(&self) -> bool {
        let at = if self.head.is(1, b"or") { 3 } else { 1 };
        self.head.is(0, b"create") && (self.head.is(at, b"function") || self.head.is(at, b"procedure"))
    }

    /// A name that may be a function's or a schema's, with or without quotes.
    fn name(&mut self, token: Token) {
        let name = token.text(self.sql);
        if token.may_be_advisory() && words::is_advisory(name) && self.is_called() {
            self.look.marks |= Marks::ADVISORY;
        }
        if !words::is_of_note(name) {
            return;
        }
        if words::is_temporary_schema(name) {
            self.look.marks |= Marks::TEMPORARY;
        } else if name.eq_ignore_ascii_case(b"pg_prepared_statements") {
            self.look.marks |= Marks::STATEMENTS;
        } else if name.eq_ignore_ascii_case(b"pg_settings") {
            // A rule on this view calls set_config.
            if self.updates {
                self.look.marks |= Marks::PARAMETERS;
            }
        } else if self.is_called() {
            if name.eq_ignore_ascii_case(b"set_config") {
                self.set_config();
            } else if name.eq_ignore_ascii_case(b"set_limit") {
                self.list("pg_trgm.similarity_threshold".into());
            } else if let Some(marks) = words::function(name) {
                self.look.marks |= marks;
            }
        }
    }

    /// What a name in U&"…" says is not for us to decode if it has escapes, whose sign may be any.
    fn unicode(&mut self, token: Token) {
        let name = token.text(self.sql).get(3..).and_then(|name| name.strip_suffix(b"\"")).unwrap_or_default();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        if !name.iter().all(plain) || words::is_of_note(name) || words::is_advisory(name) {
            self.look.marks |= Marks::OPAQUE;
        }
    }

    fn is_called(&self) -> bool {
        self.lexer.clone().next().is_some_and(|token| token.is_sign(b'('))
    }

    /// The lexer stands behind `set_config`.
    fn set_config(&mut self) {
        match self.first_argument() {
            Some(name) => self.change(name),
            None => self.look.marks |= Marks::PARAMETERS,
        }
    }

    /// The first argument of a call if it is a string that means what it says, `'…'` or `'…'::text`.
    fn first_argument(&self) -> Option<String> {
        let mut lexer = self.lexer.clone();
        lexer.next()?;
        let literal = lexer.next()?;
        if literal.kind != (Kind::Literal { plain: true }) {
            return None;
        }
        let mut next = lexer.next()?;
        if next.is_sign(b':') && lexer.next()?.is_sign(b':') {
            let kind = lexer.next()?.text(self.sql);
            if !kind.eq_ignore_ascii_case(b"text") && !kind.eq_ignore_ascii_case(b"varchar") {
                return None;
            }
            next = lexer.next()?;
        }
        let name = str::from_utf8(&self.sql[literal.start + 1..literal.end - 1]).ok()?;
        next.is_sign(b',').then(|| name.to_ascii_lowercase())
    }

    fn end_statement(&mut self) {
        if let Some(start) = self.head.start() {
            let end = self.previous.map_or(start, |token| token.outer_end());
            self.first_word(start..end);
            self.statements += 1;
        }
        self.head.clear();
        self.previous = None;
        self.opaque = false;
        self.updates = false;
    }

    fn first_word(&mut self, range: Range<usize>) {
        if !words::is_leading(self.head.word(0)) {
            return;
        }
        match self.head.word(0).to_ascii_lowercase().as_slice() {
            b"set" => self.set(range),
            b"reset" => self.reset(range),
            b"begin" | b"start" | b"commit" | b"end" | b"abort" | b"rollback" | b"savepoint" | b"release" => {
                self.control(self.head.control());
            }
            b"prepare" => {
                // A prepared statement may be called `transaction`.
                let named = self.head.is(2, b"as") || self.head.is_sign(2, b'(');
                if self.head.is(1, b"transaction") && !named {
                    self.control(Control::More);
                } else {
                    self.look.marks |= Marks::PREPARED;
                }
            }
            b"deallocate" => self.deallocate(),
            b"execute" => self.look.marks |= Marks::EXECUTE,
            b"listen" | b"unlisten" => self.listen(),
            b"load" => self.look.marks |= Marks::LOAD,
            b"discard" => self.discard(),
            b"close" => self.look.marks |= Marks::CURSOR,
            b"drop" => self.look.marks |= Marks::TEMPORARY,
            _ => {}
        }
    }

    fn control(&mut self, control: Control) {
        self.transaction = true;
        match control {
            Control::Plain(alone) => self.look.alone = Some(alone),
            Control::Savepoint => {}
            Control::More => self.more = true,
        }
    }

    fn deallocate(&mut self) {
        self.look.marks |= Marks::PREPARED;
        let at = if self.head.is(1, b"prepare") && !self.head.ends_at(2) { 2 } else { 1 };
        if self.head.ends_at(at + 1) {
            let all = self.head.is(at, b"all");
            self.look.alone = if all { Some(Alone::DeallocateAll) } else { self.head.name(at).map(Alone::Deallocate) };
        }
    }

    fn listen(&mut self) {
        self.look.marks |= Marks::LISTEN;
        if self.look.channels.len() < MAX_LISTED {
            let all = self.head.is(0, b"unlisten") && self.head.is_sign(1, b'*');
            self.look.channels.push((!all).then(|| self.head.name(1).unwrap_or_default()));
        }
        if self.head.ends_at(2) {
            let unlisten = self.head.is(0, b"unlisten");
            self.look.alone = match self.head.name(1) {
                Some(channel) if unlisten => Some(Alone::Unlisten(channel)),
                Some(channel) => Some(Alone::Listen(channel)),
                None => (unlisten && self.head.is_sign(1, b'*')).then_some(Alone::UnlistenAll),
            };
        }
    }

    fn discard(&mut self) {
        if self.head.is(1, b"all") {
            self.look.marks |= Marks::DISCARD_ALL | Marks::DISCARD_SEQUENCES | Marks::PARAMETERS | Marks::TEMPORARY;
            self.look.alone = self.head.ends_at(2).then_some(Alone::DiscardAll);
        } else if self.head.is(1, b"sequences") {
            self.look.marks |= Marks::DISCARD_SEQUENCES;
        }
    }

    fn set(&mut self, range: Range<usize>) {
        let head = &self.head;
        let local = head.is(1, b"local") && !head.assigns(2);
        // SESSION is part of what follows in SET SESSION AUTHORIZATION and SET SESSION CHARACTERISTICS.
        let whole = (head.is(2, b"authorization") || head.is(2, b"characteristics")) && !head.assigns(3);
        let session = head.is(1, b"session") && !head.assigns(2) && !whole;
        let at = if local || session { 2 } else { 1 };
        let default = |at: usize| head.is(at, b"default") && head.ends_at(at + 1);
        let (name, default) = if head.assigns(at + 1) {
            let (name, next) = head.parameter(at);
            (name, default(next + 1) && !head.is(next, b"from"))
        } else {
            match head.word(at).to_ascii_lowercase().as_slice() {
                b"time" => {
                    let local = head.is(at + 2, b"local") && head.ends_at(at + 3);
                    (Some("timezone".into()), default(at + 2) || local)
                }
                b"names" => (Some("client_encoding".into()), head.ends_at(at + 1) || default(at + 1)),
                b"session" if head.is(at + 1, b"characteristics") => return self.characteristics(local),
                b"session" => (Some("session_authorization".into()), default(at + 2)),
                b"schema" => (Some(SEARCH_PATH.into()), false),
                b"role" => (Some("role".into()), false),
                b"xml" => (Some("xmloption".into()), false),
                b"transaction" | b"constraints" | b"catalog" => return,
                _ => (None, false),
            }
        };
        self.path |= name.as_deref() == Some(SEARCH_PATH);
        if default {
            self.go_back(range, name.clone(), local, "SET");
        }
        match name {
            Some(name) if !local => self.change(name),
            Some(_) => self.look.marks |= Marks::LOCAL,
            None => self.look.marks |= Marks::PARAMETERS,
        }
    }

    fn characteristics(&mut self, local: bool) {
        if !local {
            for name in OF_TRANSACTION {
                self.list(format!("default_{name}"));
            }
        }
    }

    fn reset(&mut self, range: Range<usize>) {
        let head = &self.head;
        let (name, end) = if head.is(1, b"all") {
            self.look.marks |= Marks::PARAMETERS;
            if head.ends_at(2) {
                self.go_back(range, None, false, "RESET");
            }
            return;
        } else if head.is(1, b"time") && head.is(2, b"zone") {
            (Some("timezone".into()), 3)
        } else if head.is(1, b"session") && head.is(2, b"authorization") {
            (Some("session_authorization".into()), 3)
        } else if head.is(1, b"transaction") && head.is(2, b"isolation") {
            return;
        } else {
            head.parameter(1)
        };
        if name.is_some() && head.ends_at(end) {
            self.go_back(range, name.clone(), false, "RESET");
        }
        match name {
            Some(name) => self.change(name),
            None => self.look.marks |= Marks::PARAMETERS,
        }
    }

    fn go_back(&mut self, range: Range<usize>, name: Option<String>, local: bool, tag: &'static str) {
        if name.as_deref().is_some_and(|name| OF_TRANSACTION.contains(&name) || name == "seed") {
            return;
        }
        if self.look.resets.len() == MAX_LISTED {
            self.look.marks |= Marks::PARAMETERS | Marks::OPAQUE;
        } else {
            self.look.resets.push(Reset { range, statement: self.statements, name, local, tag });
        }
    }

    /// The session's `name` changes.
    fn change(&mut self, name: String) {
        match name.as_str() {
            "seed" => self.look.marks |= Marks::SEED,
            name if OF_TRANSACTION.contains(&name) => {}
            SEARCH_PATH => {
                self.path = true;
                self.list(name);
            }
            "session_authorization" => {
                self.list(name);
                self.list("role".into());
            }
            _ => self.list(name),
        }
    }

    fn list(&mut self, name: String) {
        if self.look.parameters.contains(&name) {
            return;
        }
        if self.look.parameters.len() == MAX_LISTED {
            self.look.marks |= Marks::PARAMETERS;
        } else {
            self.look.parameters.push(name);
        }
    }
}
