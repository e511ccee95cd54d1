//! Random statements that make, change, show and end session state.

use super::frames::Frame;
use super::hunt::{Known, Rules};
use super::texts::{ERRORS, HIDDEN, PARAMETERS, PATHS, PLAIN, WITH_VALUES};
use crate::harness::random::Random;

/// Whether the statement may leave something behind that needs a backend of its own. In doubt it may.
pub fn may_pin(sql: &str) -> bool {
    let sql = sql.to_lowercase();
    let words = ["listen", "temp", "advisory", "hold", "prepare", "execute", "load", "hidden"];
    words.iter().any(|word| sql.contains(word)) || is_doubtful(&sql)
}

/// Whether its client may keep its backend to the end for it.
pub fn stays(sql: &str) -> bool {
    ["setseed(", "LOAD "].iter().any(|word| sql.contains(word))
}

/// Whether it may advance a sequence, by a column's default too, or make a statement that does.
pub fn may_advance(sql: &str) -> bool {
    let sql = sql.to_lowercase();
    let is_open = sql.matches('\'').count() % 2 == 1;
    let words = ["nextval", "setval", "insert", "copy", "default", "execute", "call ", "do $$", "hidden"];
    is_open || words.iter().any(|word| sql.contains(word))
}

/// Whether nobody can tell what it does.
pub fn is_doubtful(sql: &str) -> bool {
    let sql = sql.to_lowercase();
    let set_config = sql.split("set_config(").skip(1).any(|arguments| !arguments.starts_with('\''));
    set_config || ["do $$", "call ", "hidden", "||", ", note, false"].iter().any(|word| sql.contains(word))
}

/// Whether it has a string that is read by the session's parameters, when it is prepared.
pub fn is_read_by_parameters(sql: &str) -> bool {
    ["/2024", "timestamptz '", "\\'"].iter().any(|literal| sql.contains(literal))
}

/// Whether it may change those parameters.
pub fn changes_reading(sql: &str) -> bool {
    let sql = sql.to_lowercase();
    let words = [
        "datestyle",
        "timezone",
        "time zone",
        "standard_conforming",
        "reset all",
        "discard all",
        "do $$",
        "set_config($",
        "set_config(name",
        "rollback",
        "abort",
    ];
    words.iter().any(|word| sql.contains(word))
}

/// Values for the parameters of a statement.
pub fn values(sql: &str) -> Vec<Option<String>> {
    let values = WITH_VALUES.iter().find(|(text, _)| *text == sql).map_or(&[][..], |(_, values)| values);
    values.iter().map(|value| Some((*value).to_owned())).collect()
}

/// One that takes away what needs a backend of its own.
pub fn ending(random: &mut Random, known: &Known) -> String {
    if known.in_transaction {
        return random.pick(&["COMMIT", "ROLLBACK", "END", "ABORT"]).to_owned();
    }
    if known.sequences && random.chance(50) {
        return "DISCARD SEQUENCES".to_owned();
    }
    let pins: Vec<&str> = known.pins.iter().map(String::as_str).collect();
    if known.doubtful || pins.is_empty() || random.chance(20) {
        return "DISCARD ALL".to_owned();
    }
    match random.pick(&pins) {
        "listens" => "UNLISTEN *".to_owned(),
        "temporary" => {
            // Without the schema, which a backend keeps that has ever had temporary objects.
            random.pick(&["DISCARD TEMP", "DROP TABLE IF EXISTS mine, rows CASCADE"]).to_owned()
        }
        "locks" => "SELECT pg_advisory_unlock_all()".to_owned(),
        "prepared" => random.pick(&["DEALLOCATE ALL", "DEALLOCATE PREPARE ALL"]).to_owned(),
        "cursors" => "CLOSE ALL".to_owned(),
        _ => "DISCARD SEQUENCES".to_owned(),
    }
}

/// What sleeps until it is cancelled, with something else that is undone then, or stays.
pub fn sleeping(random: &mut Random) -> Vec<Frame> {
    const SLEEP: &str = "SELECT pg_sleep(5)";
    let batch = |sql: &str| {
        let bind = Frame::Bind { portal: String::new(), name: String::new(), values: vec![] };
        let parse = Frame::Parse { name: String::new(), sql: sql.to_owned() };
        vec![parse, bind, Frame::Execute { portal: String::new(), rows: 0 }]
    };
    let sync = || vec![Frame::Sync];
    match random.below(8) {
        0 => vec![Frame::query(SLEEP)],
        1 => vec![Frame::query(format!("SET work_mem = '21MB'; {SLEEP}"))],
        2 => vec![Frame::query(format!("LISTEN news; NOTIFY news, 'never'; {SLEEP}"))],
        3 => vec![Frame::query("SET TimeZone = 'Asia/Tokyo'"), Frame::query(SLEEP), Frame::query("SHOW TimeZone")],
        4 => [batch("SET DateStyle = 'German'"), batch(SLEEP), sync(), batch("SHOW DateStyle"), sync()].concat(),
        5 => [batch(SLEEP), batch("SELECT 1"), sync()].concat(),
        6 => vec![Frame::query("BEGIN; SAVEPOINT a; SET LOCAL work_mem = '22MB'"), Frame::query(SLEEP)],
        _ => [batch(SLEEP), sync(), batch("LISTEN shared"), sync()].concat(),
    }
}

/// What kind of state a statement is about, as a number below a hundred.
#[derive(Debug, Clone, Copy, Default)]
pub struct Topic(usize);

impl Topic {
    pub fn any(random: &mut Random) -> Topic {
        Topic(random.below(100))
    }
}

/// Makes statements for one client.
pub struct Maker<'a> {
    pub random: &'a mut Random,
    pub client: usize,
    pub known: &'a Known,
    /// What it is busy with: about half of its statements are about that.
    pub topic: Topic,
    pub rules: Rules,
}

impl Maker<'_> {
    /// Any statement, as a client in this situation might say it.
    pub fn statement(&mut self) -> String {
        if self.known.failed && self.random.chance(60) {
            return self.transaction();
        }
        if self.known.in_transaction && self.random.chance(25) {
            return self.transaction();
        }
        if !self.known.pins.is_empty() && self.random.chance(25) {
            return self.going_on();
        }
        if self.known.seeded && self.random.chance(10) {
            return "SELECT random()".to_owned();
        }
        let Topic(topic) = if self.random.chance(50) { self.topic } else { Topic::any(self.random) };
        match topic {
            0..28 => self.parameter(),
            28..36 => self.transaction(),
            36..42 => self.notification(),
            42..49 => self.temporary(),
            49..54 => self.lock(),
            54..60 => self.cursor(),
            60..66 => self.prepared(),
            66..70 => self.sequence(),
            70..74 => self.discard(),
            74..80 => self.own_table(),
            80..83 => self.block(),
            83 if self.random.chance(20) => {
                self.random.pick(&["SELECT setseed(0.5)", "SELECT setseed(-0.25)", "LOAD 'plpgsql'"]).to_owned()
            }
            83..86 => self.random.pick(ERRORS).to_owned(),
            86..89 if self.rules.hidden() => {
                self.random.pick(HIDDEN).replace("serial0", &format!("serial{}", self.client))
            }
            _ => self.random.pick(PLAIN).to_owned(),
        }
    }

    /// One about what the client has.
    fn going_on(&mut self) -> String {
        let pins: Vec<&str> = self.known.pins.iter().map(String::as_str).collect();
        match self.random.pick(&pins) {
            "listens" => self.notification(),
            "temporary" => self.temporary(),
            "locks" => self.lock(),
            "prepared" => self.prepared(),
            "cursors" => self.cursor(),
            _ => self.sequence(),
        }
    }

    /// One that has values for `$1` and so on, or any.
    pub fn with_values(&mut self) -> String {
        if self.random.chance(50) {
            self.statement()
        } else {
            WITH_VALUES[self.random.below(WITH_VALUES.len())].0.to_owned()
        }
    }

    fn parameter(&mut self) -> String {
        let (name, values) = PARAMETERS[self.random.below(PARAMETERS.len())];
        let value = self.random.pick(values);
        let path = self.random.pick(PATHS);
        match self.random.below(40) {
            0..8 => format!("SET {name} = '{value}'"),
            8..10 => format!("set session {name} to '{value}'"),
            10..14 => format!("SET LOCAL {name} = '{value}'"),
            14..17 => format!("RESET {name}"),
            17 => format!("SET {name} TO DEFAULT"),
            18 => format!("SET LOCAL {name} = DEFAULT"),
            19..21 => "RESET ALL".to_owned(),
            21..24 => format!("SELECT set_config('{name}', '{value}', false)"),
            24..26 => format!("SELECT set_config('{name}', '{value}', true)"),
            26..30 => format!("SET search_path TO {path}"),
            30 => format!("SET LOCAL search_path = {path}"),
            31 => format!("/* first */ SeT  -- a comment\n {name}='{value}';"),
            _ => self.special_parameter(),
        }
    }

    fn special_parameter(&mut self) -> String {
        let special = [
            "SET TIME ZONE LOCAL",
            "SET TIME ZONE 'America/New_York'",
            "SET TIME ZONE INTERVAL '-03:30' HOUR TO MINUTE",
            "SET LOCAL TIME ZONE 5",
            "RESET TIME ZONE",
            "SET NAMES 'latin1'",
            "SET NAMES DEFAULT",
            "SET SCHEMA 'one'",
            "SET XML OPTION DOCUMENT",
            "SET ROLE team",
            "SET LOCAL ROLE team",
            "SET SESSION ROLE 'team'",
            "SET ROLE NONE",
            "RESET ROLE",
            "SELECT set_config('role', 'team', false)",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE",
            "SET TRANSACTION READ ONLY",
            "SELECT set_config('my.var', coalesce(current_setting('my.var', true), '') || '+', false)",
            "SELECT set_config('search_path', 'two', false), set_config('work_mem', '6MB', true)",
            "WITH w AS (SELECT set_config('work_mem', '8MB', false)) SELECT * FROM w",
            "SELECT set_config('my.var', note, false) FROM thing ORDER BY x",
        ];
        self.random.pick(&special).to_owned()
    }

    fn transaction(&mut self) -> String {
        let outside = [
            "BEGIN",
            "BEGIN",
            "START TRANSACTION",
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "BEGIN READ ONLY",
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT a",
        ];
        let inside = [
            "COMMIT",
            "COMMIT",
            "END",
            "ROLLBACK",
            "ROLLBACK",
            "ABORT",
            "COMMIT AND CHAIN",
            "ROLLBACK AND CHAIN",
            "SAVEPOINT a",
            "SAVEPOINT a",
            "SAVEPOINT \"B\"",
            "ROLLBACK TO a",
            "ROLLBACK TO SAVEPOINT \"B\"",
            "RELEASE a",
            "RELEASE SAVEPOINT \"B\"",
            "BEGIN",
        ];
        let from: &[&str] = if self.known.in_transaction { &inside } else { &outside };
        self.random.pick(from).to_owned()
    }

    fn notification(&mut self) -> String {
        let channel = self.random.pick(&["news", "shared", "\"Mixed\"", "own"]);
        let channel = if channel == "own" { format!("own{}", self.client) } else { channel.to_owned() };
        let number = self.random.below(100);
        match self.random.below(12) {
            // Who listens already hears what came on this channel since its transaction has begun (docs/POOLING.md): in one,
            // only to a channel that nobody else notifies.
            0..4 if self.known.in_transaction => format!("LISTEN own{}", self.client),
            0..4 => format!("LISTEN {channel}"),
            4 => format!("UNLISTEN {channel}"),
            5 => "UNLISTEN *".to_owned(),
            6 => format!("NOTIFY {channel}"),
            7..9 => format!("NOTIFY {channel}, '{number}'"),
            _ => format!(
                "SELECT FROM pg_notify('{}', concat('pid:', pg_backend_pid(), ' {number}'))",
                channel.trim_matches('"')
            ),
        }
    }

    fn temporary(&mut self) -> String {
        let create = [
            "CREATE TEMP TABLE mine (x int, note text)",
            "CREATE TEMPORARY TABLE IF NOT EXISTS mine (x int, note text)",
            "CREATE LOCAL TEMP TABLE rows (x int) ON COMMIT DELETE ROWS",
            "CREATE TEMP TABLE brief (x int) ON COMMIT DROP",
            "CREATE TEMP TABLE thing (x int, d date, note text)",
            "CREATE TABLE pg_temp.mine AS SELECT 1 AS x, 'a'::text AS note",
            "SELECT 1 AS x, 'b'::text AS note INTO TEMP mine",
            "CREATE TEMP VIEW seen AS SELECT x FROM thing",
            "CREATE TEMP SEQUENCE ids",
        ];
        let go_on = [
            "INSERT INTO mine VALUES (1, 'one'), (2, 'two')",
            "INSERT INTO thing VALUES (9, '2024-01-02', 'temporary')",
            "INSERT INTO rows VALUES (1)",
            "SELECT * FROM mine ORDER BY x",
            "SELECT count(*) FROM rows",
            "SELECT count(*) FROM brief",
            "SELECT * FROM seen ORDER BY x",
            "DROP TABLE mine",
            "DROP TABLE IF EXISTS rows, brief CASCADE",
            "DROP VIEW seen",
            "DROP SEQUENCE IF EXISTS ids",
            "SELECT nextval('ids')",
        ];
        let sql = self.begin_or_go_on("temporary", &create, &go_on);
        // Whether a statement that was prepared before sees it depends on how long the backend has lived
        // (docs/POOLING.md).
        let prepared = self.known.statements.values().any(|sql| sql.contains("thing"));
        if sql.contains("TABLE thing") && (prepared || self.known.pins.contains("prepared")) {
            return "CREATE TEMP TABLE mine (x int, note text)".to_owned();
        }
        sql
    }

    fn lock(&mut self) -> String {
        let key = self.random.below(4);
        match self.random.below(9) {
            0..2 => format!("SELECT pg_try_advisory_lock({key})"),
            2 => format!("SELECT pg_try_advisory_lock_shared({key})"),
            3 => format!("SELECT pg_try_advisory_lock(1, {key})"),
            4 => format!("SELECT pg_try_advisory_xact_lock({key})"),
            5..7 => format!("SELECT pg_advisory_unlock({key})"),
            7 => format!("SELECT pg_advisory_unlock_shared({key})"),
            _ => "SELECT pg_advisory_unlock_all()".to_owned(),
        }
    }

    fn cursor(&mut self) -> String {
        let declare = [
            "DECLARE c CURSOR WITH HOLD FOR SELECT x, note FROM thing ORDER BY x",
            "DECLARE d SCROLL CURSOR WITH HOLD FOR SELECT generate_series(1, 6)",
            "DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT x, d FROM thing ORDER BY x",
            "DECLARE c CURSOR FOR SELECT generate_series(1, 6)",
            "DECLARE d NO SCROLL CURSOR FOR SELECT '01/02/2024'::date",
        ];
        let go_on = [
            "FETCH 2 FROM c",
            "FETCH NEXT FROM c",
            "MOVE 1 IN c",
            "FETCH FORWARD ALL FROM c",
            "FETCH BACKWARD 1 FROM d",
            "FETCH 3 FROM d",
            "CLOSE c",
            "CLOSE d",
            "CLOSE ALL",
        ];
        self.begin_or_go_on("cursors", &declare, &go_on)
    }

    fn prepared(&mut self) -> String {
        let name = self.random.pick(&["p", "p", "\"P\"", if self.rules.mixes_names { "s1" } else { "q" }]);
        let prepare = [
            "PREPARE @ AS SELECT '2024-02-01'::date",
            "PREPARE @ (int) AS SELECT $1 + 1",
            "PREPARE @ AS SELECT x, note FROM thing ORDER BY x",
            "PREPARE @ AS SELECT set_config('my.var', 'prepared', false)",
            "PREPARE @ AS SELECT place()",
        ];
        let go_on = [
            "EXECUTE @",
            "EXECUTE @",
            "EXECUTE @",
            "EXECUTE @ (41)",
            "DEALLOCATE @",
            "DEALLOCATE PREPARE @",
            "DEALLOCATE ALL",
        ];
        self.begin_or_go_on("prepared", &prepare, &go_on).replace('@', name)
    }

    /// Mostly one of those that suit what the client has.
    fn begin_or_go_on(&mut self, what: &str, begin: &[&str], go_on: &[&str]) -> String {
        let has = self.known.pins.contains(what);
        let usual = self.random.chance(85);
        self.random.pick(if has == usual { go_on } else { begin }).to_owned()
    }

    fn sequence(&mut self) -> String {
        let sequence = if self.random.chance(70) { format!("hunt.seq{}", self.client) } else { "hunt.seq".to_owned() };
        match self.random.below(8) {
            0..3 => format!("SELECT nextval('{sequence}')"),
            3 => format!("SELECT setval('{sequence}', 100)"),
            4..6 if self.rules.reads_sequences => format!("SELECT currval('{sequence}')"),
            _ if self.rules.reads_sequences => "SELECT lastval()".to_owned(),
            _ => "DISCARD SEQUENCES".to_owned(),
        }
    }

    fn discard(&mut self) -> String {
        self.random
            .pick(&["DISCARD ALL", "DISCARD ALL", "DISCARD TEMP", "DISCARD SEQUENCES", "DISCARD PLANS"])
            .to_owned()
    }

    fn own_table(&mut self) -> String {
        let (client, id) = (self.client, self.random.below(20));
        match self.random.below(6) {
            0..2 => format!("INSERT INTO hunt.own{client} VALUES ({id}, 'new', '01/02/2024')"),
            2 => format!("UPDATE hunt.own{client} SET note = note || '+' WHERE id = {id} RETURNING id, note"),
            3 => format!("DELETE FROM hunt.own{client} WHERE id > {id}"),
            4 => format!(
                "INSERT INTO hunt.own{client} VALUES ({id}, 'again') ON CONFLICT (id) DO UPDATE SET day = '03/04/2024'"
            ),
            _ => format!("SELECT * FROM hunt.own{client} ORDER BY id"),
        }
    }

    fn block(&mut self) -> String {
        let blocks = [
            "PERFORM set_config('work_mem', '13MB', false);",
            "PERFORM set_config('my.var', 'block', true);",
            "EXECUTE 'SET TimeZone = ''Asia/Tokyo''';",
            "SET LOCAL work_mem = '14MB';",
            "PERFORM pg_try_advisory_lock(2);",
            "CREATE TEMP TABLE IF NOT EXISTS mine (x int, note text);",
            "EXECUTE 'LISTEN news';",
            "BEGIN PERFORM set_config('my.var', 'gone', false); PERFORM 1/0; EXCEPTION WHEN OTHERS THEN NULL; END;",
            "RAISE NOTICE 'hello %', current_setting('TimeZone');",
            "SET work_mem = '15MB'; RAISE EXCEPTION 'no';",
        ];
        format!("DO $$ BEGIN {} END $$", self.random.pick(&blocks))
    }
}
