#!/usr/bin/env python3
"""pgbench through PostgreSQL directly, PgBouncer and pgtenant, interleaved in one run on throwaway servers.

Everything listens on free ports of 127.0.0.1 and is ended and removed afterwards, also on Ctrl-C.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import measure
import report
import servers

# The optional ones (`connect`, `select-tls`) are named with --scenarios.
USUAL = ["select-simple", "select-extended", "select-prepared", "tpcb-like"]
TARGETS = ["direct", "pgbouncer", "before", "pgtenant"]


def options():
    def names(known):
        def split(text):
            chosen = list(known) if text == "all" else text.split(",")
            if unknown := [name for name in chosen if name not in known]:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
            return chosen
        return split

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pgtenant", default="target/release/pgtenant", help="the program to measure")
    parser.add_argument("--before", help="another build of it, measured beside")
    parser.add_argument("--seconds", type=int, default=5, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--backends", type=int, default=16, help="of each proxy")
    parser.add_argument("--threads", type=int, default=1, help="of pgbench")
    parser.add_argument("--scale", type=int, default=10, help="of pgbench's tables")
    parser.add_argument("--scenarios", type=names(measure.SCENARIOS), default=",".join(USUAL),
                        help=f"'all', or some of {','.join(measure.SCENARIOS)}")
    parser.add_argument("--targets", type=names(TARGETS), default="all", help=f"some of {','.join(TARGETS)}")
    parser.add_argument("--no-log", action="store_true", help="no percentiles: pgbench writes no transaction times")
    parser.add_argument("--out", default="target/bench-load", help="folder for load.json and load.md")
    chosen = parser.parse_args()
    if chosen.before is None:
        chosen.targets = [target for target in chosen.targets if target != "before"]
    if chosen.threads > chosen.clients:
        parser.error("more threads than clients")
    if "pgtenant" in chosen.targets and not os.access(chosen.pgtenant, os.X_OK):
        parser.error(f"{chosen.pgtenant} is not there: run `cargo build --release`, or leave pgtenant out by --targets")
    if "pgbouncer" in chosen.targets and servers.pgbouncer_version() is None:
        parser.error("PgBouncer is not installed (Debian: pgbouncer); leave it out by --targets")
    return chosen


def start(chosen, programs, folder, running):
    """Starts what was asked for, noting each server in `running`; returns the targets by name."""
    encrypted = any(measure.SCENARIOS[name][1] for name in chosen.scenarios)
    tls = servers.certificate(folder) if encrypted else None
    postgres, verifier = servers.start_postgres(programs, folder, tls, running)
    measure.fill(programs, postgres, chosen.scale)
    targets = {"direct": postgres}
    if "pgbouncer" in chosen.targets:
        targets["pgbouncer"] = servers.start_pgbouncer(folder, postgres, verifier, chosen.backends, tls, running)
    for target in ("before", "pgtenant"):
        if target in chosen.targets:
            program, own = os.path.realpath(getattr(chosen, target)), os.path.join(folder, target)
            os.mkdir(own)
            targets[target] = servers.start_pgtenant(program, own, postgres, verifier, chosen.backends, tls, running)
    return {name: targets[name] for name in chosen.targets}


def cannot(target, scenario):
    """PgBouncer keeps protocol-level prepared statements apart only from 1.21 on, and takes no parameters at login."""
    prepared = scenario == "select-prepared" and servers.pgbouncer_version() < (1, 21)
    return target == "pgbouncer" and (prepared or scenario in measure.PARAMETERS)


def rounds(chosen, programs, targets, logs):
    results = {scenario: {name: None if cannot(name, scenario) else [] for name in targets}
               for scenario in chosen.scenarios}
    for scenario, by_target in results.items():
        able = [name for name, kept in by_target.items() if kept is not None]
        for name in able:  # not counted: fills the pools and the caches
            measure.pgbench(programs, targets[name], scenario, chosen.clients, chosen.threads, 2, [])
        for number in range(chosen.rounds):
            shift = number % max(len(able), 1)
            for name in able[shift:] + able[:shift]:
                one = measure.run(programs, targets[name], scenario, chosen.clients, chosen.threads, chosen.seconds,
                                  None if chosen.no_log else logs)
                by_target[name].append(one)
                print(f"{scenario:16} round {number + 1} {name:10} {one['tps']:10,.0f} tps", file=sys.stderr)
    return results


def versions(chosen, programs):
    said = subprocess.run([f"{programs}/postgres", "--version"], capture_output=True, text=True).stdout
    found = [said.strip()]
    if "pgbouncer" in chosen.targets:
        found.append("PgBouncer {}.{}".format(*servers.pgbouncer_version()))
    if "pgtenant" in chosen.targets:
        found.append(subprocess.run([chosen.pgtenant, "--version"], capture_output=True, text=True).stdout.strip())
    return found


def main():
    chosen = options()
    programs = servers.throwaway.postgres_programs()
    # SIGTERM and a closed terminal take the same way out as Ctrl-C: through `finally`.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit("bench-load: ended by a signal"))
    folder = tempfile.mkdtemp(prefix="pgtenant-load-")
    os.chmod(folder, 0o711)
    running = []
    try:
        logs = os.path.join(folder, "logs")
        os.mkdir(logs)
        targets = start(chosen, programs, folder, running)
        results = rounds(chosen, programs, targets, logs)
        memory = {name: target.resident_kb() for name, target in targets.items() if name != "direct"}
        rows = report.summarize(results)
        text = report.markdown(rows, report.describe(chosen, versions(chosen, programs), memory))
        report.write(chosen.out, results, rows, text)
        print(text)
        print(f"written to {chosen.out}/load.json and load.md")
        if any(row["failed"] for row in rows):
            sys.exit("bench-load: transactions failed")
    except KeyboardInterrupt:
        sys.exit("bench-load: interrupted")
    finally:
        for server, ending in reversed(running):
            server.end(ending)
        shutil.rmtree(folder, ignore_errors=True)


main()
