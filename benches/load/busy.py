"""Many busy connections from one epoll loop: more than pgbench connects in time, and those of many tenants."""

import select
import time
from contextlib import contextmanager

import wire
from pgbench import percentiles
from servers import DATABASE, Failed, Load

ACTIVE = 100


def names(count):
    """What the tenants of a scenario are called."""
    return [f"t{number:05}" for number in range(count)] if count > 1 else [DATABASE]


def active(count):
    """Those among them that have clients, spread evenly."""
    return names(count)[::max(count // ACTIVE, 1)][:ACTIVE]


@contextmanager
def load(target, scenario, _scene):
    """Each client queries again as soon as it has its answer; clients go round the active tenants."""
    tenants, request = active(scenario.tenants), wire.query(scenario.arguments[0])
    sessions = [wire.Session(target, tenants[number % len(tenants)]) for number in range(scenario.clients)]
    yield Load(lambda seconds: turn(sessions, request, seconds))
    for session in sessions:
        session.close()


def turn(sessions, request, seconds):
    poll, by_number, sent, times = select.epoll(), {}, {}, []
    begun = time.monotonic()
    for session in sessions:
        number = session.socket.fileno()
        by_number[number] = session.socket
        poll.register(number, select.EPOLLIN)
        session.socket.sendall(request)
        sent[number] = begun
    end = begun + seconds
    while sent:
        events = poll.poll(wire.TIMEOUT_SECONDS)
        if not events:
            raise Failed(f"no answer within {wire.TIMEOUT_SECONDS} s")
        for number, _ in events:
            answer = by_number[number].recv(65536)
            if not answer:
                raise Failed("a connection was closed")
            if not answer.endswith(wire.READY):
                continue
            now = time.monotonic()
            times.append((now - sent.pop(number)) * 1000)
            if now < end:
                by_number[number].sendall(request)
                sent[number] = now
    poll.close()
    took = time.monotonic() - begun
    return {"tps": len(times) / took, "mean_ms": sum(times) / max(len(times), 1), "failed": 0,
            "transactions": len(times), **percentiles(sorted(times))}
