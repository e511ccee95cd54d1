"""10 MB results and COPY in both directions, by clients that neither parse nor keep anything."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import wire
from pgbench import percentiles
from servers import LARGE_ROWS, LARGE_WIDTH, Failed, Load

BYTES = LARGE_ROWS * LARGE_WIDTH
BUFFER_BYTES = 256 * 1024
# As psql sends them: one message a line.
ROWS = wire.message(b"d", b"x" * LARGE_WIDTH + b"\n") * LARGE_ROWS + wire.COPY_DONE


def fetch(text):
    request = wire.query(text)

    def once(session, buffer):
        session.socket.sendall(request)
        return session.swallow(buffer) >= BYTES
    return once


def deliver(text):
    request = wire.query(text)

    def once(session, buffer):
        session.socket.sendall(request)
        if session.receive()[0] != b"G":
            raise Failed("no CopyInResponse")
        session.socket.sendall(ROWS)
        session.swallow(buffer)
        return True
    return once


def repeated(once):
    """A load: `once` over and over by each of the scenario's clients, in threads of their own."""
    @contextmanager
    def load(target, scenario, _scene):
        sessions = [wire.Session(target, encrypted=scenario.encrypted) for _ in range(scenario.clients)]
        yield Load(lambda seconds: together(once, sessions, seconds))
        for session in sessions:
            session.close()
    return load


def together(once, sessions, seconds):
    begun = time.monotonic()
    times, failed = [], []

    def work(session):
        buffer = bytearray(BUFFER_BYTES)
        while (start := time.monotonic()) < begun + seconds:
            (times if once(session, buffer) else failed).append((time.monotonic() - start) * 1000)

    with ThreadPoolExecutor(len(sessions)) as threads:
        list(threads.map(work, sessions))  # raises what one of them raised
    took = time.monotonic() - begun
    return {"tps": len(times) / took, "mean_ms": sum(times) / max(len(times), 1), "failed": len(failed),
            "transactions": len(times), **percentiles(sorted(times))}


results = repeated(fetch("SELECT body FROM large"))
copy_out = repeated(fetch("COPY large (body) TO STDOUT"))
# Parsed and dropped: what it would cost to store is not the poolers' matter.
copy_in = repeated(deliver("COPY sink FROM STDIN WHERE body IS NULL"))
