"""SQLAlchemy's own tests that depend on the database, from its source distribution, on psycopg."""

import compare
import pypi
import scene

NAME = "sqlalchemy"
PATHS = ["test/dialect/postgresql", "test/dialect/test_suite.py", "test/engine", "test/sql", "test/orm"]
# Eight classes run the same 1,200 tests on as many types of ranges: one of them will do.
CHOSEN = "not RangeRoundTrip or Int4RangeRoundTrip"
SECONDS = 900
# By mode: what cannot pass, and why.
EXCUSED = {}


def prepare(stage):
    """As README.unittests.rst wants it."""
    schemas = [f"CREATE SCHEMA {name} AUTHORIZATION {scene.ROLE}" for name in ("test_schema", "test_schema_2")]
    extensions = [f"CREATE EXTENSION {name}" for name in ("hstore", "citext")]
    stage.sql(*schemas, *extensions, "ALTER DATABASE test SET default_text_search_config = 'pg_catalog.english'",
              database="test")


def play(stage, way):
    uri = f"postgresql+psycopg://{scene.ROLE}:{scene.PASSWORD}@127.0.0.1:{stage.ports[way]}/test"
    # SQLAlchemy's plugin is configured by these two, which its own addopts name.
    arguments = ["-p", "warnings", "-p", "logging", "--dburi", uri, "--backend-only", "-k", CHOSEN, *PATHS]
    return pypi.pytest(stage, way, NAME, arguments, SECONDS, pypi.source("sqlalchemy"))


def run(chosen):
    inputs = [*pypi.inputs(), PATHS, CHOSEN]
    suite = compare.Suite(NAME, inputs, play, prepare=prepare, databases=("test",), excused=EXCUSED)
    return compare.differences(suite, chosen)
