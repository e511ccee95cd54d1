"""asyncpg's own tests, from its source distribution.

Those that start clusters of their own (TLS, pg_hba.conf) skip themselves where PGHOST names a running one.
"""

import os
import shutil

import compare
import pypi
import scene

NAME = "asyncpg"
LEFT_OUT = [
    # They need a standby, and start one.
    "TestConnectionAttributes",
    # An error has to come before the client has written all of 128 parts: directly, too, it often has written 122.
    "test_executemany_server_failure_during_writes",
]
SECONDS = 300
PID = "the process that BackendKeyData names is the proxy's, in transaction mode a session has none of its own"
# By mode: what cannot pass, and why.
EXCUSED = {"transaction": {f"tests/test_{test}": reason for test, reason in {
    "listeners.py::TestListeners::test_listen_01": PID,
    "listeners.py::TestListeners::test_listen_02": PID,
    "listeners.py::TestListeners::test_listen_notletters": PID,
    "pool.py::TestPool::test_pool_min_size_restored_after_idle_connection_loss": PID,
    "pool.py::TestPool::test_pool_remote_close":
        "the process that pg_backend_pid() named serves another session by now: the one that ends it",
    "prepare.py::TestPrepare::test_prepare_explicitly_named":
        "EXECUTE in SQL of a statement prepared by the protocol, which has another name on the backend",
}.items()}}


def play(stage, way):
    # Alone, so that `import asyncpg` finds the installed one and not the sources without the compiled parts.
    folder = stage.subfolder("asyncpg")
    shutil.copytree(os.path.join(pypi.source("asyncpg"), "tests"), os.path.join(folder, "tests"))
    # asyncpg knows no PGOPTIONS. Some tests want their database to be postgres.
    user = scene.ROLE if way == "direct" else f"{scene.ROLE}.{scene.TENANT}"
    chosen = ["-k", " and ".join(f"not {name}" for name in LEFT_OUT)]
    return pypi.pytest(stage, way, NAME, ["tests", *chosen], SECONDS, folder, PGUSER=user, PGDATABASE="postgres")


def run(chosen):
    return compare.differences(compare.Suite(NAME, [*pypi.inputs(), LEFT_OUT], play, excused=EXCUSED), chosen)
