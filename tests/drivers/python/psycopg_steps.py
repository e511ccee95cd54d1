"""psycopg 3 (libpq): every step over one route."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg

from settings import (CANCEL_WITHIN, CONNECTIONS, EXECUTIONS, PREPARED, Settings, checksum, copy_lines, expect, fail,
                      ok)

settings = Settings("psycopg")


def connect():
    return psycopg.connect(
        host=settings.server, hostaddr=settings.hostaddr, port=settings.port, user=settings.login,
        password=settings.password, dbname=settings.database, options=settings.options, sslmode="verify-full",
        sslrootcert=settings.ca, connect_timeout=10, autocommit=True, prepare_threshold=0)


def login():
    with connect() as conn:
        expect("SELECT 1", conn.execute("SELECT 1").fetchone(), (1,))
        expect("TLS", conn.pgconn.ssl_in_use, True)


def marker():
    with connect() as conn:
        expect("marker", conn.execute("SELECT tenant FROM marker").fetchall(), [(settings.tenant,)])


def prepared():
    together = threading.Barrier(CONNECTIONS)

    def one(number):
        with connect() as conn:
            together.wait(timeout=30)
            for n in range(EXECUTIONS):
                value, echo = number * 1000 + n, f"c{number}-{n}"
                row = conn.execute(PREPARED.format("%s", "%s"), (value, echo)).fetchone()
                expect("prepared statement", row, (settings.tenant, value + 1, echo))

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(one, range(CONNECTIONS)))


def copy():
    lines, table = copy_lines(), settings.table
    with connect() as conn:
        conn.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, text text)")
        try:
            with conn.cursor().copy(f"COPY {table} FROM STDIN") as into:
                for line in lines:
                    into.write(line)
            with conn.cursor().copy(f"COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT") as out:
                expect("checksum", checksum(out), checksum(lines))
        finally:
            conn.execute(f"DROP TABLE {table}")


def cancel():
    with connect() as conn:
        # libpq's two ways: over a plain connection (PQcancel), and encrypted like the session (PQcancelStart).
        for way in (conn.cancel, conn.cancel_safe):
            timer = threading.Timer(0.5, way)
            started = time.monotonic()
            timer.start()
            try:
                conn.execute("SELECT pg_sleep(30)")
                raise AssertionError(f"{way.__name__}: the query was not cancelled")
            except psycopg.errors.QueryCanceled as error:
                expect("SQLSTATE", error.sqlstate, "57014")
            finally:
                timer.join()
            expect(f"{way.__name__} in time", time.monotonic() - started < CANCEL_WITHIN, True)
            expect("after the cancel", conn.execute("SELECT 2").fetchone(), (2,))


def transaction_error():
    with connect() as conn:
        conn.execute("BEGIN")
        for statement, wanted in (("SELECT 1/0", "22012"), ("SELECT 1", "25P02")):
            try:
                conn.execute(statement)
                raise AssertionError(f"{statement}: no error")
            except psycopg.Error as error:
                expect(statement, error.sqlstate, wanted)
        conn.execute("ROLLBACK")
        expect("after ROLLBACK", conn.execute("SELECT 3").fetchone(), (3,))


for name, step in (("login", login), ("marker", marker), ("prepared", prepared), ("copy", copy), ("cancel", cancel),
                   ("transaction-error", transaction_error)):
    try:
        step()
    except Exception as error:
        fail(name, error)
    ok(name)
