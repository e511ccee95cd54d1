"""One pgbench run against one target: its throughput and the times of its transactions."""

import glob
import os
import re
import subprocess
import tempfile
from contextlib import contextmanager

from servers import Failed, Load

# Every transaction's time in the log would cost pgbench more than the proxy costs: one in ten is written.
SAMPLED = 0.1
GRACE_SECONDS = 30
HERE = os.path.dirname(os.path.realpath(__file__))


def sampled_latencies(folder):
    """Milliseconds in ascending order from pgbench's logs."""
    times = []
    for path in glob.glob(f"{folder}/transactions.*"):
        with open(path) as log:
            times += [int(line.split()[2]) / 1000 for line in log if line.split()[2].isdigit()]
    return sorted(times)


def percentile(ordered, part):
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def percentiles(ordered):
    parts = (("p50_ms", 0.50), ("p99_ms", 0.99), ("p999_ms", 0.999))
    return {name: percentile(ordered, part) if ordered else None for name, part in parts}


def number(pattern, text, name):
    found = re.search(pattern, text)
    if not found:
        raise Failed(f"pgbench reports no {name}:\n{text}")
    return float(found.group(1))


@contextmanager
def load(target, scenario, scene):
    """pgbench keeps no connection from one run to the next; with -C the logins are the work."""
    def go(seconds):
        return run(target, ["-T", str(seconds)], seconds, scenario, scene)

    def come():
        return run(target, ["-t", "1"], 0, scenario, scene)

    yield Load(go, None if "-C" in scenario.arguments else come)


def run(target, length, seconds, scenario, scene):
    # With a connection for each transaction the log has the time after the login only: no percentiles then.
    logged = "-C" not in scenario.arguments
    with tempfile.TemporaryDirectory(prefix="logs-", dir=scene.folder) as folder:
        more = ["--log", f"--log-prefix={folder}/transactions", f"--sampling-rate={SAMPLED}"] if logged else []
        command = [f"{scene.programs}/pgbench", "-n", "-c", str(scenario.clients), *length, *scenario.arguments,
                   *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + GRACE_SECONDS, cwd=HERE,
                              env=target.environment(scenario.encrypted, scenario.parameters))
        if done.returncode != 0:
            why = [line for line in done.stderr.splitlines() if "error:" in line] or [done.stderr[-300:]]
            raise Failed(f"{why[0]} (exit {done.returncode})")
        times = sampled_latencies(folder)
    said = done.stdout
    if not times and "actually processed: 0\n" in said:  # a short run that the connecting took up
        return {"tps": 0.0, "mean_ms": None, "failed": 0, "transactions": 0, **percentiles(times)}
    return {
        "tps": number(r"tps = ([\d.]+)", said, "tps"),
        "mean_ms": number(r"latency average = ([\d.]+) ms", said, "latency"),
        "failed": int(number(r"number of failed transactions: (\d+)", said, "failed transactions")),
        "transactions": int(number(r"transactions actually processed: (\d+)", said, "transactions")),
        **percentiles(times),
    }
