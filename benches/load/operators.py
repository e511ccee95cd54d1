#!/usr/bin/env python3
"""What looking costs with 10,000 tenants, 500 of them active: scrape, page, API, top. Prints docs/METRICS.md's table.

    python3 -B benches/load/operators.py --pgtenant target/release/pgtenant

It makes a PostgreSQL server with 500 databases (4 GB in the temporary folder), and needs about eight minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import threading
import time
import urllib.request

import counters
import wire
from pgbench import percentiles
from poolers import Pgtenant
from servers import SETTINGS, Scene, throwaway

TENANTS, ACTIVE, ROUNDS = 10_000, 500, 20
# Longer than an answer of the API may be old, so that each look is a new one.
PAUSE_SECONDS = 1.2
QUERIES_PER_SECOND = 1000


def options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pgtenant", default="target/release/pgtenant")
    parser.add_argument("--hold", type=float, default=0, help="seconds to go on for people who want to look")
    return parser.parse_args()


class Clients(threading.Thread):
    """One client of each active tenant, that query in turn at an even pace; `times` are in milliseconds."""

    def __init__(self, target, names):
        super().__init__(daemon=True)
        self.sessions = [wire.Session(target, name) for name in names]
        self.times, self.over = [], False

    def run(self):
        request, buffer, due = wire.query("SELECT 1"), bytearray(65536), time.monotonic()
        while not self.over:
            for session in self.sessions:
                due += 1 / QUERIES_PER_SECOND
                time.sleep(max(due - time.monotonic(), 0))
                begun = time.monotonic()
                session.socket.sendall(request)
                session.swallow(buffer)
                self.times.append((time.monotonic() - begun) * 1000)


def ask(base, path):
    """Milliseconds, and the body."""
    begun = time.monotonic()
    with urllib.request.urlopen(base + path, timeout=30) as answer:
        body = answer.read()
    return (time.monotonic() - begun) * 1000, body


def looked_at(base, paths, pid):
    """By path: median and longest milliseconds, CPU milliseconds of the proxy beyond the load's, and bytes."""
    found = {}
    for path in paths:
        times, size, idle, spent = [], 0, 0, 0
        for _ in range(ROUNDS):
            before = counters.process_seconds(pid)
            time.sleep(PAUSE_SECONDS)
            between = counters.process_seconds(pid)
            took, body = ask(base, path)
            time.sleep(PAUSE_SECONDS)
            idle, spent = idle + between - before, spent + counters.process_seconds(pid) - between
            times.append(took)
            size = len(body)
        cpu = max(spent - idle, 0) / ROUNDS * 1000
        found[path] = {"median_ms": statistics.median(times), "longest_ms": max(times), "cpu_ms": cpu, "bytes": size}
    return found


def polled(base, clients, seconds, paths):
    """The clients' percentiles while somebody polls as a page does, or nobody."""
    clients.times.clear()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for path in paths:
            ask(base, path)
        time.sleep(2)
    return percentiles(sorted(clients.times))


def main():
    chosen = options()
    names = [f"t{number:05}" for number in range(TENANTS)]
    active = names[::TENANTS // ACTIVE]
    http = throwaway.free_port()
    os.environ["PGTENANT__HTTP__ADDRESS"] = f"127.0.0.1:{http}"
    base = f"http://127.0.0.1:{http}"
    SETTINGS["max_connections"] = str(ACTIVE + 100)
    scene = Scene(throwaway.postgres_programs(), ACTIVE + 20)
    try:
        scene.start(1)
        scene.create_databases(active)
        pooler = Pgtenant("pgtenant", chosen.pgtenant, more="")
        with scene.fresh(pooler, names, ACTIVE + 10) as target:
            pid = target.server.process.pid
            start = counters.resident_kb(pid)
            clients = Clients(target, active)
            clients.start()
            time.sleep(12)
            busy = counters.resident_kb(pid)
            some = active[7]
            paths = ["/metrics", f"/metrics/tenant/{some}", "/api/v1/tenants?limit=50", f"/api/v1/tenants/{some}",
                     "/api/v1/instances", "/"]
            found = looked_at(base, paths, pid)
            page = ["/api/v1/tenants?limit=50", "/api/v1/instances"]
            calm, watched = polled(base, clients, 20, []), polled(base, clients, 20, page)
            scraped = polled(base, clients, 20, ["/metrics"])
            looked = counters.resident_kb(pid)
            begun = time.monotonic()
            top = subprocess.run([chosen.pgtenant, "top", "--once", "--limit", "5", "--url", base],
                                 capture_output=True, text=True, check=True).stdout
            took = (time.monotonic() - begun) * 1000
            print(f"pgtenant is at {base}", flush=True)
            time.sleep(chosen.hold)
            clients.over = True
            clients.join()
    finally:
        scene.end()
    print("| | median ms | longest ms | CPU ms | bytes |\n| --- | --- | --- | --- | --- |")
    for path, row in found.items():
        print(f"| `{path}` | {row['median_ms']:.1f} | {row['longest_ms']:.1f} | {row['cpu_ms']:.1f} | {row['bytes']:,} |")
    print(f"\nresident: {start / 1024:.0f} MB with {TENANTS:,} tenants, {busy / 1024:.0f} MB with {ACTIVE} active, "
          f"{looked / 1024:.0f} MB after all looks")
    print(f"queries: nobody looks {json.dumps(calm)}, a page polls {json.dumps(watched)}, scraped each 2 s {json.dumps(scraped)}")
    print(f"top --once: {took:.0f} ms\n{top}")


if __name__ == "__main__":
    main()
