//! What is seen in a text and what is not, rule by rule, and rules for any text.

use proptest::prelude::*;

use super::*;

fn marks(sql: &str) -> Marks {
    look(sql.as_bytes(), true).map_or(Marks::default(), |look| look.marks)
}

fn alone(sql: &str) -> Option<Alone> {
    look(sql.as_bytes(), true)?.alone
}

fn parameters(sql: &str) -> Vec<String> {
    look(sql.as_bytes(), true).map_or(vec![], |look| look.parameters)
}

/// The text, place, name and tag of each reset.
fn resets(sql: &str) -> Vec<(&str, usize, Option<String>, bool, &'static str)> {
    let resets = look(sql.as_bytes(), true).map_or(vec![], |look| look.resets);
    resets.into_iter().map(|reset| (&sql[reset.range], reset.statement, reset.name, reset.local, reset.tag)).collect()
}

#[test]
fn ordinary_text_is_nothing_of_note() {
    for sql in [
        "",
        ";;",
        "SELECT abalance FROM pgbench_accounts WHERE aid = 1",
        "UPDATE t SET a = $1, temp = 3, set_at = now() WHERE b = 'SET x; RESET y'",
        "INSERT INTO t VALUES ('it''s', E'a\\'b; SET x = 1', $$; SET x = 1$$, $a$ $$; DROP x $a$)",
        "SELECT 1 -- ; SET x = 1",
        "SELECT 1 /* ; SET x = 1; /* nested */ ; SET y = 1 */",
        "SELECT set_config, advisory, nextval FROM t",
        "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(1)",
        "SELECT 'pg_advisory_lock(1)', 'set_config(1)'",
        "SELECT temp FROM weather WHERE temporary",
        "SELECT pg_template, pg_temperature()",
        "GRANT EXECUTE ON FUNCTION f() TO x",
        "CREATE TRIGGER t AFTER INSERT ON x EXECUTE FUNCTION f()",
        "ALTER SYSTEM SET work_mem = 1",
        "ALTER ROLE x SET work_mem = 1",
        "ALTER DATABASE x RESET ALL",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET work_mem = 1 AS 'SET x = 1; DROP y'",
        "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
        "SELECT (1; SET x = 1)",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET LOCAL TRANSACTION READ ONLY",
        "SET CONSTRAINTS ALL DEFERRED",
        "SET transaction_isolation TO DEFAULT",
        "SAVEPOINT a",
        "RELEASE SAVEPOINT a",
        "ROLLBACK TO a",
        "ROLLBACK WORK TO SAVEPOINT a;",
        "DISCARD PLANS",
        "DECLARE c CURSOR FOR SELECT 1",
        "DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1",
        "SELECT * FROM pg_settings FOR UPDATE",
        "NOTIFY x, 'LISTEN y'",
        "SELECT $1, $2$3, a$b$c, b'01', x'ff', n'a', u&'\\0041' uescape '!'",
        "EXPLAIN ANALYZE SELECT 1",
        "SELECT 'I know', 'nowhere', 'Todays', $$ yesterdays $$",
    ] {
        assert_eq!(look(sql.as_bytes(), true), None, "{sql}");
    }
}

#[test]
fn marks_of_statements() {
    for (sql, expected) in [
        ("RESET ALL", Marks::PARAMETERS),
        ("SELECT set_config($1, $2, false)", Marks::PARAMETERS),
        ("SELECT set_config('a' || 'b', 'c', false)", Marks::PARAMETERS),
        ("SELECT set_config('a'\n'b', 'c', false)", Marks::PARAMETERS),
        ("SELECT set_config(E'a', 'c', false)", Marks::PARAMETERS),
        ("UPDATE pg_catalog.pg_settings SET setting = 1", Marks::PARAMETERS),
        ("CREATE TEMP TABLE x()", Marks::TEMPORARY),
        ("create local /* */ temporary table x()", Marks::TEMPORARY),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", Marks::TEMPORARY),
        ("SELECT 1 INTO TEMP x", Marks::TEMPORARY),
        ("CREATE TABLE pg_temp.x()", Marks::TEMPORARY),
        ("CREATE TABLE \"pg_temp\".x()", Marks::TEMPORARY),
        ("CREATE TABLE pg_temp_3.x()", Marks::TEMPORARY),
        ("SET LOCAL search_path = 'pg_temp'", Marks::TEMPORARY | Marks::LOCAL),
        ("DROP TABLE x", Marks::TEMPORARY),
        ("DISCARD TEMP", Marks::TEMPORARY),
        ("DISCARD TEMPORARY", Marks::TEMPORARY),
        ("SELECT pg_advisory_lock(1)", Marks::ADVISORY),
        ("SELECT \"pg_advisory_lock\" /* */ (1)", Marks::ADVISORY),
        ("SELECT pg_catalog . PG_TRY_ADVISORY_LOCK_SHARED (1)", Marks::ADVISORY),
        ("SELECT 'x' FROM pg_advisory_unlock_all()", Marks::ADVISORY),
        ("SELECT my_advisory_lock()", Marks::ADVISORY),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Marks::CURSOR),
        ("CLOSE ALL", Marks::CURSOR),
        ("PREPARE p AS SELECT 1", Marks::PREPARED),
        ("PREPARE p AS SELECT nextval('s')", Marks::PREPARED | Marks::SEQUENCE),
        ("PREPARE transaction (int) AS SELECT $1", Marks::PREPARED),
        ("EXECUTE p", Marks::EXECUTE),
        ("EXPLAIN (ANALYZE) EXECUTE p(1)", Marks::EXECUTE),
        ("CREATE TABLE x AS EXECUTE p", Marks::EXECUTE),
        ("CREATE TEMP TABLE x AS EXECUTE p", Marks::EXECUTE | Marks::TEMPORARY),
        ("LOAD 'auto_explain'", Marks::LOAD),
        ("SELECT setseed(0.5)", Marks::SEED),
        ("SET SEED TO 0.5", Marks::SEED),
        ("SELECT nextval('s'), \"setval\"('s', 1)", Marks::SEQUENCE),
        ("SELECT lastval()", Marks::SEQUENCE_READ),
        ("SELECT pg_catalog.currval('s')", Marks::SEQUENCE_READ),
        ("SELECT dblink_connect('a', 'b')", Marks::FOREIGN),
        ("SELECT pg_replication_origin_session_setup('a')", Marks::FOREIGN),
        ("SELECT * FROM pg_create_logical_replication_slot('a', 'b', true)", Marks::FOREIGN),
        ("SELECT pg_backup_start('a')", Marks::FOREIGN),
        ("CALL p(1)", Marks::OPAQUE),
        ("DO 'BEGIN SELECT 1; END'", Marks::OPAQUE),
        ("DISCARD SEQUENCES", Marks::DISCARD_SEQUENCES),
        ("COMMIT AND CHAIN", Marks::TRANSACTION),
        ("ROLLBACK AND CHAIN", Marks::TRANSACTION),
        ("COMMIT PREPARED 'a'", Marks::TRANSACTION),
        ("PREPARE TRANSACTION 'a'", Marks::TRANSACTION),
        ("BEGIN NONSENSE", Marks::TRANSACTION),
        ("BEGIN; SELECT 1", Marks::TRANSACTION),
        ("SELECT 1; ROLLBACK TO a", Marks::TRANSACTION),
        ("BEGIN; COMMIT", Marks::TRANSACTION),
        ("SELECT 1; /* ; */ DROP TABLE x", Marks::TEMPORARY),
        ("SELECT U&\"set!005fconfig\" UESCAPE '!' ('a', 'b', false)", Marks::OPAQUE),
        ("SELECT 'now'::timestamptz", Marks::MOMENT),
        ("SELECT date '\tToday', 1", Marks::MOMENT),
        ("SELECT E'now'::timestamptz", Marks::MOMENT),
        ("SELECT $$tomorrow$$::date", Marks::MOMENT),
        ("SELECT '10:00 yesterday'::timestamp", Marks::MOMENT),
        ("SELECT '{2000-01-01,today}'::date[]", Marks::MOMENT),
        ("SELECT x FROM t WHERE y <@ '[today,)'::daterange", Marks::MOMENT),
    ] {
        assert_eq!(marks(sql), expected, "{sql}");
        assert_eq!(marks(&sql.to_ascii_uppercase()), expected, "{sql}");
        assert_eq!(marks(&format!("-- SET x\n/* ' */{sql};-- '")), expected, "{sql}");
    }
}

#[test]
fn bodies_of_blocks() {
    for (body, expected) in [
        ("SET x = 1", Marks::PARAMETERS),
        ("PERFORM set_config('a', 'b', false)", Marks::PARAMETERS),
        ("EXECUTE 'LISTEN ' || x", Marks::LISTEN),
        ("CREATE TEMP TABLE x()", Marks::TEMPORARY),
        ("PERFORM pg_advisory_lock(1)", Marks::ADVISORY),
        ("x := nextval('s')", Marks::SEQUENCE),
        ("NULL", Marks::default()),
    ] {
        for sql in [format!("DO $$BEGIN {body}; END$$"), format!("do language plpgsql $_a$ {body} $_a$")] {
            assert_eq!(marks(&sql), expected | Marks::OPAQUE, "{sql}");
            assert!(parameters(&sql).is_empty());
        }
    }
}

#[test]
fn routines_in_standard_sql() {
    let body = "BEGIN ATOMIC SELECT CASE WHEN a THEN 1 ELSE 2 END AS end; SET_ME; SELECT x.end; END";
    for kind in ["CREATE FUNCTION f()", "create or replace procedure begin()"] {
        assert_eq!(resets(&format!("{kind} {body}; RESET a")).len(), 1);
        assert_eq!(resets(&format!("{kind} {body}; RESET a"))[0].1, 1);
        assert_eq!(marks(&format!("{kind} BEGIN ATOMIC SELECT 1; SELECT 2; END")), Marks::default());
    }
    assert_eq!(marks("CREATE FUNCTION f() BEGIN ATOMIC SELECT 1; RESET a"), Marks::OPAQUE);
}

#[test]
fn parameters_by_name() {
    for (sql, expected) in [
        ("SET work_mem = 1", "work_mem"),
        ("SET Work_Mem TO '1'", "work_mem"),
        ("SET\tSESSION\n\"Work_Mem\"/**/TO DEFAULT", "work_mem"),
        ("SET \"my\" . Var = 1", "my.var"),
        ("SET local.x = 1", "local.x"),
        ("SET session.x = 1", "session.x"),
        ("SET TIME ZONE 'UTC'", "timezone"),
        ("SET SESSION TIME ZONE LOCAL", "timezone"),
        ("SET time.x = 1", "time.x"),
        ("SET NAMES 'utf8'", "client_encoding"),
        ("SET SCHEMA 'x'", "search_path"),
        ("SET ROLE x", "role"),
        ("SET role = x", "role"),
        ("SET ROLE NONE", "role"),
        ("RESET ROLE", "role"),
        ("SET XML OPTION DOCUMENT", "xmloption"),
        ("SET SESSION AUTHORIZATION x", "session_authorization role"),
        ("SET SESSION SESSION AUTHORIZATION DEFAULT", "session_authorization role"),
        ("SET session_authorization = x", "session_authorization role"),
        ("RESET SESSION AUTHORIZATION", "session_authorization role"),
        ("RESET TIME ZONE", "timezone"),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "default_transaction_isolation default_transaction_read_only default_transaction_deferrable",
        ),
        ("SELECT set_config('A.b', $1, false)", "a.b"),
        ("SELECT pg_catalog . SET_CONFIG /* */ ( /* */ 'a' :: text , 'b', true)", "a"),
        ("SELECT \"set_config\"('a', 'b', false), set_config('c', 'd', false)", "a c"),
        ("SELECT set_limit(0.3)", "pg_trgm.similarity_threshold"),
        ("SET a = 1; SET b = 2; RESET a", "a b"),
    ] {
        assert_eq!(parameters(sql).join(" "), expected, "{sql}");
        assert_eq!(marks(sql), Marks::default(), "{sql}");
    }
    let local = "SET LOCAL a = 1; SET LOCAL TIME ZONE 'UTC'; SET LOCAL SESSION AUTHORIZATION x";
    assert_eq!((parameters(local).join(" ").as_str(), marks(local)), ("", Marks::LOCAL));
    assert_eq!(parameters(&format!("SET {}.x = 1", "a".repeat(70))), [format!("{}.x", "a".repeat(63))]);
    assert_eq!(marks("SET U&\"a\" = 1"), Marks::PARAMETERS);
    let many: String = (0..1000).map(|n| format!("SET x{n} = 1; RESET x{n};")).collect();
    assert!(parameters(&many).len() == 64 && marks(&many).contains(Marks::PARAMETERS));
}

#[test]
fn resets_and_where_they_stand() {
    for (sql, expected, name, local, tag) in [
        ("RESET a", "RESET a", Some("a"), false, "RESET"),
        (" /* */ reset \"A\".b -- x\n;", "reset \"A\".b", Some("a.b"), false, "RESET"),
        ("RESET \"a\";", "RESET \"a\"", Some("a"), false, "RESET"),
        ("RESET ALL ;", "RESET ALL", None, false, "RESET"),
        ("SET a TO DEFAULT", "SET a TO DEFAULT", Some("a"), false, "SET"),
        ("SET SESSION a = default;", "SET SESSION a = default", Some("a"), false, "SET"),
        ("SET LOCAL a TO DEFAULT", "SET LOCAL a TO DEFAULT", Some("a"), true, "SET"),
        ("SET TIME ZONE LOCAL", "SET TIME ZONE LOCAL", Some("timezone"), false, "SET"),
        ("SET LOCAL TIME ZONE DEFAULT", "SET LOCAL TIME ZONE DEFAULT", Some("timezone"), true, "SET"),
        ("RESET TIME ZONE", "RESET TIME ZONE", Some("timezone"), false, "RESET"),
        ("SET NAMES", "SET NAMES", Some("client_encoding"), false, "SET"),
        ("RESET ROLE", "RESET ROLE", Some("role"), false, "RESET"),
        ("RESET SESSION AUTHORIZATION", "RESET SESSION AUTHORIZATION", Some("session_authorization"), false, "RESET"),
        (
            "SET SESSION AUTHORIZATION DEFAULT",
            "SET SESSION AUTHORIZATION DEFAULT",
            Some("session_authorization"),
            false,
            "SET",
        ),
    ] {
        let expect = |at| vec![(expected, at, name.map(String::from), local, tag)];
        assert_eq!(resets(sql), expect(0));
        assert_eq!(resets(&format!(";;SELECT ';';/**/;{sql}; SELECT 2")), expect(1));
    }
    for sql in ["SET a TO \"default\"", "SET a = DEFAULT, b", "RESET a b", "SET ROLE NONE", "RESET seed", "RESET"] {
        assert_eq!(resets(sql), [], "{sql}");
    }
    assert_eq!(resets("RESET a; SET b TO DEFAULT").iter().map(|reset| reset.1).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn statements_that_stand_alone() {
    for (sql, expected) in [
        ("BEGIN", Alone::Begin),
        (" begin transaction;", Alone::Begin),
        ("BEGIN WORK ISOLATION LEVEL READ COMMITTED, READ ONLY NOT DEFERRABLE", Alone::Begin),
        ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE READ WRITE", Alone::Begin),
        ("COMMIT", Alone::Commit),
        ("END WORK", Alone::Commit),
        ("COMMIT TRANSACTION AND NO CHAIN /* */;;", Alone::Commit),
        ("ROLLBACK", Alone::Rollback),
        ("ABORT TRANSACTION", Alone::Rollback),
    ] {
        assert_eq!((alone(sql), marks(sql)), (Some(expected), Marks::default()), "{sql}");
    }
    for (sql, expected) in [
        ("LISTEN Ab", Alone::Listen("ab".into())),
        ("LISTEN \"A\"\"b\"", Alone::Listen("A\"b".into())),
        ("LISTEN \"user\"", Alone::Listen("user".into())),
        ("UNLISTEN a;", Alone::Unlisten("a".into())),
        ("UNLISTEN *", Alone::UnlistenAll),
        ("DISCARD ALL", Alone::DiscardAll),
        ("DEALLOCATE a", Alone::Deallocate("a".into())),
        ("DEALLOCATE PREPARE \"A\"", Alone::Deallocate("A".into())),
        ("DEALLOCATE prepare", Alone::Deallocate("prepare".into())),
        ("DEALLOCATE ALL", Alone::DeallocateAll),
        ("DEALLOCATE PREPARE ALL", Alone::DeallocateAll),
    ] {
        assert_eq!(alone(sql), Some(expected), "{sql}");
        assert_eq!(alone(&format!("{sql}; SELECT 1")), None, "{sql}");
    }
    for sql in [
        "START",
        "BEGIN READ",
        "BEGIN READ ONLY,",
        "COMMIT x",
        "LISTEN user",
        "LISTEN a b",
        "LISTEN 'a'",
        "DEALLOCATE \"all\" x",
        "BEGIN; BEGIN",
        "COMMIT /* cut off",
    ] {
        assert_eq!(alone(sql), None, "{sql}");
    }
    let all = Marks::PARAMETERS | Marks::TEMPORARY | Marks::DISCARD_ALL | Marks::DISCARD_SEQUENCES;
    assert_eq!(marks("DISCARD ALL"), all);
}

#[test]
fn strings_and_escapes() {
    let seen = |sql: &[u8], standard| look(sql, standard).is_some_and(|look| look.marks == Marks::TEMPORARY);
    assert!(seen(b"SELECT '\\'; DROP TABLE x --'", true));
    assert!(!seen(b"SELECT '\\'; DROP TABLE x --'", false));
    assert!(!seen(b"SELECT e'\\'; DROP TABLE x --'", true));
    // Not a prefix, but a word before a string.
    assert!(seen(b"SELECT xe'\\'; DROP TABLE x --'", true));
    // A string with escapes keeps them on its next line.
    assert!(!seen(b"SELECT E'a' -- b\n '\\'; DROP TABLE x --'", true));
    assert!(seen(b"SELECT E'a' '\\'; DROP TABLE x --'", true));
    assert!(seen(b"SELECT $1$a$'$a$; DROP TABLE x --$a$", true));
    assert!(seen(b"SELECT \"a\"\"'\"; DROP TABLE x", true));
    // The second byte of a character in SJIS looks like a backslash, but not in UTF-8.
    assert!(look(b"SELECT E'\x95\\'; DROP TABLE x", true).is_some_and(|look| look.marks.contains(Marks::OPAQUE)));
    assert_eq!(look("SELECT E'é\\n'".as_bytes(), true), None);
}

#[test]
fn text_that_is_cut_off_is_opaque() {
    for sql in
        ["SELECT 'a", "SELECT 'a''", "SELECT E'a\\", "SELECT \"", "SELECT \"a\"\"", "/*", "/* /* */", "$$", "$a$ $"]
    {
        assert_eq!(marks(sql), Marks::OPAQUE, "{sql}");
    }
    assert_eq!(marks("SELECT 1 -- a"), Marks::default());
}

#[test]
fn sequences_may_advance() {
    for sql in [
        "INSERT INTO x VALUES (1)",
        "SELECT 1; insert into x default values",
        "WITH a AS (INSERT INTO x VALUES (1)) SELECT 1",
        "EXPLAIN ANALYZE MERGE INTO x",
        "COPY x FROM stdin",
        "SELECT nextval('s')",
        "SELECT \"setval\"('s', 1)",
        "UPDATE x SET id = DEFAULT",
        "EXPLAIN ANALYZE EXECUTE p",
        "CALL p()",
        "SELECT 'cut off",
    ] {
        assert!(may_advance_sequence(sql.as_bytes()), "{sql}");
    }
    for sql in ["", "SELECT 'insert', \"copy\"", "UPDATE x SET a = 1", "DELETE FROM x -- insert", "SELECT currval('s')"]
    {
        assert!(!may_advance_sequence(sql.as_bytes()), "{sql}");
    }
}

/// Text of pieces that are awkward side by side.
fn text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "SET",
        "RESET",
        "ALL",
        "a",
        "LOCAL",
        "TIME ZONE",
        "TO",
        "DEFAULT",
        "=",
        ";",
        ";",
        "(",
        ")",
        "'",
        "''",
        "\\",
        "E'",
        "\"",
        "$$",
        "$a$",
        "/*",
        "*/",
        "--",
        "\n",
        ".",
        ",",
        "set_config",
        "'x'",
        "::text",
        "pg_temp",
        "TEMP",
        "CREATE",
        "FUNCTION",
        "BEGIN",
        "ATOMIC",
        "CASE",
        "END",
        "DO",
        "CALL",
        "é",
        "U&\"",
        "LISTEN",
        "*",
        "COMMIT",
        "pg_advisory_lock",
        "DEALLOCATE",
        "nextval",
        "1",
        "SESSION",
        "AUTHORIZATION",
        "READ ONLY",
        "DECLARE",
        "HOLD",
        "DISCARD",
    ]);
    prop::collection::vec((pieces, prop::sample::select(vec!["", " ", " "])), 0..24)
        .prop_map(|pieces| pieces.into_iter().flat_map(|(piece, space)| [piece, space]).collect())
}

fn check_ranges(sql: &[u8], look: &Look) {
    let mut end = 0;
    for reset in &look.resets {
        assert!(reset.range.start >= end && reset.range.end <= sql.len() && !reset.range.is_empty());
        let alone = super::look(&sql[reset.range.clone()], true).expect("a reset is of note");
        assert_eq!(alone.resets, [Reset { range: 0..reset.range.len(), statement: 0, ..reset.clone() }]);
        end = reset.range.end;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_bytes_are_looked_at(sql in prop::collection::vec(any::<u8>(), 0..200), standard: bool) {
        look(&sql, standard);
        may_advance_sequence(&sql);
    }

    #[test]
    fn resets_stand_where_they_say(sql in text(), standard: bool) {
        look(sql.as_bytes(), standard);
        may_advance_sequence(sql.as_bytes());
        if let Some(look) = look(sql.as_bytes(), true) {
            check_ranges(sql.as_bytes(), &look);
        }
    }

    #[test]
    fn comments_and_case_change_nothing(sql in text()) {
        let before = look(sql.as_bytes(), true);
        // Case matters in the tags of dollar quotes and in quoted names of channels, but to no mark.
        prop_assert_eq!(marks(&sql.to_ascii_lowercase()), marks(&sql.to_ascii_uppercase()));
        let opaque = before.as_ref().is_some_and(|look| look.marks.contains(Marks::OPAQUE));
        if !opaque {
            for comment in ["\n-- ' SET x = 1", "\n/* /* ; */ ' */"] {
                prop_assert_eq!(&look(format!("{sql}{comment}").as_bytes(), true), &before);
            }
        }
    }

    #[test]
    fn the_first_pass_misses_nothing(sql in text(), standard: bool) {
        let closer = Scan::new(sql.as_bytes(), standard).run();
        if !deserves_a_closer_look(sql.as_bytes(), standard) {
            prop_assert_eq!(closer, Look::default());
        }
    }
}

#[test]
fn channels_are_listed_in_the_order_of_the_text() {
    let channels = |sql: &str| -> Vec<String> {
        let look = look(sql.as_bytes(), true).unwrap_or_default();
        look.channels.into_iter().map(|channel| channel.unwrap_or_else(|| "*".into())).collect()
    };
    assert_eq!(channels("LISTEN a; SELECT 1; UNLISTEN \"B\"; BEGIN; UNLISTEN *;"), ["a", "B", "*"]);
    assert_eq!(channels("LISTEN a"), ["a"]);
    assert_eq!(channels("LISTEN U&\"a\"; SELECT 'LISTEN b'"), [""], "one that we cannot read");
}
