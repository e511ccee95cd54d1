"""What Datadog's PgBouncer check asks the console, in its way: psycopg2, autocommit, rows by column name.

See README.md beside this folder for the parameters.
"""

import os
import re

import psycopg2
import psycopg2.extras
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT
from settings import expect, fail, ok

# The check's metrics by SHOW command.
NUMBERS = {
    "STATS": ["total_xact_count", "total_query_count", "total_received", "total_sent", "total_xact_time",
              "total_query_time", "total_wait_time", "avg_xact_count", "avg_query_count", "avg_recv", "avg_sent",
              "avg_xact_time", "avg_query_time", "avg_wait_time"],
    "POOLS": ["cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login", "maxwait",
              "maxwait_us"],
    "DATABASES": ["pool_size", "max_connections", "current_connections"],
}
LABELS = {"STATS": ["database"], "POOLS": ["database", "user"], "DATABASES": ["name"]}
STATES = {"CLIENTS": ["database", "user", "state"], "SERVERS": ["database", "user", "state"]}


def answered(cursor, show):
    cursor.execute(f"SHOW {show}")
    return cursor.fetchall()


def main():
    env = os.environ
    connection = psycopg2.connect(host="localhost", port=env["PGT_PORT"], user=env["PGT_USER"],
                                  password=env["PGT_PASSWORD"], dbname="pgbouncer", sslmode="verify-full",
                                  sslrootcert=env["PGT_CA"], connect_timeout=10)
    connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
    with connection.cursor(cursor_factory=psycopg2.extras.DictCursor) as cursor:
        for show, columns in NUMBERS.items():
            rows = answered(cursor, show)
            expect(f"{show}: rows", bool(rows), True)
            for row in rows:
                [float(row[column]) for column in columns]
                [str(row[column]) for column in LABELS[show]]
            ok(show.lower())
        for show, columns in STATES.items():
            for row in answered(cursor, show):
                [str(row[column]) for column in columns]
            ok(show.lower())
        [(row["key"], row["value"]) for row in answered(cursor, "CONFIG")]
        ok("config")
        version = answered(cursor, "VERSION")[0][0]
        expect("version", bool(re.search(r"\d+\.\d+\.\d+", version)), True)
        ok("version")
    connection.close()


try:
    main()
except Exception as error:
    fail("console", error)
