//! Whether a text asks to write where a tenant may only read: the ways out of `default_transaction_read_only`.

use super::lex::{Kind, Lexer, Token};

/// The parameters that decide it; both end like this.
const PARAMETER: &[u8] = b"transaction_read_only";

/// Whether `sql` may take its session, or a transaction in it, out of read-only mode: `READ WRITE`, the parameters by name
/// beside SET, RESET or `set_config`, and what begins another transaction in the same text. In doubt yes. What functions
/// and procedures do inside is out of sight.
pub fn asks_to_write(sql: &[u8], standard_strings: bool) -> bool {
    let mut lexer = Lexer::new(sql, standard_strings);
    let (mut names, mut sets, mut is_block, mut ends, mut statement) = (false, false, false, false, 0);
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
            is_block |= is(text, b"do");
            ends = [&b"commit"[..], b"end", b"rollback", b"abort"].iter().any(|word| is(text, word));
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
    names && sets
        || is_block && (mentions(sql, b"commit") || mentions(sql, b"rollback"))
        || lexer.in_doubt() && mentions(sql, PARAMETER)
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
        ] {
            assert!(asks_to_write(text.as_bytes(), true), "{text}");
        }
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
            "",
        ] {
            assert!(!asks_to_write(text.as_bytes(), true), "{text}");
        }
    }
}
