#!/usr/bin/env python3
"""Records what pgbench and PostgreSQL say to each other, as conversation.rs beside this file.

Needed again only when the conversation itself shall change: `python3 -B benches/instructions/record.py`.
"""

import os
import select
import socket
import subprocess
import sys
import threading

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "../load"))
import servers  # noqa: E402

READY = b"Z\x00\x00\x00\x05"
# Name, arguments of pgbench; with one client, and a seed so that it asks for the same rows again.
CONVERSATIONS = (
    ("SIMPLE", ["-S", "-M", "simple", "-t", "4"]),
    ("EXTENDED", ["-S", "-M", "extended", "-t", "4"]),
    ("PREPARED", ["-S", "-M", "prepared", "-t", "4"]),
    ("TPCB", ["-M", "simple", "-t", "2"]),
    ("PIPELINE", ["-M", "extended", "-f", "../load/pipeline.sql", "-t", "2"]),
)
# What it asks before it starts.
PGBENCHS_OWN = (b"pg_catalog", b"count(*)")
HEAD = '''//! What pgbench and PostgreSQL said to each other after the login; written by record.py.

/// One exchange: a request, and all of its answer.
pub type Exchange = (&'static [u8], &'static [u8]);
'''


def tap(listening, postgres_port, exchanges):
    """Passes one connection on, and notes what was said from the first ReadyForQuery on."""
    client = listening.accept()[0]
    backend = socket.create_connection(("127.0.0.1", postgres_port))
    other = {client: backend, backend: client}
    logged_in, request, answer = False, b"", b""
    while True:
        for ready in select.select([client, backend], [], [])[0]:
            data = ready.recv(1 << 16)
            if not data:
                return
            other[ready].sendall(data)
            if not logged_in:
                logged_in = ready is backend and data[-6:-1] == READY
            elif ready is client:
                request += data
            else:
                answer += data
                if answer[-6:-1] == READY:
                    exchanges.append((request, answer))
                    request, answer = b"", b""


def literal(data):
    return 'b"' + "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}"
                          for byte in data) + '"'


def recorded(scene, arguments):
    exchanges = []
    with socket.create_server(("127.0.0.1", servers.throwaway.free_port())) as listening:
        # One connection for pgbench's own questions, one for the script.
        target = servers.Target("tap", None, listening.getsockname()[1])
        taps = [threading.Thread(target=tap, args=(listening, scene.postgres.port, exchanges), daemon=True)
                for _ in range(2)]
        for one in taps:
            one.start()
        subprocess.run([f"{scene.programs}/pgbench", "-n", "-c", "1", "--random-seed=1", *arguments], cwd=HERE,
                       check=True, capture_output=True, env=target.environment(False, ""))
        for one in taps:
            one.join(5)
    return exchanges


def main():
    scene = servers.Scene(servers.throwaway.postgres_programs(), 1)
    try:
        scene.start(1)
        with open(os.path.join(HERE, "conversation.rs"), "w") as file:
            file.write(HEAD)
            for name, arguments in CONVERSATIONS:
                said = [pair for pair in recorded(scene, arguments) if not any(own in pair[0] for own in PGBENCHS_OWN)]
                file.write(f"\n#[rustfmt::skip]\npub const {name}: &[Exchange] = &[\n")
                for request, answer in said:
                    file.write(f"    ({literal(request)},\n     {literal(answer)}),\n")
                file.write("];\n")
    finally:
        scene.end()


main()
