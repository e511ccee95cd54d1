"""psycopg 3 (libpq): each quota hit once, what the driver makes of it, and work afterwards.

PGT_QUOTAS has one line for each quota: its name, user, password and database of a tenant with that quota.
"""

import os
import time

import psycopg

from settings import expect, fail, ok

TENANTS = {line.split()[0]: line.split()[1:] for line in os.environ["PGT_QUOTAS"].splitlines()}
LARGE = "SELECT repeat('x', 1000) FROM generate_series(1, 3000)"


def connect(quota, autocommit=True):
    user, password, database = TENANTS[quota]
    return psycopg.connect(host="127.0.0.1", port=os.environ["PGT_PORT"], user=user, password=password,
                           dbname=database, sslmode="disable", connect_timeout=10, autocommit=autocommit)


def works(conn):
    expect("the connection is used again", conn.execute("SELECT 1").fetchone(), (1,))


def refused(quota, conn, query="SELECT 1", error=psycopg.errors.ConfigurationLimitExceeded):
    try:
        conn.execute(query)
    except error as refusal:
        print(f"# {quota}: {type(refusal).__name__} {refusal.sqlstate}: {refusal.diag.message_primary}; "
              f"{refusal.diag.message_detail} {refusal.diag.message_hint or ''}")
        expect("it names the quota", quota in refusal.diag.message_detail, True)
        return refusal
    raise AssertionError(f"{query}: no error")


def until_it_works(conn):
    deadline = time.monotonic() + 15
    while True:
        try:
            return works(conn)
        except psycopg.errors.ConfigurationLimitExceeded:
            expect("in time", time.monotonic() < deadline, True)
            time.sleep(0.3)


def max_clients(quota):
    with connect(quota) as first:
        try:
            connect(quota)
            raise AssertionError("a second client got in")
        except psycopg.OperationalError as refusal:
            expect("message", "too many clients of this tenant already" in str(refusal), True)
        works(first)


def max_transactions(quota):
    with connect(quota, autocommit=False) as busy, connect(quota) as other:
        works(busy)
        refused(quota, other)
        busy.commit()
        works(other)


def transactions_per_second(quota):
    with connect(quota) as conn:
        works(conn)
        for _ in range(50):
            try:
                conn.execute("SELECT 1")
            except psycopg.errors.ConfigurationLimitExceeded:
                break
        refused(quota, conn)
        until_it_works(conn)


def bytes_per_second(quota):
    with connect(quota) as conn:
        expect("rows", len(conn.execute(LARGE).fetchall()), 3000)
        refused(quota, conn)
        until_it_works(conn)


def backend_seconds_per_minute(quota):
    with connect(quota) as conn:
        conn.execute("SELECT pg_sleep(1.05)")
        refused(quota, conn)
        until_it_works(conn)


def max_result(quota):
    with connect(quota) as conn:
        refused(quota, conn, LARGE)
        works(conn)
        try:
            for _ in conn.cursor().stream(LARGE):
                pass
            raise AssertionError("all rows came")
        except psycopg.errors.ConfigurationLimitExceeded:
            works(conn)
        try:
            with conn.cursor().copy(f"COPY ({LARGE}) TO STDOUT") as rows:
                for _ in rows:
                    pass
            raise AssertionError("all lines came")
        except psycopg.errors.ConfigurationLimitExceeded:
            works(conn)
        conn.execute("BEGIN")
        refused(quota, conn, LARGE)
        expect("status", conn.info.transaction_status, psycopg.pq.TransactionStatus.INERROR)
        conn.execute("ROLLBACK")
        works(conn)


def query_timeout(quota):
    with connect(quota) as conn:
        refused(quota, conn, "SELECT pg_sleep(30)", psycopg.errors.QueryCanceled)
        works(conn)


def ends(quota, conn, sqlstate, query="SELECT 1"):
    """The session ends: the driver says so, and a new connection works."""
    try:
        conn.execute(query)
        raise AssertionError("the connection lives")
    except psycopg.Error as error:
        print(f"# {quota}: {type(error).__name__} {error.sqlstate}: {str(error).splitlines()[0]}")
        expect("SQLSTATE", error.sqlstate, sqlstate)
    expect("closed", conn.closed, True)
    with connect(quota) as again:
        works(again)


def transaction_timeout(quota):
    with connect(quota) as conn:
        conn.execute("BEGIN")
        ends(quota, conn, "25P04", "SELECT pg_sleep(30)")


def idle_in_transaction_timeout(quota):
    with connect(quota) as conn:
        conn.execute("BEGIN")
        works(conn)
        time.sleep(1)
        ends(quota, conn, "25P03")


def idle_session_timeout(quota):
    with connect(quota) as conn:
        works(conn)
        time.sleep(1)
        ends(quota, conn, "57P05")


for quota in TENANTS:
    try:
        globals()[quota](quota)
    except Exception as error:
        fail(quota, error)
    ok(quota)
