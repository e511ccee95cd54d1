//! The words that tell of session state, and how to pass over all the others quickly.

use super::lex::is_part;
use super::marks::Marks;

/// Words that may begin a statement of note.
#[rustfmt::skip]
const LEADING: &[&[u8]] = &[
    b"abort", b"begin", b"call", b"close", b"commit", b"create", b"deallocate", b"declare", b"discard", b"do", b"drop",
    b"end", b"execute", b"explain", b"listen", b"load", b"prepare", b"release", b"reset", b"rollback", b"savepoint",
    b"set", b"start", b"unlisten",
];

const SLOT: Marks = Marks::FOREIGN;

/// Functions that make, change or read session state, apart from `set_config` and those with `advisory` in their name.
const FUNCTIONS: &[(&[u8], Marks)] = &[
    (b"nextval", Marks::SEQUENCE),
    (b"setval", Marks::SEQUENCE),
    (b"currval", Marks::SEQUENCE_READ),
    (b"lastval", Marks::SEQUENCE_READ),
    (b"setseed", Marks::SEED),
    (b"dblink_connect", Marks::FOREIGN),
    (b"dblink_connect_u", Marks::FOREIGN),
    (b"dblink_open", Marks::FOREIGN),
    (b"pg_replication_origin_session_setup", Marks::FOREIGN),
    (b"pg_replication_origin_session_reset", Marks::FOREIGN),
    // They make temporary slots if an argument says so.
    (b"pg_create_physical_replication_slot", SLOT),
    (b"pg_create_logical_replication_slot", SLOT),
    (b"pg_copy_physical_replication_slot", SLOT),
    (b"pg_copy_logical_replication_slot", SLOT),
    (b"pg_prepared_statement", Marks::STATEMENTS),
    // What this backend has counted and not told the others yet.
    (b"pg_stat_force_next_flush", Marks::FOREIGN),
    // A base backup ends with the session that began it; the first names are PostgreSQL 15's.
    (b"pg_backup_start", Marks::FOREIGN),
    (b"pg_backup_stop", Marks::FOREIGN),
    (b"pg_start_backup", Marks::FOREIGN),
    (b"pg_stop_backup", Marks::FOREIGN),
];

/// Further words of note, wherever they stand.
const OTHERS: &[&[u8]] =
    &[b"temp", b"temporary", b"pg_temp", b"pg_settings", b"set_config", b"set_limit", b"pg_prepared_statements"];

/// Which lengths the words of a list have that begin or end with a letter: most other words have neither.
struct Filter {
    first: [u64; 32],
    last: [u64; 32],
}

impl Filter {
    const fn new() -> Filter {
        Filter { first: [0; 32], last: [0; 32] }
    }

    const fn with(mut self, word: &[u8]) -> Filter {
        self.first[(word[0] & 31) as usize] |= 1 << word.len();
        self.last[(word[word.len() - 1] & 31) as usize] |= 1 << word.len();
        self
    }

    #[inline(always)]
    fn lets_through(&self, word: &[u8]) -> bool {
        let (Some(first), Some(last)) = (word.first(), word.last()) else { return false };
        let lengths = self.first[usize::from(first & 31)] & self.last[usize::from(last & 31)];
        word.len() < 64 && lengths >> word.len() & 1 == 1
    }
}

static OF_LEADING: Filter = {
    let mut filter = Filter::new();
    let mut next = 0;
    while next < LEADING.len() {
        filter = filter.with(LEADING[next]);
        next += 1;
    }
    filter
};

static OF_NOTE: Filter = {
    let mut filter = Filter::new();
    let mut next = 0;
    while next < FUNCTIONS.len() {
        filter = filter.with(FUNCTIONS[next].0);
        next += 1;
    }
    next = 0;
    while next < OTHERS.len() {
        filter = filter.with(OTHERS[next]);
        next += 1;
    }
    filter
};

/// Whether a statement that begins with `word` deserves a closer look.
pub fn is_leading(word: &[u8]) -> bool {
    OF_LEADING.lets_through(word) && LEADING.iter().any(|leading| word.eq_ignore_ascii_case(leading))
}

/// Whether `word` deserves a closer look wherever it stands, those with `advisory` in them apart.
#[inline(always)]
pub fn is_of_note(word: &[u8]) -> bool {
    (OF_NOTE.lets_through(word) && is_listed(word)) || (word.len() > PG_TEMP.len() && is_temporary_schema(word))
}

fn is_listed(word: &[u8]) -> bool {
    OTHERS.iter().any(|other| word.eq_ignore_ascii_case(other)) || function(word).is_some()
}

/// What a call of the function `name` does to its session.
pub fn function(name: &[u8]) -> Option<Marks> {
    FUNCTIONS.iter().find(|(function, _)| name.eq_ignore_ascii_case(function)).map(|(_, marks)| *marks)
}

/// Whether it is a function on session advisory locks. Those with `xact` in their names end with the transaction.
pub fn is_advisory(name: &[u8]) -> bool {
    has(name, b"advisory") && !has(name, b"xact")
}

const PG_TEMP: &[u8] = b"pg_temp";

/// `pg_temp` or `pg_temp_3`.
#[inline(always)]
pub fn is_temporary_schema(name: &[u8]) -> bool {
    name.get(..PG_TEMP.len()).is_some_and(|start| start[2] == b'_' && start.eq_ignore_ascii_case(PG_TEMP))
        && name.get(PG_TEMP.len()).is_none_or(|next| *next == b'_')
}

/// Whether `text` contains `word`, in any case.
pub fn has(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

/// Longer strings are no dates, not even an array of them.
const MAX_DATES: usize = 1024;

/// Whether a string, as it stands in the text, has a word for a moment in it: by itself, beside a time of day, or in an array
/// or a range. Escapes are not read.
pub fn is_moment(literal: &[u8]) -> bool {
    let ends_here = |(at, byte): (usize, &u8)| {
        matches!(byte | 0x20, b'w' | b'y')
            && !literal.get(at + 1).is_some_and(u8::is_ascii_alphabetic)
            && ends_in_moment(&literal[..=at])
    };
    literal.len() <= MAX_DATES && literal.iter().enumerate().any(ends_here)
}

fn ends_in_moment(text: &[u8]) -> bool {
    [&b"now"[..], b"today", b"tomorrow", b"yesterday"].iter().any(|word| {
        let (before, last) = text.split_at(text.len().saturating_sub(word.len()));
        last.eq_ignore_ascii_case(word) && !before.last().is_some_and(u8::is_ascii_alphabetic)
    })
}

/// Words that change session state inside the body of a DO block, in whatever place and string they stand there.
const IN_BODIES: &[(&[u8], Marks)] = &[
    (b"set", Marks::PARAMETERS),
    (b"reset", Marks::PARAMETERS),
    (b"set_config", Marks::PARAMETERS),
    (b"set_limit", Marks::PARAMETERS),
    (b"pg_settings", Marks::PARAMETERS),
    (b"discard", Marks::PARAMETERS.with(Marks::TEMPORARY).with(Marks::DISCARD_SEQUENCES)),
    (b"temp", Marks::TEMPORARY),
    (b"temporary", Marks::TEMPORARY),
    (b"drop", Marks::TEMPORARY),
    (b"hold", Marks::CURSOR),
    (b"close", Marks::CURSOR),
    (b"listen", Marks::LISTEN),
    (b"unlisten", Marks::LISTEN),
    (b"prepare", Marks::PREPARED),
    (b"deallocate", Marks::PREPARED),
    (b"load", Marks::LOAD),
];

/// The marks of all words in the body of a block.
pub fn in_body(body: &[u8]) -> Marks {
    let mut marks = Marks::default();
    for word in body.split(|byte| !is_part(*byte) || *byte == b'$').filter(|word| word.len() > 2) {
        if let Some((_, found)) = IN_BODIES.iter().find(|(listed, _)| word.eq_ignore_ascii_case(listed)) {
            marks |= *found;
        } else if is_temporary_schema(word) {
            marks |= Marks::TEMPORARY;
        } else if is_advisory(word) {
            marks |= Marks::ADVISORY;
        } else if let Some(found) = function(word) {
            marks |= found;
        }
    }
    marks
}

/// Keywords that can name neither a channel nor a prepared statement (PostgreSQL manual, appendix C: those that are
/// reserved, or can be the name of a function or type at most).
#[rustfmt::skip]
const RESERVED: &[&str] = &[
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization", "binary", "both",
    "case", "cast", "check", "collate", "collation", "column", "concurrently", "constraint", "create", "cross",
    "current_catalog", "current_date", "current_role", "current_schema", "current_time", "current_timestamp",
    "current_user", "default", "deferrable", "desc", "distinct", "do", "else", "end", "except", "false", "fetch", "for",
    "foreign", "freeze", "from", "full", "grant", "group", "having", "ilike", "in", "initially", "inner", "intersect",
    "into", "is", "isnull", "join", "lateral", "leading", "left", "like", "limit", "localtime", "localtimestamp",
    "natural", "not", "notnull", "null", "offset", "on", "only", "or", "order", "outer", "overlaps", "placing",
    "primary", "references", "returning", "right", "select", "session_user", "similar", "some", "symmetric",
    "system_user", "table", "tablesample", "then", "to", "trailing", "true", "union", "unique", "user", "using",
    "variadic", "verbose", "when", "where", "window", "with",
];

pub fn is_reserved(word: &str) -> bool {
    RESERVED.binary_search(&word).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_in_order() {
        assert!(RESERVED.is_sorted() && LEADING.is_sorted());
        assert!(is_reserved("user") && !is_reserved("users"));
    }

    #[test]
    fn the_filter_lets_every_word_through() {
        for word in LEADING {
            assert!(is_leading(word) && is_leading(&word.to_ascii_uppercase()));
        }
        for (word, _) in FUNCTIONS {
            assert!(is_of_note(word) && is_of_note(&word.to_ascii_uppercase()));
        }
        for word in ["pg_temp_3", "PG_TEMP", "temp", "Set_Config"] {
            assert!(is_of_note(word.as_bytes()), "{word}");
        }
        for word in ["select", "template", "settings", "", "pg_tem", "system"] {
            assert!(!is_of_note(word.as_bytes()), "{word}");
        }
    }
}
