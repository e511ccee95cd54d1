"""asyncpg's own tests, from its source distribution. Those that start clusters of their own (TLS, pg_hba.conf, standbys)
skip themselves where PGHOST names a running one, or are left out here."""

import os
import shutil

import compare
import pypi
import scene

NAME = "asyncpg"
# They need a standby, and start one.
LEFT_OUT = ["TestConnectionAttributes"]
SECONDS = 300
# By mode: what cannot pass, and why.
EXCUSED = {}


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
