"""Memory of a pooler for each of many idle clients, before and after a query of each."""

import time

import counters
import wire

FIRST_CLIENTS = 16
SETTLE_SECONDS = 1


def some(target, count, encrypted):
    return [wire.Session(target, encrypted=encrypted) for _ in range(count)]


def ask(sessions, buffer):
    for session in sessions:
        session.socket.sendall(wire.query("SELECT 1"))
        session.swallow(buffer)


def run(target, scenario):
    """Kilobytes of resident memory a client: kb_idle once logged in, kb_used after one query."""
    pid, buffer = target.server.process.pid, bytearray(65536)
    first = some(target, FIRST_CLIENTS, scenario.encrypted)  # backends and what is made once are not the clients'
    ask(first, buffer)
    before = counters.resident_kb(pid)
    start = time.monotonic()
    crowd = some(target, scenario.clients, scenario.encrypted)
    took = time.monotonic() - start
    time.sleep(SETTLE_SECONDS)
    idle = counters.resident_kb(pid)
    ask(crowd, buffer)
    time.sleep(SETTLE_SECONDS)
    used = counters.resident_kb(pid)
    for session in first + crowd:
        session.close()
    return {"kb_idle": (idle - before) / len(crowd), "kb_used": (used - before) / len(crowd),
            "logins_per_second": len(crowd) / took, "failed": 0}
