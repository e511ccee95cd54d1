//! A fast look at a statement's text: could it leave state behind that no command tag tells of?
//!
//! Command tags tell of SET, LISTEN, PREPARE and the like. They do not tell of `SELECT set_config(…)`, of session
//! advisory locks, or of tables made with TEMP. What is in doubt counts as yes: the price is one reset.

use memchr::{memchr_iter, memchr2_iter};

/// Whether `sql` mentions `set_config`, a session advisory lock or anything temporary.
pub fn leaves_state(sql: &[u8]) -> bool {
    memchr_iter(b'_', sql).any(|at| underscore(&sql[..at], &sql[at + 1..]))
        || memchr2_iter(b't', b'T', sql).any(|at| starts_with(&sql[at..], b"temp"))
}

fn underscore(before: &[u8], after: &[u8]) -> bool {
    (ends_with(before, b"set") && starts_with(after, b"config"))
        // pg_advisory_xact_lock ends with its transaction.
        || (ends_with(before, b"advisory") && !starts_with(after, b"xact"))
}

fn starts_with(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}

fn ends_with(text: &[u8], word: &[u8]) -> bool {
    text.len() >= word.len() && text[text.len() - word.len()..].eq_ignore_ascii_case(word)
}

/// Whether a CommandComplete tag tells of state that outlives the transaction. DISCARD ALL does as RESET does: it takes
/// away the parameters that we set for the session, and the next one would be thought to have them.
pub fn tag_leaves_state(tag: &[u8]) -> bool {
    match tag.first() {
        Some(b'S') => tag == b"SET",
        Some(b'R') => tag == b"RESET",
        Some(b'L') => tag == b"LISTEN" || tag == b"LOAD",
        Some(b'P') => tag == b"PREPARE",
        // Procedures and blocks run whatever they like, dynamic SQL included.
        Some(b'C') => tag == b"CALL",
        Some(b'D') => tag == b"DECLARE CURSOR" || tag == b"DO" || tag == b"DISCARD ALL",
        _ => false,
    }
}

/// What a CommandComplete tag says about prepared statements.
pub fn tag_drops_statements(tag: &[u8]) -> bool {
    tag == b"DISCARD ALL" || tag == b"DEALLOCATE ALL"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_state_is_seen() {
        for sql in [
            "SELECT set_config('a', 'b', false)",
            "select SET_CONFIG ('a','b',false)",
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_try_advisory_lock_shared(1)",
            "CREATE TEMP TABLE x()",
            "create local temporary table x()",
            "CREATE TABLE pg_temp.x()",
        ] {
            assert!(leaves_state(sql.as_bytes()), "{sql}");
        }
    }

    #[test]
    fn ordinary_statements_are_not() {
        for sql in
            ["SELECT abalance FROM pgbench_accounts WHERE aid = 1", "SELECT pg_advisory_xact_lock(1)", "", "_", "t"]
        {
            assert!(!leaves_state(sql.as_bytes()), "{sql}");
        }
    }

    #[test]
    fn tags() {
        for tag in ["SET", "RESET", "LISTEN", "LOAD", "PREPARE", "DECLARE CURSOR", "DISCARD ALL", "DO", "CALL"] {
            assert!(tag_leaves_state(tag.as_bytes()), "{tag}");
        }
        assert!(!tag_leaves_state(b"SELECT 1") && !tag_leaves_state(b"") && !tag_leaves_state(b"DELETE 3"));
        assert!(tag_drops_statements(b"DISCARD ALL") && !tag_drops_statements(b"DISCARD TEMP"));
    }
}
