"""Compares a suite test by test: directly, and through the proxy in each mode, each time on a fresh PostgreSQL."""

import dataclasses
import hashlib
import json
import os
import typing

import scene


@dataclasses.dataclass
class Suite:
    name: str
    # What decides the outcomes beside PostgreSQL: versions and choices. The direct run is repeated when they change.
    inputs: list
    # Runs the suite once, `play(stage, way)`, and returns the path of its outcomes (JSON, a [test, outcome] a line).
    play: typing.Callable
    # Prepares the cluster, `prepare(stage)`.
    prepare: typing.Callable = lambda stage: None
    databases: tuple = ("suite",)
    # Further lines for proxy.toml.
    proxy: str = ""
    # By mode, the tests that cannot pass through a proxy, each with the reason.
    excused: dict = dataclasses.field(default_factory=dict)


def differences(suite, chosen):
    """What passes directly and not through the proxy, one line each, without what is excused; prints the table."""
    direct = baseline(suite)
    expected = passed(direct)
    rows = [("suite", "mode", "passed directly", "passed through pgtenant", "failing only through pgtenant")]
    unexcused = []
    for mode in chosen.modes:
        through = passed(outcomes(suite, mode, chosen.pgtenant))
        excused = suite.excused.get(mode, {})
        missing = sorted(expected - through)
        rows.append((suite.name, mode, len(expected), len(expected & through), len(missing)))
        for test in missing:
            print(f"{suite.name}, {mode}: {test}{f': {excused[test]}' if test in excused else ''}")
        for test in sorted(excused.keys() & through):
            print(f"{suite.name}, {mode}: passes, though it is excused: {test}")
        unexcused += [f"{test} in {mode} mode, see {log(suite, mode)}" for test in missing if test not in excused]
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip(), flush=True)
    return unexcused


def passed(found):
    return {test for test, outcome in found.items() if outcome == "passed"}


def log(suite, way):
    """Where `play` writes what the suite says."""
    return scene.kept(suite.name, f"{way}.out")


def baseline(suite):
    """The outcomes without a proxy, from an earlier run where nothing has changed."""
    programs = scene.throwaway.postgres_programs()
    decide = json.dumps([suite.inputs, os.path.realpath(programs), os.stat(f"{programs}/postgres").st_mtime])
    path = scene.kept(suite.name, f"direct-{hashlib.sha256(decide.encode()).hexdigest()[:16]}.json")
    if os.path.exists(path):
        with open(path) as file:
            return json.load(file)
    found = outcomes(suite, "direct", None)
    with open(path, "w") as file:
        json.dump(found, file, indent=0)
    return found


def outcomes(suite, way, program):
    with scene.Scene(suite.name, list(suite.databases)) as stage:
        suite.prepare(stage)
        if way != "direct":
            stage.start_proxy(program, way, proxy=suite.proxy)
        found = read(suite.play(stage, way))
    if "passed" not in found.values():
        raise SystemExit(f"suites: {suite.name}, {way}: no test passed, see {log(suite, way)}")
    return found


def read(path):
    """The outcome of each test; of several under one name (set-up, subtests) the worst."""
    order = {"passed": 0, "skipped": 1, "failed": 2}
    found = {}
    if os.path.exists(path):
        with open(path) as file:
            for line in file:
                # A run that was ended may have left half a line.
                if line.endswith("\n"):
                    test, outcome = json.loads(line)
                    found[test] = max(outcome, found.get(test, outcome), key=order.__getitem__)
    return found
