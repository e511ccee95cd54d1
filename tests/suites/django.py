"""Django's own tests that have to do with sessions of the database, from its source distribution, on psycopg."""

import os

import compare
import pypi

NAME = "django"
LABELS = """aggregation backends bulk_create constraints distinct_on_fields fixtures get_or_create indexes introspection
migrations.test_base migrations.test_commands migrations.test_executor multiple_database postgres_tests queries
raw_query schema select_for_update sessions_tests.tests.DatabaseSessionTests timezones transaction_hooks transactions
update""".split()
SECONDS = 1200
# By mode: what cannot pass, and why.
EXCUSED = {}


def play(stage, way):
    folder = os.path.join(pypi.source("django"), "tests")
    command = ["runtests.py", "--settings=django_settings", "--noinput", "--parallel=1", *LABELS]
    return pypi.run(stage, way, NAME, command, SECONDS, folder)


def run(chosen):
    return compare.differences(compare.Suite(NAME, [*pypi.inputs(), LABELS], play, excused=EXCUSED), chosen)
