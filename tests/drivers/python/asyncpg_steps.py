"""asyncpg (a protocol implementation of its own): every step over one route."""

import asyncio
import io
import ssl
import time

import asyncpg

from settings import (CANCEL_WITHIN, CONNECTIONS, EXECUTIONS, PREPARED, Settings, checksum, copy_lines, expect, fail,
                      ok)

settings = Settings("asyncpg")


def resolve_localhost_names(loop):
    """asyncpg has no hostaddr: `*.localhost` is resolved to PGT_HOSTADDR here, whatever the system thinks of it."""
    ask_system = loop.getaddrinfo

    async def getaddrinfo(host, port, **how):
        local = host == "localhost" or str(host).endswith(".localhost")
        return await ask_system(settings.hostaddr if local else host, port, **how)

    loop.getaddrinfo = getaddrinfo


async def connect():
    # The default context is verify-full: chain and name are both checked, SNI is the host.
    tls = ssl.create_default_context(cafile=settings.ca)
    return await asyncpg.connect(
        host=settings.server, port=settings.port, user=settings.login, password=settings.password,
        database=settings.database, ssl=tls, timeout=10,
        server_settings={"options": settings.options} if settings.options else None)


async def login():
    conn = await connect()
    expect("SELECT 1", await conn.fetchval("SELECT 1"), 1)
    await conn.close()


async def marker():
    conn = await connect()
    expect("marker", [row["tenant"] for row in await conn.fetch("SELECT tenant FROM marker")], [settings.tenant])
    await conn.close()


async def prepared():
    async def one(number, conn):
        statement = await conn.prepare(PREPARED.format("$1", "$2"))
        for n in range(EXECUTIONS):
            value, echo = number * 1000 + n, f"c{number}-{n}"
            row = await statement.fetchrow(value, echo)
            expect("prepared statement", tuple(row), (settings.tenant, value + 1, echo))

    conns = await asyncio.gather(*(connect() for _ in range(CONNECTIONS)))
    await asyncio.gather(*(one(number, conn) for number, conn in enumerate(conns)))
    await asyncio.gather(*(conn.close() for conn in conns))


async def copy():
    lines, table = copy_lines(), settings.table
    conn = await connect()
    await conn.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, text text)")
    try:
        await conn.copy_to_table(table, source=io.BytesIO(b"".join(lines)))
        out = io.BytesIO()
        await conn.copy_from_query(f"SELECT * FROM {table} ORDER BY id", output=out)
        expect("checksum", checksum([out.getvalue()]), checksum(lines))
    finally:
        await conn.execute(f"DROP TABLE {table}")
    await conn.close()


async def cancel():
    conn = await connect()
    started = time.monotonic()
    # What applications do: a timeout, on which the driver sends a CancelRequest and swallows the 57014.
    try:
        await conn.execute("SELECT pg_sleep(30)", timeout=0.5)
        raise AssertionError("the query was not cancelled")
    except asyncio.TimeoutError:
        pass
    expect("cancel in time", time.monotonic() - started < CANCEL_WITHIN, True)
    expect("after the timeout", await conn.fetchval("SELECT 2"), 2)

    # The same request without the timeout around it, to see the error itself.
    started = time.monotonic()
    sleep = asyncio.ensure_future(conn.execute("SELECT pg_sleep(30)"))
    await asyncio.sleep(0.5)
    await conn._cancel(asyncio.get_running_loop().create_future())
    try:
        await sleep
        raise AssertionError("the query was not cancelled")
    except asyncpg.QueryCanceledError as error:
        expect("SQLSTATE", error.sqlstate, "57014")
    expect("cancel in time", time.monotonic() - started < CANCEL_WITHIN, True)
    expect("after the cancel", await conn.fetchval("SELECT 2"), 2)
    await conn.close()


async def transaction_error():
    conn = await connect()
    await conn.execute("BEGIN")
    for statement, wanted in (("SELECT 1/0", "22012"), ("SELECT 1", "25P02")):
        try:
            await conn.fetchval(statement)
            raise AssertionError(f"{statement}: no error")
        except asyncpg.PostgresError as error:
            expect(statement, error.sqlstate, wanted)
    await conn.execute("ROLLBACK")
    expect("after ROLLBACK", await conn.fetchval("SELECT 3"), 3)
    await conn.close()


async def main():
    resolve_localhost_names(asyncio.get_running_loop())
    for name, step in (("login", login), ("marker", marker), ("prepared", prepared), ("copy", copy),
                       ("cancel", cancel), ("transaction-error", transaction_error)):
        try:
            await step()
        except Exception as error:
            fail(name, error)
        ok(name)


asyncio.run(main())
