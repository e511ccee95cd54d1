"""Eight clients with short transactions beside a suite, on its role and database, that look for what is not theirs.

A program of its own, since it needs psycopg: neighbours.py REFERENCE TARGET, two conninfo strings, the first to
PostgreSQL itself. Prints "ready" once all are connected, runs until its standard input is closed, and prints its
findings as one line of JSON. They make no tables and take no advisory locks, which the suite's tests would see.
"""

import json
import random
import sys
import threading
import time

import psycopg

NEIGHBOURS = 8
# Seconds between two steps of one neighbour, at most: busy, yet the suite should have most of the machine.
PAUSE = 0.06
# Not of the suite's making: its exclusive locks on catalogs can end in a deadlock, as they do directly.
EXPECTED_ERRORS = {"40P01", "40001"}

# What of a session can be seen, in one statement; transactions never keep it apart.
VIEW = """
SELECT json_build_object(
    'tag', {tag},
    'pid', pg_backend_pid(),
    'settings', (SELECT json_object_agg(name, setting) FROM pg_settings),
    'set', (SELECT json_agg(name) FROM pg_settings WHERE source = 'session'),
    'hidden', json_build_object('current_user', current_user, 'session_user', session_user,
        'role', current_setting('role'), 'session_authorization', current_setting('session_authorization'),
        'is_superuser', current_setting('is_superuser')),
    'custom', json_build_object({custom}),
    'listens', (SELECT json_agg(channel) FROM pg_listening_channels() channel),
    'advisory locks', (SELECT json_agg(objid) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    'temporary relations', (SELECT json_agg(relname) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
    'temporary functions', (SELECT json_agg(proname) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()),
    'temporary schema', pg_my_temp_schema() <> 0,
    'prepared', (SELECT json_agg(name) FROM pg_prepared_statements WHERE from_sql),
    'cursors', (SELECT json_agg(name) FROM pg_cursors WHERE name <> ''))
"""
# What a neighbour listens to may be on a backend that it shares with others: `hear` tells whether it is there.
SHARED = "listens"
# How long a notification may take, in seconds.
HEARING = 5
# Ours, and those that the regression suite sets.
CUSTOM = ["neighbour.a", "neighbour.b", "custom.my_guc", "custom.my.qualified.guc", "nosuch.setting"]
LISTS = ["listens", "advisory locks", "temporary relations", "temporary functions", "prepared", "cursors"]
# As pg_settings spells the values.
VALUES = {
    "work_mem": ["1024", "2048", "8192"],
    "TimeZone": ["Asia/Tokyo", "UTC", "America/New_York"],
    "DateStyle": ["SQL, DMY", "German, DMY", "ISO, YMD"],
    "IntervalStyle": ["iso_8601", "sql_standard"],
    "search_path": ["pg_catalog", "information_schema, public"],
    "extra_float_digits": ["-1", "0", "2"],
    "enable_seqscan": ["off", "on"],
    "enable_hashjoin": ["off", "on"],
    "statement_timeout": ["30000", "60000"],
    "default_transaction_isolation": ["repeatable read", "read committed"],
    "default_transaction_read_only": ["on", "off"],
    "application_name": ["this", "that"],
    "neighbour.a": ["1", "2"],
    "neighbour.b": ["x", "y"],
}
OF_TRANSACTIONS = ["isolation", "read_only", "deferrable"]


def view(tag):
    custom = ", ".join(f"'{name}', current_setting('{name}', true)" for name in CUSTOM)
    return VIEW.format(tag=tag, custom=custom)


class Findings:
    """Counts by kind, with the first example of each; shared by all neighbours."""

    def __init__(self):
        self.lock, self.surprises, self.traces = threading.Lock(), {}, {}
        self.steps, self.views, self.errors, self.backends = 0, 0, 0, set()

    def note(self, kinds, what, example):
        with self.lock:
            kinds.setdefault(what, {"count": 0, "example": example})["count"] += 1

    def count(self, **more):
        with self.lock:
            for name, by in more.items():
                setattr(self, name, getattr(self, name) + by)

    def line(self):
        return json.dumps({"steps": self.steps, "views": self.views, "errors": self.errors,
                           "backends": len(self.backends), "surprises": self.surprises, "traces": self.traces})


class Expected:
    """What a session should see: the reference's settings, and what it has done itself."""

    def __init__(self, reference):
        self.reference = reference
        self.own, self.local, self.transaction = {}, {}, None
        self.touched, self.saved = set(), []
        self.lists = {name: set() for name in LISTS}

    def value(self, name):
        for layer in (self.transaction or {}, self.local, self.own):
            if name in layer:
                return layer[name]
        return self.reference["settings"].get(name)

    def begin(self):
        self.saved = [(dict(self.own), {})]
        self.transaction = {f"transaction_{name}": self.value(f"default_transaction_{name}")
                            for name in OF_TRANSACTIONS}

    def savepoint(self):
        self.saved.append((dict(self.own), dict(self.local)))

    def rollback_to_savepoint(self):
        self.own, self.local = (dict(layer) for layer in self.saved[-1])

    def end(self, rolled_back):
        if rolled_back and self.saved:
            self.own = self.saved[0][0]
        self.saved, self.local, self.transaction = [], {}, None

    def discard(self):
        self.own = {}
        self.lists = {name: set() for name in LISTS}

    def settings(self):
        found = {**self.reference["settings"], **self.own, **self.local}
        transaction = self.transaction or {f"transaction_{name}": found[f"default_transaction_{name}"]
                                           for name in OF_TRANSACTIONS}
        return {**found, **transaction}

    def differences(self, seen):
        """(surprises, traces): what is not as it should be, and harmless remains that cannot be taken for values."""
        surprises, traces = [], []
        expected = self.settings()
        for name, value in seen["settings"].items():
            # A library's settings appear when something loads it.
            if name in expected and value != expected[name]:
                lost = value == self.reference["settings"][name]
                surprises.append((f"{name} {'is lost' if lost else 'is not ours'}", value, expected[name]))
        for name in CUSTOM:
            ours = {**self.own, **self.local}.get(name)
            if (seen["custom"][name] or None) != ours:
                surprises.append((f"{name} {'is not ours' if seen['custom'][name] else 'is lost'}",
                                  seen["custom"][name], ours))
            elif seen["custom"][name] == "" and name not in self.touched:
                traces.append((f"{name} is empty, not NULL", "", None))
        surprises += [(f"{name} is not ours", value, self.reference["hidden"][name])
                      for name, value in seen["hidden"].items() if value != self.reference["hidden"][name]]
        for name in LISTS:
            lost = self.lists[name] - set(seen[name] or []) if name != SHARED else set()
            if lost or set(seen[name] or []) - self.lists[name]:
                surprises.append((f"{name}: {'lost' if lost else 'not ours'}", seen[name], sorted(self.lists[name])))
        if seen["temporary schema"]:
            traces.append(("pg_my_temp_schema() is not 0", True, False))
        for name in set(seen["set"] or []) - set(self.own) - set(self.local) - set(self.reference["set"] or []):
            if not name.startswith("transaction_"):
                traces.append((f"pg_settings.source of {name} is session", expected.get(name), None))
        return surprises, traces


class Neighbour:
    def __init__(self, number, target, reference, findings):
        self.random, self.number = random.Random(number), number
        self.target, self.reference, self.findings = target, reference, findings
        self.statement, self.connection, self.heard = "connect", None, set()

    def run(self, stop, ready):
        self.connect()
        ready.release()
        while not stop.is_set():
            try:
                self.step()
            except psycopg.Error as problem:
                if problem.sqlstate in EXPECTED_ERRORS:
                    self.findings.count(errors=1)
                else:
                    self.surprise([(f"error {problem.sqlstate}: {str(problem).splitlines()[0]}", None, None)])
                self.connect()
            self.findings.count(steps=1)
            stop.wait(self.random.uniform(0, PAUSE))
        self.connection.close()

    def connect(self):
        """A new session, as far as it can: a pool may be without backends for a moment."""
        if self.connection:
            self.connection.close()
        for _ in range(100):
            try:
                # psycopg's own prepared statements would bring a DEALLOCATE ALL after each ROLLBACK.
                self.connection = psycopg.connect(self.target, autocommit=True, prepare_threshold=None)
                break
            except psycopg.Error as problem:
                self.surprise([(f"connect: {problem}", None, None)])
                time.sleep(0.1)
        self.connection.add_notify_handler(self.notified)
        self.parse()
        self.expected = Expected(self.reference)

    def parse(self):
        """A statement of the protocol, under one name with all neighbours."""
        self.connection.pgconn.prepare(b"mine", f"SELECT {self.number}".encode())

    def notified(self, notification):
        self.heard.add(notification.payload)
        if notification.channel not in self.expected.lists["listens"]:
            self.surprise([("a notification that is not ours", notification.channel, None)])

    def surprise(self, found):
        for what, value, expected in found:
            self.findings.note(self.findings.surprises, what, {
                "neighbour": self.number, "is": value, "should be": expected, "after": self.statement})

    def execute(self, statement, *parameters):
        self.statement = statement
        return self.connection.execute(statement, *parameters)

    def look(self):
        """The view by the simple or the extended protocol; a surprise begins a new session."""
        before, tag = self.statement, str(self.random.random())
        if self.random.random() < 0.5:
            row = self.execute(view(f"'{tag}'"))
        else:
            row = self.execute(view("%s::text"), [tag])
        seen, self.statement = row.fetchone()[0], before
        surprises, traces = self.expected.differences(seen)
        if seen["tag"] != tag:
            surprises.append(("somebody else's answer", seen["tag"], tag))
        self.findings.count(views=1)
        self.findings.backends.add(seen["pid"])
        for what, value, expected in traces:
            self.findings.note(self.findings.traces, what, {"is": value, "should be": expected})
        if surprises:
            self.surprise(surprises)
            self.connect()
        return not surprises

    def step(self):
        steps = {self.look: 12, self.set: 8, self.work: 8, self.change_in_transaction: 8, self.reset: 4,
                 self.run_parsed: 4, self.no_sequence: 2, self.prepare: 2, self.hold: 1, self.listen: 1,
                 self.hear: 1, self.discard: 1, self.connect: 1}
        self.random.choices(list(steps), list(steps.values()))[0]()

    def chosen(self):
        name = self.random.choice(list(VALUES))
        self.expected.touched.add(name)
        return name, self.random.choice(VALUES[name])

    def set(self, local=False):
        name, value = self.chosen()
        # A list in quotes would be one schema's name.
        if self.random.random() < 0.5 or name == "search_path":
            self.execute(f"SELECT set_config('{name}', '{value}', {local})")
        else:
            self.execute(f"SET {'LOCAL' if local else 'SESSION'} {name} TO '{value}'")
        expected = self.expected
        if local:
            expected.local[name] = value
        else:
            expected.own[name] = value
            expected.local.pop(name, None)

    def reset(self):
        if self.random.random() < 0.2:
            self.execute("RESET ALL")
            self.expected.own = {}
        else:
            name, _ = self.chosen()
            self.execute(f"RESET {name}")
            self.expected.own.pop(name, None)

    def work(self):
        self.execute("SELECT sum(x) FROM generate_series(1, %s) x", [self.random.randint(1, 1000)])

    def change_in_transaction(self):
        rolled_back = self.random.random() < 0.5
        self.expected.begin()
        self.execute("BEGIN")
        self.set(self.random.random() < 0.5)
        if self.random.random() < 0.5:
            self.execute("SAVEPOINT here")
            self.expected.savepoint()
            self.set(self.random.random() < 0.5)
            if self.random.random() < 0.5:
                self.execute("ROLLBACK TO SAVEPOINT here")
                self.expected.rollback_to_savepoint()
        if self.random.random() < 0.5 and not self.look():
            return  # a new session
        self.execute("ROLLBACK" if rolled_back else "COMMIT")
        self.expected.end(rolled_back)
        self.look()

    def no_sequence(self):
        """lastval() is undefined: nobody here has called nextval."""
        try:
            value = self.execute("SELECT lastval()").fetchone()[0]
        except psycopg.errors.ObjectNotInPrerequisiteState:
            return
        self.surprise([("lastval() is not ours", value, None)])
        self.connect()

    def run_parsed(self):
        self.statement = "a prepared statement"
        result = self.connection.pgconn.exec_prepared(b"mine", [])
        if result.error_message or int(result.get_value(0, 0)) != self.number:
            self.surprise([("a prepared statement is not ours", result.error_message.decode(), None)])
            self.connect()

    def prepare(self):
        own = self.expected.lists["prepared"]
        if not own:
            self.execute("PREPARE times_seven AS SELECT $1::int * 7")
            own.add("times_seven")
        elif self.execute("EXECUTE times_seven(6)").fetchone()[0] != 42:
            self.surprise([("EXECUTE ran another's statement", None, None)])
        elif self.random.random() < 0.5:
            self.execute("DEALLOCATE times_seven")
            own.clear()

    def hold(self):
        own = self.expected.lists["cursors"]
        if not own:
            self.execute("DECLARE held CURSOR WITH HOLD FOR SELECT 42 FROM generate_series(1, 1000)")
            own.add("held")
        elif self.execute("FETCH held").fetchone() != (42,):
            self.surprise([("FETCH got another's row", None, None)])
        else:
            self.execute("CLOSE held")
            own.clear()

    def listen(self):
        own = self.expected.lists["listens"]
        if own:
            self.execute("UNLISTEN *")
            own.clear()
        else:
            # A notification may come along with the answer.
            own.add("neighbours")
            self.execute("LISTEN neighbours")

    def hear(self):
        """Who listens hears itself; others do not hear it."""
        payload = str(self.random.random())
        self.heard.clear()
        self.execute("SELECT pg_notify('neighbours', %s)", [payload])
        deadline = time.monotonic() + HEARING
        while self.expected.lists["listens"] and payload not in self.heard:
            if time.monotonic() > deadline:
                self.surprise([("listens: lost", None, "neighbours")])
                return self.connect()
            self.execute("SELECT 1")

    def discard(self):
        self.execute("DISCARD ALL")
        self.expected.discard()
        self.parse()


def reference(conninfo):
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("LOAD 'plpgsql'")
        return connection.execute(view("NULL::text")).fetchone()[0]


def main():
    beside, target = sys.argv[1:]
    stop, ready, findings = threading.Event(), threading.Semaphore(0), Findings()
    seen = reference(beside)
    threads = [threading.Thread(target=Neighbour(number, target, seen, findings).run, args=(stop, ready), daemon=True)
               for number in range(NEIGHBOURS)]
    for thread in threads:
        thread.start()
    for _ in threads:
        ready.acquire()
    print("ready", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join(10)
    print(findings.line(), flush=True)


main()
