//! Whether a text asks to write where a tenant may only read: the ways out of `default_transaction_read_only`.

use super::lex::{Kind, Lexer, Token};

/// The parameters that decide it; both end like this.
const PARAMETER: &[u8] = b"transaction_read_only";

/// Whether `sql` may take its session, or a transaction in it, out of read-only mode: `READ WRITE`, the parameters by name
/// beside SET, RESET or `set_config`, and what begins another transaction in the same text. Outside of a transaction block
/// procedures can do that, too, and so can DO blocks. In doubt yes. What functions do inside is out of sight.
pub fn asks_to_write(sql: &[u8], standard_strings: bool, mut in_block: bool) -> bool {
    let mut lexer = Lexer::new(sql, standard_strings);
    let (mut names, mut sets, mut ends, mut statement) = (false, false, false, 0);
    let mut before: Option<Token> = None;
    let mut first = true;
    while let Some(token) = lexer.next() {
        let text = token.text(sql);
        if token.is_sign(b';') {
            first = true;
            continue;
        }
        if std::mem::take(&mut first) {
            statement += 1;
            // A transaction has ended, and here another begins.
            if ends {
                return true;
            }
            in_block |= is(text, b"begin") || is(text, b"start");
            let commits = [&b"commit"[..], b"rollback", b"call", b"execute"].iter().any(|word| mentions(sql, word));
            if !in_block && (is(text, b"call") || is(text, b"do") && commits) {
                return true;
            }
            ends = ends_with(text);
            // Back to a savepoint: the transaction goes on.
            ends &= !is(text, b"rollback") || statement == 1 || !mentions(sql, b"savepoint");
        }
        let word = matches!(token.kind, Kind::Word { .. });
        if word && is(text, b"write") && before.as_ref().is_some_and(|before| is(before.text(sql), b"read")) {
            return true;
        }
        sets |= word && (is(text, b"set") || is(text, b"reset")) || mentions(text, b"set_config");
        names |= mentions(text, PARAMETER) || matches!(token.kind, Kind::Unicode);
        before = Some(token);
    }
    names && sets || lexer.in_doubt() && mentions(sql, PARAMETER)
}

/// Whether a statement ends a transaction (or goes back to a savepoint), so that another may begin behind it in the same batch
/// of the extended protocol. DISCARD ALL is a transaction of its own there.
pub fn ends_transaction(sql: &[u8], standard_strings: bool) -> bool {
    let mut lexer = Lexer::new(sql, standard_strings);
    let first = std::iter::from_fn(|| lexer.next()).find(|token| !token.is_sign(b';'));
    first.is_some_and(|token| ends_with(token.text(sql)) || is(token.text(sql), b"discard"))
}

fn ends_with(first_word: &[u8]) -> bool {
    [&b"commit"[..], b"end", b"rollback", b"abort"].iter().any(|word| is(first_word, word))
}

fn is(text: &[u8], word: &[u8]) -> bool {
    text.eq_ignore_ascii_case(word)
}

fn mentions(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_out_of_read_only_mode_are_seen() {
        for text in [
            "BEGIN READ WRITE",
            "start transaction isolation level serializable, read /* x */ write",
            "SET TRANSACTION READ WRITE",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
            "set default_transaction_read_only = off",
            "SET \"transaction_read_only\" TO 0",
            "SET U&\"transaction\\005fread_only\" TO off",
            "SELECT set_config('Default_Transaction_Read_Only', 'off', false)",
            "UPDATE pg_settings SET setting = 'off' WHERE name = 'default_transaction_read_only'",
            "RESET transaction_read_only",
            "SELECT f(); COMMIT; INSERT INTO t VALUES (1)",
            "DO $$BEGIN PERFORM f(); COMMIT; INSERT INTO t VALUES (1); END$$",
            "DO $$BEGIN EXECUTE 'CA' || 'LL p()'; END$$",
            "CALL p()",
            "SELECT 1; call p()",
            "COMMIT; SELECT 1",
        ] {
            assert!(asks_to_write(text.as_bytes(), true, false), "{text}");
        }
    }

    #[test]
    fn procedures_cannot_commit_in_a_transaction_block() {
        for text in ["CALL p()", "DO $$BEGIN CALL p(); END$$"] {
            assert!(
                asks_to_write(text.as_bytes(), true, false) && !asks_to_write(text.as_bytes(), true, true),
                "{text}"
            );
        }
        assert!(asks_to_write(b"COMMIT; CALL p()", true, true));
    }

    #[test]
    fn ends_of_transactions_are_seen() {
        for text in ["COMMIT", "DISCARD ALL", "/* x */ end", "; rollback", "abort WORK", "ROLLBACK TO s"] {
            assert!(ends_transaction(text.as_bytes(), true), "{text}");
        }
        assert!(!ends_transaction(b"SELECT 1; COMMIT", true) && !ends_transaction(b"", true));
    }

    #[test]
    fn reading_is_not_taken_for_it() {
        for text in [
            "SELECT 1",
            "SHOW transaction_read_only",
            "SELECT name FROM pg_settings WHERE name = 'transaction_read_only'",
            "SELECT current_setting('default_transaction_read_only')",
            "BEGIN READ ONLY; SELECT 1; COMMIT",
            "SET search_path TO x",
            "SELECT 'read write'",
            "RESET ALL",
            "INSERT INTO t VALUES (1)",
            "DO $$BEGIN PERFORM 1; END$$",
            "BEGIN; CALL p()",
            "SELECT call FROM calls",
            "",
        ] {
            assert!(!asks_to_write(text.as_bytes(), true, false), "{text}");
        }
    }
}
