#!/usr/bin/env python3
"""The cost of a transaction through pgtenant, PgBouncer, other poolers and none, interleaved on throwaway servers.

Everything listens on free ports of 127.0.0.1 and is ended and removed afterwards, also on Ctrl-C. docs/PERFORMANCE.md
says what is measured and how to read it.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import busy
import measure
import poolers
import report
import scenarios
import servers

# A row's rounds are shortened so that they fit, and on a busy machine there are fewer: all rows together then stay
# below 40 minutes.
ROW_SECONDS = 110
LEAST_SECONDS = 1
# Start, warming and end of one round, and the counted run of each target.
ROUND_OVERHEAD, COUNTED_OVERHEAD = measure.WARM_SECONDS + 0.7, measure.COUNTED_SECONDS + 0.5


def scenario_list(text):
    if text in ("all", "usual"):
        return [scenario for scenario in scenarios.ALL if scenario.usual or text == "all"]
    if unknown := [name for name in text.split(",") if name not in scenarios.BY_NAME]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(scenarios.BY_NAME)}")
    return [scenarios.BY_NAME[name] for name in text.split(",")]


def other(text):
    """NAME=COMMAND:CONFIG as a pooler."""
    name, _, rest = text.partition("=")
    command, _, config = rest.rpartition(":")
    if not (name and command and os.path.exists(config)):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMAND:CONFIG with a file or folder at CONFIG")
    return poolers.Template(name, command, os.path.realpath(config))


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pgtenant", default="target/dist/pgtenant", help="the program to measure")
    parser.add_argument("--before", help="another build of it, measured beside")
    parser.add_argument("--pgbouncer", default=poolers.pgbouncer_program(), help="the program that ratios refer to")
    parser.add_argument("--other", type=other, action="append", default=[], metavar="NAME=COMMAND:CONFIG",
                        help="a further pooler: its command and a file or folder of templates, see docs/PERFORMANCE.md")
    parser.add_argument("--seconds", type=int, default=5, help="length of one run; less where a row would last longer "
                        f"than {ROW_SECONDS} s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--backends", type=int, default=16, help="of each pooler")
    parser.add_argument("--scale", type=int, default=10, help="of pgbench's tables")
    parser.add_argument("--scenarios", type=scenario_list, default="usual",
                        help=f"'usual', 'all', or some of {','.join(scenarios.BY_NAME)}")
    parser.add_argument("--targets", help="only these, of direct,pgbouncer,before,pgtenant and the others' names")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="all figures; to standard output, "
                        "instead of the tables, without FILE")
    parser.add_argument("--docs", metavar="FOLDER", help="write load.md and load.svg there, too")
    parser.add_argument("--out", default="target/bench-load", help="folder for load.json, load.md and load.svg")
    chosen = parser.parse_args()
    chosen.programs = servers.throwaway.postgres_programs()
    chosen.poolers = wanted(chosen, parser)
    return chosen


def wanted(chosen, parser):
    """The poolers to measure, in the order of the tables."""
    known = [servers.Direct(chosen.programs)]
    if chosen.pgbouncer and os.access(chosen.pgbouncer, os.X_OK):
        known.append(poolers.PgBouncer(os.path.realpath(chosen.pgbouncer)))
    known += chosen.other
    for name in ("before", "pgtenant"):
        if program := getattr(chosen, name):
            known.append(poolers.Pgtenant(name, program))
    names = chosen.targets.split(",") if chosen.targets else [pooler.name for pooler in known]
    if chosen.targets is None and "pgbouncer" not in names:
        parser.error("PgBouncer is not there (Debian: pgbouncer); name it by --pgbouncer or leave it out by --targets")
    if unknown := set(names) - {pooler.name for pooler in known}:
        parser.error(f"--targets: there is no {unknown.pop()!r}")
    picked = [pooler for pooler in known if pooler.name in names]
    for pooler in picked:
        if isinstance(pooler, poolers.Pgtenant) and not os.access(pooler.program, os.X_OK):
            parser.error(f"{pooler.program} is not there: run `cargo build --profile dist`, or leave it out by --targets")
    return picked


def seconds_for(chosen, scenario, count):
    """The length of one run, so that the whole row keeps to ROW_SECONDS."""
    starts = (scenario.rounds or chosen.rounds) * count * (2 if scenario.tenants > 1 else 1)
    room = (ROW_SECONDS - count * COUNTED_OVERHEAD) / max(starts, 1) - ROUND_OVERHEAD
    return max(min(chosen.seconds, room), LEAST_SECONDS)


def row(chosen, scenario, scene, failures):
    """All rounds of a scenario: a list for each target, None where it cannot take it or failed."""
    begun = time.monotonic()
    able = [pooler for pooler in chosen.poolers if pooler.name not in scenario.without]
    found = {pooler.name: [] if pooler in able else None for pooler in chosen.poolers}
    seconds = int(seconds_for(chosen, scenario, len(able)))
    if scenario.tenants > 1:
        scene.create_databases(busy.active(scenario.tenants))
    scenario = replace(scenario, clients=scenario.clients or chosen.clients)
    for number in range(scenario.rounds or chosen.rounds):
        shift = number % max(len(able), 1)
        for pooler in able[shift:] + able[:shift]:
            told = f"{scenario.name:20} round {number + 1} {pooler.name:12}"
            try:
                figures = measure.round_of(pooler, pooler.adapted(scenario), scene, seconds, number == 0)
            except (servers.Failed, OSError, subprocess.SubprocessError) as error:
                failures.append(f"{scenario.name}, {pooler.name}: {error}")
                print(f"{told} FAILED: {error}", file=sys.stderr)
                able, found[pooler.name] = [other for other in able if other != pooler], None
                continue
            found[pooler.name].append(figures)
            print(f"{told} {report.progress(figures)}", file=sys.stderr)
        if (time.monotonic() - begun) / (number + 1) * (number + 2) > ROW_SECONDS:
            break
    return found


def main():
    chosen = options()
    # SIGTERM and a closed terminal take the same way out as Ctrl-C: through `finally`.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit("bench-load: ended by a signal"))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    scene = servers.Scene(chosen.programs, chosen.backends)
    found, failures = {}, []
    try:
        scene.start(chosen.scale)
        for scenario in chosen.scenarios:
            found[scenario.name] = row(chosen, scenario, scene, failures)
            kept, text = report.publish(chosen, found, failures)
        print(kept if chosen.json == "-" else text)
        print(f"written to {chosen.out}: load.json, load.md, load.svg", file=sys.stderr)
    except KeyboardInterrupt:
        sys.exit("bench-load: interrupted")
    finally:
        scene.end()
    if failures or report.failed(found):
        sys.exit("bench-load: transactions failed")


main()
