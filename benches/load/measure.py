"""One pgbench run against one target: throughput, latency and the proxy's CPU time per transaction."""

import glob
import os
import re
import subprocess

from servers import DATABASE, PASSWORD, ROLE

# The scenarios by name: arguments for pgbench, and whether the connections are encrypted.
SCENARIOS = {
    "select-simple": (["-S", "-M", "simple"], False),
    "select-extended": (["-S", "-M", "extended"], False),
    "select-prepared": (["-S", "-M", "prepared"], False),
    "tpcb-like": (["-M", "simple"], False),
    "connect": (["-S", "-M", "simple", "-C"], False),
    "select-tls": (["-S", "-M", "simple"], True),
    "select-parameters": (["-S", "-M", "simple"], False),
}
# What a client of this scenario asks for at its login.
PARAMETERS = {"select-parameters": "-c TimeZone=Asia/Tokyo -c work_mem=5MB -c statement_timeout=30s"}
# Every transaction's time in the log would cost pgbench more than the proxy costs: one in ten is written.
SAMPLED = 0.1


def environment(target, encrypted, parameters=""):
    """libpq's variables for one target; nothing of the caller's own remains."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    kept.update(PGHOST="127.0.0.1", PGPORT=str(target.port), PGUSER=ROLE, PGPASSWORD=PASSWORD, PGDATABASE=DATABASE,
                PGSSLMODE="require" if encrypted else "disable", PGGSSENCMODE="disable", PGCONNECT_TIMEOUT="10")
    route = "-c tenant=bench" if target.name == "pgtenant" else ""
    kept["PGOPTIONS"] = f"{route} {parameters}".strip()
    return kept


def fill(programs, postgres, scale):
    subprocess.run([f"{programs}/pgbench", "-i", "-q", "-s", str(scale)], check=True, capture_output=True,
                   env=environment(postgres, False))


def percentile(ordered, part):
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def sampled_latencies(prefix):
    """Milliseconds in ascending order from pgbench's logs, which are removed."""
    times = []
    for path in glob.glob(f"{prefix}.*"):
        with open(path) as log:
            times += [int(line.split()[2]) / 1000 for line in log if line.split()[2].isdigit()]
        os.remove(path)
    return sorted(times)


def number(pattern, text, name):
    found = re.search(pattern, text)
    if not found:
        raise SystemExit(f"bench-load: pgbench reports no {name}:\n{text}")
    return float(found.group(1))


def pgbench(programs, target, scenario, clients, threads, seconds, more):
    """Runs it and returns what it prints; SystemExit with its own words when it could not finish."""
    arguments, encrypted = SCENARIOS[scenario]
    command = [f"{programs}/pgbench", "-n", "-c", str(clients), "-j", str(threads), "-T", str(seconds), *arguments,
               *more]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(target, encrypted, PARAMETERS.get(scenario, "")),
                          timeout=seconds + 60)
    if done.returncode != 0:
        raise SystemExit(f"bench-load: pgbench failed ({scenario}, {target.name}):\n{done.stderr[-2000:]}")
    return done.stdout


def run(programs, target, scenario, clients, threads, seconds, logs):
    """One measured run, its result as a dictionary."""
    # With a connection for each transaction the log has the time after the login only: no percentiles then.
    logged = logs and "-C" not in SCENARIOS[scenario][0]
    prefix = os.path.join(logs, "transactions") if logged else None
    more = ["--log", f"--log-prefix={prefix}", f"--sampling-rate={SAMPLED}"] if prefix else []
    before = target.cpu_seconds()
    said = pgbench(programs, target, scenario, clients, threads, seconds, more)
    cpu = target.cpu_seconds() - before
    transactions = number(r"transactions actually processed: (\d+)", said, "transactions")
    result = {
        "tps": number(r"tps = ([\d.]+)", said, "tps"),
        "mean_ms": number(r"latency average = ([\d.]+) ms", said, "latency"),
        "failed": int(number(r"number of failed transactions: (\d+)", said, "failed transactions")),
        "transactions": int(transactions),
        # PostgreSQL's work is in its backends, which are processes of their own: only a proxy has a figure here.
        "cpu_us": None if target.name == "postgres" else cpu / max(transactions, 1) * 1e6,
    }
    times = sampled_latencies(prefix) if prefix else []
    for name, part in (("p50_ms", 0.50), ("p99_ms", 0.99)):
        result[name] = percentile(times, part) if times else None
    return result
