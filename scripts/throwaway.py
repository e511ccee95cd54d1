"""Throwaway PostgreSQL and pgtenant processes on free loopback ports, for the load benchmark and the foreign suites."""

import glob
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import time

START_SECONDS = 30


def free_port():
    """A free port below those that the kernel gives to clients, so that none of their connections can take it."""
    while True:
        port = random.randrange(20000, 32768)
        with socket.socket() as taken:
            try:
                taken.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def postgres_programs():
    """The folder with initdb, postgres and pgbench: $PGT_POSTGRES_BIN, or the newest of Debian's, or that of $PATH."""
    given = os.environ.get("PGT_POSTGRES_BIN")
    debian = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda path: int(path.split("/")[4]))
    found = given and os.path.join(given, "postgres") or (debian[-1] if debian else shutil.which("postgres"))
    if not found or not os.path.exists(found):
        raise SystemExit("no PostgreSQL server found; set PGT_POSTGRES_BIN to the folder of initdb")
    return os.path.dirname(os.path.realpath(found))


def unprivileged():
    """Arguments for Popen: PostgreSQL and PgBouncer refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        except KeyError:
            continue
    raise SystemExit("run as root, and there is neither a user postgres nor nobody")


def owned(path, run_as):
    if run_as:
        os.chown(path, run_as["user"], run_as["group"])


class Server:
    """One process that listens on `port` on loopback; output goes to `<name>.log` in the folder of the run."""

    def __init__(self, name, folder, command, port, **run_as):
        self.name, self.port, self.begun, self.start_seconds = name, port, time.monotonic(), None
        self.log = os.path.join(folder, f"{name}.log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, **run_as)

    def wait(self):
        """Returns once the port takes connections; `start_seconds` is then how long that took from the start.

        An end of the process or silence until the deadline ends the whole run.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                self.start_seconds = time.monotonic() - self.begun
                return
            except OSError:
                time.sleep(0.005)
        with open(self.log, errors="replace") as log:
            raise SystemExit(f"{self.name} did not start:\n{log.read()[-4000:]}")

    def resident_kb(self):
        """The largest resident set so far, VmHWM."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1))

    def end(self, ending):
        if self.process.poll() is None:
            self.process.send_signal(ending)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def started(server, ending, running):
    """Notes a server with the signal that ends it, before anything can fail, and waits for it."""
    running.append((server, ending))
    server.wait()
    return server


def start_postgres(programs, folder, hba, settings, running, tls=None, superuser="postgres"):
    """A new cluster without durability, `hba` its pg_hba.conf, `tls` a certificate and its key.

    Returns the server, and the psql command of the superuser, who comes by the Unix socket in `folder`/data.
    """
    run_as, data, port = unprivileged(), os.path.join(folder, "data"), free_port()
    os.mkdir(data, 0o700)
    owned(data, run_as)
    subprocess.run([f"{programs}/initdb", "-D", data, "-U", superuser, "-A", "trust", "-E", "UTF8", "--no-locale",
                    "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd=folder, **run_as)
    with open(os.path.join(data, "pg_hba.conf"), "w") as file:
        file.write("local all all trust\n" + hba)
    command = [f"{programs}/postgres", "-D", data, "-p", str(port), "-k", data]
    every = {"listen_addresses": "127.0.0.1", "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    if tls:
        for name, source in zip(("server.crt", "server.key"), tls):
            shutil.copy(source, os.path.join(data, name))
            os.chmod(os.path.join(data, name), 0o600)
            owned(os.path.join(data, name), run_as)
        every["ssl"] = "on"
    for name, value in {**every, **settings}.items():
        command += ["-c", f"{name}={value}"]
    # SIGINT is PostgreSQL's fast shutdown.
    server = started(Server("postgres", folder, command, port, **run_as), signal.SIGINT, running)
    admin = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", data, "-p", str(port),
             "-U", superuser, "-d", "postgres"]
    return server, admin


def verifier(admin, role):
    """The role's SCRAM verifier, as a tenant's record has it."""
    return subprocess.run([*admin, "-c", f"SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"],
                          check=True, capture_output=True, text=True).stdout.strip()


def start_pgtenant(program, folder, port, files, running):
    """`files` by name: proxy.toml, which listens on `port`, and what it refers to."""
    for name, text in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(text)
    server = Server("pgtenant", folder, [program, "serve", "--config", f"{folder}/proxy.toml"], port)
    return started(server, signal.SIGTERM, running)
