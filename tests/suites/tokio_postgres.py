"""tokio-postgres' own tests, from its crate, which Cargo.lock names as one of ours.

Their connection strings say port 5433 and, for most, a superuser `postgres` without a password. The port is forwarded
to wherever the run is to go; a password and the database's name are put in, because pgtenant trusts nobody and finds
the tenant by the database here.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading

import compare
import scene

NAME = "tokio_postgres"
PORT = 5433
FEATURES = ["array-impls", "with-chrono-0_4", "with-serde_json-1", "with-time-0_3", "with-uuid-1"]
# Each test has many connections one after the other; too many at once meet the limits on logins.
THREADS = 4
SECONDS = 120
PROXY = f'[routing.databases]\npostgres = "{scene.TENANT}"\n'
# By mode: what cannot pass, and why.
EXCUSED = {}


def crate():
    """Its version, and the folder that cargo keeps it in."""
    said = subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked"], check=True, capture_output=True,
                          cwd=scene.ROOT).stdout
    found = next(package for package in json.loads(said)["packages"] if package["name"] == "tokio-postgres")
    return found["version"], os.path.dirname(found["manifest_path"])


def program():
    """The compiled tests."""
    version, folder = crate()
    ours = scene.kept("sources", f"tokio-postgres-{version}")
    if not os.path.exists(ours):
        loading = f"{ours}.loading"
        shutil.rmtree(loading, ignore_errors=True)
        shutil.copytree(folder, loading)
        for path, _, names in os.walk(os.path.join(loading, "tests")):
            for name in names:
                rewrite(os.path.join(path, name))
        with open(os.path.join(loading, "Cargo.toml"), "a") as file:
            file.write("\n[workspace]\n")
        os.rename(loading, ours)
    said = subprocess.run(
        ["cargo", "test", "--quiet", "--locked", "--no-run", "--test", "test", "--message-format", "json",
         "--target-dir", scene.kept("cargo", "target"), "--features", ",".join(FEATURES)],
        check=True, stdout=subprocess.PIPE, cwd=ours, preexec_fn=lambda: os.nice(10)).stdout
    messages = [json.loads(line) for line in said.splitlines()]
    return next(message["executable"] for message in messages if message.get("executable"))


def rewrite(path):
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(re.sub(r"\buser=postgres\b", "user=postgres password=postgres dbname=postgres", text))


def prepare(stage):
    """As the project's own docker/sql_setup.sh does; what that says of pg_hba.conf makes no difference to a test."""
    roles = [f"CREATE ROLE {name} LOGIN PASSWORD 'password'" for name in ("pass_user", "md5_user", "scram_user")]
    stage.sql(*roles, "CREATE ROLE postgres LOGIN SUPERUSER PASSWORD 'postgres'")
    for database in ("postgres", "suite"):
        stage.sql(*[f"CREATE EXTENSION {name}" for name in ("hstore", "citext", "ltree")], database=database)


def copy(source, target):
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One side is gone: the other has to notice.
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def forwarded(port):
    """Connections to PORT go to this one meanwhile."""
    try:
        listening = socket.create_server(("127.0.0.1", PORT))
    except OSError as problem:
        raise SystemExit(f"suites: tokio-postgres' tests need port {PORT}: {problem}") from None

    def accept():
        # Ends when the socket is shut down.
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for ends in ((client, server), (server, client)):
                    ends[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=copy, args=ends, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def play(stage, way):
    output, path = scene.kept(NAME, f"{way}.out"), scene.kept(NAME, f"{way}.outcomes")
    with forwarded(stage.ports[way]):
        stage.run(way, [program(), f"--test-threads={THREADS}"], SECONDS, output, RUST_BACKTRACE="0")
    with open(output, errors="replace") as said, open(path, "w") as file:
        for test, outcome in re.findall(r"^test (\S+) \.\.\. (ok|FAILED|ignored)", said.read(), re.MULTILINE):
            print(json.dumps([test, {"ok": "passed", "FAILED": "failed", "ignored": "skipped"}[outcome]]), file=file)
    return path


def run(chosen):
    inputs = [crate()[0], FEATURES, THREADS]
    suite = compare.Suite(NAME, inputs, play, prepare=prepare, proxy=PROXY, excused=EXCUSED)
    return compare.differences(suite, chosen)
