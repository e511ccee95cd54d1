#!/usr/bin/env python3
"""Other projects' own test suites, directly against PostgreSQL and through pgtenant: what differs, fails.

Each suite gets a throwaway PostgreSQL (see scene.py). What it needs is fetched once into target/suites, and what it
leaves to be looked at lies there too, in a folder of its name.
"""

import argparse
import importlib
import os
import signal
import sys
import time

import scene

# A module beside this one for each, with `run(chosen)`: it prints its report, and returns what fails through the proxy
# and not directly, one line each.
SUITES = ["regress", "pipeline", "asyncpg", "tokio_postgres", "django", "sqlalchemy"]


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"some of {', '.join(SUITES)}; all without any")
    parser.add_argument("--pgtenant", default="target/release/pgtenant", help="the program to test")
    parser.add_argument("--mode", choices=[*scene.MODES, "both"], default="both", help="of the pool")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.suites if name not in SUITES]:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(SUITES)}")
    if not os.access(chosen.pgtenant, os.X_OK):
        parser.error(f"{chosen.pgtenant} is not there: run `cargo build --release`")
    chosen.modes = list(scene.MODES) if chosen.mode == "both" else [chosen.mode]
    return chosen


def main():
    chosen = options()
    # SIGTERM and a closed terminal take the same way out as Ctrl-C: through every `with` and `finally`.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit("suites: ended by a signal"))
    differences = []
    try:
        for name in chosen.suites or SUITES:
            begun = time.monotonic()
            found = importlib.import_module(name).run(chosen)
            differences += [f"{name}: {line}" for line in found]
            print(f"{name}: {len(found)} differ from a direct connection, {time.monotonic() - begun:.0f} s", flush=True)
    except KeyboardInterrupt:
        sys.exit("suites: interrupted")
    if differences:
        sys.exit("\n".join(["suites: these fail through pgtenant and not directly", *differences]))


main()
