"""SQLAlchemy's own tests that have to do with sessions and statements, from its source distribution, on psycopg."""

import compare
import pypi
import scene

NAME = "sqlalchemy"
PATHS = [f"test/{path}.py" for path in """dialect/postgresql/test_dialect dialect/postgresql/test_on_conflict
dialect/postgresql/test_query dialect/postgresql/test_reflection dialect/test_suite engine/test_ddlevents
engine/test_execute engine/test_reconnect engine/test_reflection engine/test_transaction orm/test_lockmode
orm/test_naturalpks orm/test_session orm/test_transaction orm/test_unitofwork orm/test_unitofworkv2 orm/test_versioning
sql/test_defaults sql/test_identity_column sql/test_insert_exec sql/test_query sql/test_resultset sql/test_returning
sql/test_sequences sql/test_types""".split()]
# What runs the same few statements on very many types and combinations.
CHOSEN = " and ".join(f"not {name}" for name in ["IMVSentinelTest", "JSONTest", "BizarroCharacterTest"])
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
