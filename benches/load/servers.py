"""The throwaway PostgreSQL that all of a run shares, and the certificate, tables and tenants in front of it."""

import base64
import hashlib
import hmac
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../scripts"))
import throwaway

ROLE, DATABASE, PASSWORD = "bench", "bench", "bench-password"
# Ten thousand rows of a thousand bytes: what a 10 MB result or COPY carries.
LARGE_ROWS, LARGE_WIDTH = 10_000, 1_000
TABLES = f"""
CREATE TABLE large (id int PRIMARY KEY, body text NOT NULL);
ALTER TABLE large ALTER body SET STORAGE PLAIN;
INSERT INTO large SELECT n, repeat('x', {LARGE_WIDTH}) FROM generate_series(1, {LARGE_ROWS}) n;
CREATE UNLOGGED TABLE sink (body text);
VACUUM ANALYZE large;
"""
SETTINGS = {"shared_buffers": "256MB", "autovacuum": "off", "max_connections": "300", "checkpoint_timeout": "1h",
            "max_wal_size": "8GB", "log_min_messages": "fatal", "log_checkpoints": "off"}


class Failed(Exception):
    """A target did not do its part of a scenario; the others go on."""


def environment(port, database=DATABASE, encrypted=False, options=""):
    """libpq's variables for one target; nothing of the caller's own remains."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    kept.update(PGHOST="127.0.0.1", PGPORT=str(port), PGUSER=ROLE, PGPASSWORD=PASSWORD, PGDATABASE=database,
                PGSSLMODE="require" if encrypted else "disable", PGGSSENCMODE="disable", PGCONNECT_TIMEOUT="10",
                PGOPTIONS=options)
    return kept


def certificate(folder):
    """A CA-less certificate for localhost that lasts a day, as certs/default.crt and .key."""
    certs = os.path.join(folder, "certs")
    os.mkdir(certs)
    crt, key = os.path.join(certs, "default.crt"), os.path.join(certs, "default.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", crt],
        check=True, capture_output=True)
    return crt, key


def scram_verifier():
    """The password's verifier, of one iteration: 4,096 would keep a core of the load generator busy for each login.

    What a pooler has to do with a verifier does not depend on their number (RFC 5802, section 3).
    """
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt, 1)
    client, server = (hmac.digest(salted, key, "sha256") for key in (b"Client Key", b"Server Key"))
    kept = [base64.b64encode(part).decode() for part in (salt, hashlib.sha256(client).digest(), server)]
    return "SCRAM-SHA-256$1:{}${}:{}".format(*kept)


class Scene:
    """PostgreSQL with filled tables, and what the poolers' configurations refer to; `end` removes it all."""

    def __init__(self, programs, backends):
        self.programs = programs
        self.folder = tempfile.mkdtemp(prefix="pgtenant-load-")
        os.chmod(self.folder, 0o711)
        self.backends, self.running = backends, []

    def start(self, scale):
        self.certificate, self.key = certificate(self.folder)
        hba = f"host all {ROLE} 127.0.0.1/32 scram-sha-256\n"
        self.postgres, self.admin = throwaway.start_postgres(
            self.programs, self.folder, hba, SETTINGS, self.running, (self.certificate, self.key))
        self.verifier = scram_verifier()
        subprocess.run([*self.admin, "-c", f"CREATE ROLE {ROLE} LOGIN PASSWORD '{self.verifier}'",
                        "-c", f"CREATE DATABASE {DATABASE} OWNER {ROLE}"], check=True)
        ours = environment(self.postgres.port)
        subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1"], input=TABLES, text=True, check=True, env=ours)
        subprocess.run([f"{self.programs}/pgbench", "-i", "-q", "-s", str(scale)], check=True, capture_output=True,
                       env=ours)

    def create_databases(self, names):
        """Empty ones: each tenant has its own, but only those that are asked for need to exist."""
        made = "".join(f"CREATE DATABASE {name} TEMPLATE template0;\n" for name in names)
        subprocess.run(self.admin, input=made, text=True, check=True)

    @contextmanager
    def fresh(self, pooler, tenants, backends):
        """The pooler started anew, as a target; ended and forgotten afterwards."""
        own = tempfile.mkdtemp(prefix=f"{pooler.name}-", dir=self.folder)
        os.chmod(own, 0o711)
        running = []
        try:
            yield pooler.start(self, own, tenants, backends, running)
        finally:
            for server, ending in reversed(running):
                server.end(ending)
            shutil.rmtree(own, ignore_errors=True)

    def end(self):
        for server, ending in reversed(self.running):
            server.end(ending)
        shutil.rmtree(self.folder, ignore_errors=True)


class Target:
    """Where a load goes: `server` is the pooler's process, or None for PostgreSQL itself."""

    def __init__(self, name, server, port, by_option=False):
        self.name, self.server, self.port, self.by_option = name, server, port, by_option

    def login(self, tenant=DATABASE):
        """(database, options) that lead to the tenant: pgtenant's by option, too, other poolers' by database."""
        return tenant, f"-c tenant={tenant}" if self.by_option else ""

    def environment(self, encrypted, parameters):
        database, options = self.login()
        return environment(self.port, database, encrypted, f"{options} {parameters}".strip())


class Load:
    """Clients that are ready: `go` has them work for some seconds and returns figures.

    Where they log in at each `go`, `come` has them log in for a transaction each, so that the rest can be told apart.
    """

    def __init__(self, go, come=None):
        self.go, self.come = go, come


class Pooler:
    """What can be started in front of PostgreSQL; `start` returns a Target."""

    def __init__(self, name):
        self.name = name

    def adapted(self, scenario):
        """The scenario as this pooler can take it."""
        return scenario

    def about(self):
        """Version and whatever a reader of the figures has to know."""
        return self.name


class Direct(Pooler):
    """PostgreSQL without a pooler: a backend for each client."""

    def __init__(self, programs):
        super().__init__("direct")
        self.programs = programs

    def about(self):
        return subprocess.run([f"{self.programs}/postgres", "--version"], capture_output=True, text=True).stdout.strip()

    def start(self, scene, _folder, _tenants, _backends, _running):
        return Target(self.name, None, scene.postgres.port)
