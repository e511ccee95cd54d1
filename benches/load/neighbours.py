#!/usr/bin/env python3
"""What calm tenants notice of a greedy one on the same instance, through pgtenant with fairness and without, and PgBouncer.

Nine tenants with a few short queries a second each; the tenth has 64 clients with slow and fast queries, then logs in
anew for each query, then guesses passwords. Throwaway servers on free ports of 127.0.0.1. docs/FAIRNESS.md has the result.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from statistics import median

import poolers
import servers
import tables
from pgbench import percentile, sampled_latencies
from servers import Target, environment
from wire import Session

CALM = [f"calm{number}" for number in range(1, 10)]
GREEDY = "greedy"
BACKENDS, GREEDY_CLIENTS, CALM_CLIENTS, CALM_RATE = 16, 64, 2, 20
GRACE_SECONDS = 30
PHASES = ("alone", "flood", "reconnects", "guesses")
SCRIPTS = {"calm": "SELECT sum(n) FROM generate_series(1, 500) n;", "slow": "SELECT pg_sleep(0.2);", "fast": "SELECT 1;"}


def pgbench(scene, target, tenant, arguments, encrypted=False):
    database, options = target.login(tenant)
    command = [f"{scene.programs}/pgbench", "-n", *arguments]
    return subprocess.Popen(command, env=environment(target.port, database, encrypted, options),
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def script(scene, name):
    path = os.path.join(scene.folder, f"{name}.sql")
    with open(path, "w") as file:
        file.write(SCRIPTS[name])
    return path


@contextmanager
def greedy(scene, target, phase, seconds):
    """The tenth tenant at its worst, a second after the others have begun and until they end."""
    lasting = ["-T", str(seconds)]
    if phase != "alone":
        time.sleep(1)
    if phase == "flood":
        mix = [f"--file={script(scene, 'slow')}@3", f"--file={script(scene, 'fast')}@1"]
        doing = pgbench(scene, target, GREEDY, ["-c", str(GREEDY_CLIENTS), *mix, *lasting])
    elif phase == "reconnects":
        fast = ["-C", f"--file={script(scene, 'fast')}"]
        doing = pgbench(scene, target, GREEDY, ["-c", str(GREEDY_CLIENTS), *fast, *lasting], encrypted=True)
    elif phase == "guesses":
        doing = subprocess.Popen([sys.executable, __file__, "--guess", target.name, str(target.port),
                                  str(int(target.by_option)), str(seconds)])
    else:
        yield
        return
    try:
        yield
    finally:
        doing.terminate()
        doing.wait()


def guess(name, port, by_option, seconds):
    """One wrong password after the other, each on a new encrypted connection."""
    target, end = Target(name, None, int(port), by_option == "1"), time.monotonic() + float(seconds)
    while time.monotonic() < end:
        try:
            Session(target, GREEDY, encrypted=True, wrong=True).close()
        except (servers.Failed, OSError):
            pass


def looked_at(scene, target, phase, seconds):
    """Percentiles of the calm tenants' queries, from the moment that each was due."""
    with tempfile.TemporaryDirectory(prefix="logs-", dir=scene.folder) as folder:
        rate = ["-c", str(CALM_CLIENTS), "-R", str(CALM_RATE), f"--file={script(scene, 'calm')}"]
        running = [pgbench(scene, target, tenant, [*rate, "-T", str(seconds), "--log",
                                                   f"--log-prefix={folder}/transactions.{tenant}"]) for tenant in CALM]
        # The calm ones were there before.
        with greedy(scene, target, phase, seconds):
            failed = sum(one.wait(seconds + GRACE_SECONDS) != 0 for one in running)
        times = sampled_latencies(folder)
    if failed or not times:
        return {"p50": None, "p99": None, "most": None, "failed": failed}
    return {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99), "most": times[-1], "failed": failed}


def one_round(scene, pooler, seconds):
    with scene.fresh(pooler, [*CALM, GREEDY], BACKENDS) as target:
        looked_at(scene, target, "alone", 1)
        return {phase: looked_at(scene, target, phase, seconds) for phase in PHASES}


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pgtenant", default="target/dist/pgtenant")
    parser.add_argument("--pgbouncer", default=poolers.pgbouncer_program())
    parser.add_argument("--seconds", type=int, default=6, help="of each phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


def middle(rounds, phase, figure):
    found = [one[phase][figure] for one in rounds if one[phase][figure] is not None]
    return median(found) if found else None


def report(found):
    lines = []
    for phase in PHASES:
        for name, rounds in found.items():
            p99, alone = middle(rounds, phase, "p99"), middle(rounds, "alone", "p99")
            times = p99 / alone if p99 and alone else None
            lines.append([phase, name, *(tables.shown(middle(rounds, phase, figure), 2) for figure in ("p50", "p99", "most")),
                          tables.shown(times, 2), str(sum(one[phase]["failed"] for one in rounds))])
    head = ["scenario", "target", "p50 ms", "p99 ms", "longest ms", "p99 ÷ alone", "clients failed"]
    return "\n".join(tables.table("What nine calm tenants notice of a greedy one", head, lines))


def main():
    chosen = options()
    scene = servers.Scene(servers.throwaway.postgres_programs(), BACKENDS)
    targets = [poolers.Pgtenant("pgtenant", chosen.pgtenant),
               poolers.Pgtenant("first come", chosen.pgtenant, "\n[fairness]\nenabled = false\n"),
               poolers.PgBouncer(chosen.pgbouncer)]
    found = {target.name: [] for target in targets}
    try:
        scene.start(1)
        scene.create_databases([*CALM, GREEDY])
        for number in range(chosen.rounds):
            for target in targets[number % 3:] + targets[:number % 3]:
                figures = one_round(scene, target, chosen.seconds)
                found[target.name].append(figures)
                print(f"round {number + 1} {target.name}: {figures}", file=sys.stderr)
        if chosen.json:
            with open(chosen.json, "w") as file:
                json.dump(found, file, indent=1)
        print(report(found))
    finally:
        scene.end()


if sys.argv[1:2] == ["--guess"]:
    guess(*sys.argv[2:])
else:
    main()
