"""What both Python programs share: their parameters from the environment, the COPY data and the step lines."""

import hashlib
import os
import sys

CONNECTIONS = 8
EXECUTIONS = 20
COPY_ROWS = 10_000
# Seconds: a cancelled `pg_sleep(30)` has to come back long before it would have ended by itself.
CANCEL_WITHIN = 5
# Protocol-level prepared statement of every program: the tenant's marker, some arithmetic and an echo.
PREPARED = "SELECT tenant, {0}::int4 + 1, {1}::text FROM marker"


class Settings:
    """The parameters, see README.md beside this folder; `server`, `login` and `options` follow from the route."""

    def __init__(self, driver):
        env = os.environ
        self.hostaddr = env.get("PGT_HOSTADDR", "127.0.0.1")
        self.port = int(env["PGT_PORT"])
        self.ca = env["PGT_CA"]
        self.password = env["PGT_PASSWORD"]
        self.database = env["PGT_DATABASE"]
        self.tenant = env["PGT_TENANT"]
        self.route = env["PGT_ROUTE"]
        user = env["PGT_USER"]
        option = env.get("PGT_TENANT_OPTION", "tenant")
        self.server, self.login, self.options = {
            "sni": (env["PGT_HOST"], user, None),
            "options": ("localhost", user, f"-c {option}={self.tenant}"),
            "suffix": ("localhost", f"{user}.{self.tenant}", None),
        }[self.route]
        # Several programs run at once in one database: each has a table of its own.
        self.table = f"drv_{driver}_{self.route}_{os.getpid()}"


def copy_lines():
    """Rows in COPY's text format exactly as PostgreSQL writes it, so that what comes out can be compared as bytes."""
    lines = []
    for i in range(COPY_ROWS):
        text = r"\N" if i % 97 == 0 else rf"row {i} grüße\ttab \\ backslash"
        lines.append(f"{i}\t{text}\n".encode())
    return lines


def checksum(chunks):
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def expect(what, got, wanted):
    if got != wanted:
        raise AssertionError(f"{what}: got {got!r}, wanted {wanted!r}")


def ok(step):
    print(f"ok {step}", flush=True)


def fail(step, error):
    print(f"not ok {step}: {type(error).__name__}: {error}", flush=True)
    sys.exit(1)
