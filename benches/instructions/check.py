#!/usr/bin/env python3
"""Fails when the relay takes over 5% more instructions for a recorded conversation than counts.txt says.

callgrind counts them in the optimized build, without the harness around the relay: the same at each run, however busy
the machine is. `--write` stores what was counted, after a change that is worth it.
"""

import json
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
COUNTS = os.path.join(HERE, "counts.txt")
TIMES = "50"
TOLERANCE = 0.05
HEAD = """# Instructions of the relay for one exchange (request and answer) of each conversation: check.py --write.
# Another compiler counts otherwise: then nothing fails.
"""


def built():
    """The path of the replaying program, built like a release."""
    command = ["cargo", "bench", "--quiet", "--no-run", "--bench", "instructions", "--message-format=json"]
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


def stored():
    with open(COUNTS) as file:
        lines = [line.strip().partition(": ") for line in file if not line.startswith("#")]
    return {name: value for name, _, value in lines}


def main():
    program, expected, ours = built(), stored(), compiler()
    now = {name: counted(program, name) for name in expected if name != "compiler"}
    if "--write" in sys.argv[1:]:
        with open(COUNTS, "w") as file:
            file.write(HEAD + f"compiler: {ours}\n" + "".join(f"{name}: {count}\n" for name, count in now.items()))
    worse = []
    for name, count in now.items():
        change = count / int(expected[name]) - 1
        print(f"instructions: {name:10} {count:6} an exchange, {change:+.1%}")
        worse += [name] if change > TOLERANCE else []
    if expected["compiler"] != ours:
        print(f"instructions: {ours} here, stored with {expected['compiler']}: compare with care")
    elif worse and "--write" not in sys.argv[1:]:
        sys.exit(f"instructions: over {TOLERANCE:.0%} more for {', '.join(worse)}. If that is worth it: "
                 "python3 -B benches/instructions/check.py --write")


main()
