"""PostgreSQL's regression suite (pg_regress on an existing database) directly and through the proxy.

Each run has a cluster of its own, and eight neighbours (neighbours.py) on the same role and database, hence the same
pool: they keep its backends changing hands, and look for anything of the suite's that reaches them.

They come when the suite's tables are there: what its VACUUM finds visible to everybody, hence the plans that some tests
expect, depends on whether anybody has a snapshot just then.
"""

import json
import os
import re
import shutil
import subprocess

import scene
import sources

DATABASE = "regression"
SECONDS = 1200
# What pg_regress does for a database that it creates itself (create_database in pg_regress.c), ...
PREPARE = [f"ALTER DATABASE {DATABASE} SET {setting}" for setting in (
    "lc_messages TO 'C'", "lc_monetary TO 'C'", "lc_numeric TO 'C'", "lc_time TO 'C'", "bytea_output TO 'hex'",
    "timezone_abbreviations TO 'Default'")]
# ... and for a cluster of its own.
SETTINGS = {"max_prepared_transactions": "2", "log_min_messages": "fatal"}
PSYCOPG = "psycopg[binary]==3.3.9"
# The test that makes the tables.
SETUP = "test_setup"
# The schedule runs 20 tests at a time; and the neighbours.
BACKENDS = 32


def run(chosen):
    ways, failed, surprises = ["direct", *chosen.modes], {}, []
    for way in ways:
        with scene.Scene("regress", [DATABASE], SETTINGS) as stage:
            stage.sql(*PREPARE)
            if way != "direct":
                stage.start_proxy(chosen.pgtenant, way, backends=BACKENDS)
            command = prepared(stage, way)
            with Neighbours(stage, way) as neighbours:
                failed[way] = regress(stage, way, command)
            surprises += neighbours.report()
    return surprises + [f"{test}, see {folder(way)}/{test}.diff"
                        for way in ways for test in failed[way] if test not in failed["direct"]]


class Neighbours:
    """neighbours.py beside the suite, in the same mode; its findings are written to neighbours.json."""

    def __init__(self, stage, way):
        self.stage, self.way = stage, way

    def __enter__(self):
        program = os.path.join(os.path.dirname(__file__), "neighbours.py")
        command = [scene.python("regress", PSYCOPG), "-B", program]
        self.process = subprocess.Popen(
            [*command, self.stage.conninfo("direct"), self.stage.conninfo(self.way)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.stage.environment("direct"))
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"regress: the neighbours do not start, {self.way}")
        return self

    def __exit__(self, *_):
        try:
            # Closes its input; it then waits up to ten seconds for each of its threads.
            self.line, _ = self.process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.line, _ = self.process.communicate()

    def report(self):
        """Prints the figures; returns the surprises, a line each."""
        if not self.line:
            return [f"{self.way}: the neighbours left no findings"]
        found = json.loads(self.line)
        with open(f"{folder(self.way)}/neighbours.json", "w") as file:
            json.dump(found, file, indent=1)
        total = sum(kind["count"] for kind in found["surprises"].values())
        print(f"regress, {self.way}: the neighbours took {found['steps']} steps and looked {found['views']} times, on "
              f"{found['backends']} backends: {total} surprises", flush=True)
        for name, kind in sorted(found["traces"].items()):
            print(f"regress, {self.way}: trace, {name}: {kind['count']} times")
        return [f"neighbours, {self.way}: {name}, {kind['count']} times, first {json.dumps(kind['example'])}"
                for name, kind in sorted(found["surprises"].items(), key=lambda item: -item[1]["count"])]


def folder(way):
    return scene.kept("regress", way)


def prepared(stage, way):
    """Makes the suite's tables; the command for the rest of it."""
    kept = folder(way)
    shutil.rmtree(kept, ignore_errors=True)
    os.makedirs(kept)
    tests, out = inputs(stage), stage.subfolder("outputs")
    command = [regress_program(stage), "--use-existing", f"--dbname={DATABASE}", "--host=127.0.0.1",
               f"--port={stage.ports[way]}", f"--user={scene.ROLE}", f"--bindir={stage.programs}",
               f"--inputdir={tests}", f"--outputdir={out}", f"--dlpath={stage.folder}/libraries"]
    if stage.run(way, [*command, SETUP], SECONDS, f"{kept}/{SETUP}.out", cwd=out) != 0:
        raise SystemExit(f"regress: {SETUP} fails, {way}, see {kept}/{SETUP}.out")
    with open(f"{tests}/parallel_schedule") as whole, open(f"{tests}/rest_of_schedule", "w") as rest:
        rest.writelines(line for line in whole if line.split() != ["test:", SETUP])
    return [*command, f"--schedule={tests}/rest_of_schedule", "--max-concurrent-tests=20"]


def regress(stage, way, command):
    """Runs it and keeps what it leaves; the names of the tests that failed."""
    kept, tests, out = folder(way), f"{stage.folder}/inputs", f"{stage.folder}/outputs"
    status = stage.run(way, command, SECONDS, f"{kept}/pg_regress.out", cwd=out)
    shutil.copytree(f"{out}/results", f"{kept}/results")
    shutil.copy(stage.log(way), kept)
    if os.path.exists(f"{out}/regression.diffs"):
        shutil.copy(f"{out}/regression.diffs", kept)
        split(f"{out}/regression.diffs", kept)
    passed, failed = results(f"{kept}/pg_regress.out")
    passed.append(SETUP)
    listed = scheduled(f"{tests}/parallel_schedule")
    missing = [name for name in listed if name not in passed and name not in failed]
    print(f"regress, {way}: {len(passed)} of {len(listed)} tests pass"
          + (f", not {' '.join(failed)}" if failed else "")
          + (f", not run {' '.join(missing)}" if missing else "")
          + (f"; ended after {SECONDS} s" if status is None else ""), flush=True)
    return failed + missing


def inputs(stage):
    """The suite and its libraries where the unprivileged user may read them."""
    found = sources.postgres(stage.programs)
    tests, libraries = os.path.join(stage.folder, "inputs"), os.path.join(stage.folder, "libraries")
    shutil.copytree(f"{found.tests}/regress", tests)
    os.mkdir(libraries)
    installed = os.path.join(stage.programs, "../lib")
    for library in (found.library, f"{installed}/autoinc.so", f"{installed}/refint.so"):
        shutil.copy(library, libraries)
    return tests


def regress_program(stage):
    """Debian's postgresql-NN has it among the files for extensions (PGXS)."""
    path = os.path.join(stage.programs, "../lib/pgxs/src/test/regress/pg_regress")
    if not os.path.exists(path):
        raise SystemExit(f"regress: {path} is not there")
    return path


def scheduled(schedule):
    with open(schedule) as file:
        return [name for line in file if line.startswith("test:") for name in line.split()[1:]]


def results(path):
    """(passed, failed) of what pg_regress prints: "test boolean      ... ok     20 ms", indented within a group."""
    passed, failed = [], []
    with open(path, errors="replace") as file:
        for line in file:
            if found := re.match(r"(?:test|    ) +(\S+) +\.\.\. (ok|FAILED|failed)", line):
                (passed if found.group(2) == "ok" else failed).append(found.group(1))
    return passed, failed


def split(diffs, kept):
    """Writes each test's part of regression.diffs to a file of its own."""
    with open(diffs, errors="replace") as file:
        parts = re.split(r"^(?=diff )", file.read(), flags=re.MULTILINE)
    for part in parts:
        if found := re.match(r"diff .*/results/(\S+)\.out$", part, re.MULTILINE):
            with open(f"{kept}/{found.group(1)}.diff", "a") as file:
                file.write(part)
