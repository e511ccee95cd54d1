"""Many tenants of which some are active: one connection each, all busy, from one epoll loop."""

import select
import time

import wire
from pgbench import percentiles
from servers import DATABASE

ACTIVE = 100
REQUEST = wire.query("SELECT 1234567 AS abalance")


def names(count):
    """What the tenants of a scenario are called."""
    return [f"t{number:05}" for number in range(count)] if count > 1 else [DATABASE]


def active(count):
    """Those among them that have clients, spread evenly."""
    return names(count)[::max(count // ACTIVE, 1)][:ACTIVE]


def run(target, seconds, scenario, _scene):
    """Each client queries again as soon as it has its answer; clients go round the active tenants."""
    busy = active(scenario.tenants)
    sessions = [wire.Session(target, busy[number % len(busy)]) for number in range(scenario.clients)]
    times = turn(sessions, seconds)
    for session in sessions:
        session.close()
    return {"tps": len(times) / seconds, "mean_ms": sum(times) / max(len(times), 1), "failed": 0,
            "transactions": len(times), **percentiles(sorted(times))}


def turn(sessions, seconds):
    """Milliseconds of each transaction."""
    poll, by_number, sent, times = select.epoll(), {}, {}, []
    begun = time.monotonic()
    for session in sessions:
        number = session.socket.fileno()
        by_number[number] = session.socket
        poll.register(number, select.EPOLLIN)
        session.socket.sendall(REQUEST)
        sent[number] = begun
    end = begun + seconds
    while sent:
        for number, _ in poll.poll(wire.TIMEOUT_SECONDS):
            answer = by_number[number].recv(65536)
            if not answer:
                raise SystemExit("bench-load: a connection was closed")
            if not answer.endswith(wire.READY):
                continue
            now = time.monotonic()
            times.append((now - sent.pop(number)) * 1000)
            if now < end:
                by_number[number].sendall(REQUEST)
                sent[number] = now
    poll.close()
    return times
