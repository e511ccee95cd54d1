#!/usr/bin/env python3
"""Fails when the relay takes over 5% more instructions for a recorded conversation than counts.txt says.

callgrind counts them without the harness around the relay: the same at each run, however busy the machine is. Counted is
the optimized build, or with `--test` the one that the tests have built already. `--write` stores what was counted in both,
after a change that is worth it.
"""

import argparse
import json
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
COUNTS = os.path.join(HERE, "counts.txt")
TIMES = "50"
TOLERANCE = 0.05
# How cargo is asked for a build, and the place of its counts in a line of counts.txt.
OPTIMIZED = (["cargo", "bench", "--no-run"], 0)
TEST = (["cargo", "build"], 1)
HEAD = """# Instructions of the relay for one exchange (request and answer) of each conversation, in the optimized build and in the
# tests' one: check.py --write. Another compiler counts otherwise: then nothing fails.
"""


def built(build):
    """The path of the replaying program."""
    command = [*build, "--quiet", "--bench", "instructions", "--message-format=json"]
    done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("instructions: the program does not build")
    artifacts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return next(one["executable"] for one in artifacts if one.get("target", {}).get("kind") == ["bench"])


def compiler():
    return subprocess.run(["rustc", "--version"], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def counted(program, conversation):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_*", program,
               conversation, TIMES]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not found:
        sys.exit(f"instructions: {' '.join(command)}:\n{done.stderr[-2000:]}")
    return round(int(found.group(1)) / int(done.stdout))


def counted_in(build, conversations):
    program = built(build)
    return {name: counted(program, name) for name in conversations}


def stored():
    """The compiler, and for each conversation its counts."""
    with open(COUNTS) as file:
        lines = dict(line.strip().split(": ") for line in file if not line.startswith("#"))
    compiler = lines.pop("compiler")
    return compiler, {name: [int(count) for count in counts.split()] for name, counts in lines.items()}


def write(conversations):
    optimized, test = (counted_in(build, conversations) for build, _ in (OPTIMIZED, TEST))
    lines = "".join(f"{name}: {optimized[name]} {test[name]}\n" for name in conversations)
    with open(COUNTS, "w") as file:
        file.write(f"{HEAD}compiler: {compiler()}\n{lines}")
    print(lines, end="")


def check(theirs, expected, build, place):
    worse = []
    for name, count in counted_in(build, expected).items():
        change = count / expected[name][place] - 1
        print(f"instructions: {name:10} {count:6} an exchange, {change:+.1%}")
        worse += [name] if change > TOLERANCE else []
    if theirs != compiler():
        print(f"instructions: {compiler()} here, stored with {theirs}: compare with care")
    elif worse:
        sys.exit(f"instructions: over {TOLERANCE:.0%} more for {', '.join(worse)}. If that is worth it: "
                 "python3 -B benches/instructions/check.py --write")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--test", action="store_true", help="count in the build that the tests use")
    parser.add_argument("--write", action="store_true", help="store what is counted, in both builds")
    arguments = parser.parse_args()
    theirs, expected = stored()
    if arguments.write:
        write(expected)
    else:
        check(theirs, expected, *(TEST if arguments.test else OPTIMIZED))


main()
