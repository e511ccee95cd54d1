"""Django's own tests that have to do with the database, from its source distribution, on psycopg."""

import os

import compare
import pypi

NAME = "django"
LABELS = """aggregation aggregation_regress annotations async backends bulk_create cache composite_pk constraints
custom_pk datetimes db_functions db_utils delete distinct_on_fields expressions expressions_case expressions_window
filtered_relation fixtures from_db_value get_or_create indexes inspectdb introspection lookup m2m_through many_to_many
migrations model_fields multiple_database nested_foreign_keys order_with_respect_to postgres_tests prefetch_related
queries raw_query schema select_for_update select_related serializers sessions_tests test_utils timezones
transaction_hooks transactions update""".split()
SECONDS = 900
# By mode: what cannot pass, and why.
EXCUSED = {}


def play(stage, way):
    folder = os.path.join(pypi.source("django"), "tests")
    command = ["runtests.py", "--settings=django_settings", "--noinput", "--parallel=1", *LABELS]
    return pypi.run(stage, way, NAME, command, SECONDS, folder)


def run(chosen):
    return compare.differences(compare.Suite(NAME, [*pypi.inputs(), LABELS], play, excused=EXCUSED), chosen)
