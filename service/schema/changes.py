"""Creates the tables in a new database, and upgrades those of an older version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import asyncpg

from service import pooling
from service.database import Connection
from service.dependencies.versions import require_postgres
from service.schema.applied import SchemaTooNew, find_schema_version, record_version, require_current
from service.schema.definition import Schema, Step

Report: TypeAlias = Callable[[str], None]

# Not the lock of the versions before the steps. They wait for theirs inside a statement, and creating an index
# concurrently waits for all statements that run beside it.
_LOCK = 0xDA60E88F
_LOCK_POLL_S = 0.2
# A statement that waits for a table, e.g. behind a vacuum, makes all later ones wait behind it. So it gives up soon.
_TABLE_LOCK_TIMEOUT_S = 2
_ATTEMPTS = 20
_RETRY_S = 3
_IN_USE = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)


def _ignore(_: str) -> None:
    pass


async def create_schema(url: str, *, patience_s: float = 0, schema: Schema | None = None) -> int:
    """Creates the tables if the database has none. Several processes may do so at once. Returns their version.

    `patience_s` is how long it waits for a server that is not reachable yet. `schema` is by default this version's.
    Raises SchemaMismatch if the tables are of another version, and SettingsError for a server that is too old.
    """
    schema = schema or Schema.load()
    async with _connect(url, patience_s) as connection:
        require_current(await _find_or_create(connection, schema, _ignore), schema)
    return schema.version


async def upgrade_schema(
    url: str, *, patience_s: float = 0, report: Report = _ignore, schema: Schema | None = None
) -> int:
    """Brings the tables to the version of `schema`, or creates them. Returns the version.

    Processes of the version before may be running. An interrupted upgrade continues with the step at which it was
    interrupted. Raises SchemaTooNew, SettingsError, and what asyncpg raises, e.g. LockNotAvailableError if a table is
    in use for a minute.
    """
    schema = schema or Schema.load()
    async with _connect(url, patience_s) as connection:
        applied = await _find_or_create(connection, schema, report)
        if applied < schema.version:
            async with _connect(url) as guard, _lock(guard, report):
                await _apply_steps(connection, schema, report)
        elif applied > schema.version:
            raise SchemaTooNew(applied, schema)
    return schema.version


async def _find_or_create(connection: Connection, schema: Schema, report: Report) -> int:
    """Returns the version of the tables, which are created if there are none."""
    if applied := await find_schema_version(connection):
        return applied
    async with _lock(connection, report):
        if applied := await find_schema_version(connection):  # another process was faster
            return applied
        await connection.execute(schema.text)
        await record_version(connection, schema.version, schema.text)
    return schema.version


async def _apply_steps(connection: Connection, schema: Schema, report: Report) -> None:
    applied = await find_schema_version(connection)  # again, because another process may have been faster
    if applied > schema.version:
        raise SchemaTooNew(applied, schema)
    for step in schema.steps_after(applied):
        report(f"Step {step}: started")
        started = time.monotonic()
        await _apply_with_retries(connection, step, report)
        report(f"Step {step}: done in {time.monotonic() - started:.1f} s")


async def _apply_with_retries(connection: Connection, step: Step, report: Report) -> None:
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            await _apply(connection, step)
        except _IN_USE:
            if not attempts_left:
                raise
        else:
            return
        report(f"Step {step}: a table is in use; tried again in {_RETRY_S} s ({attempts_left} attempts left)")
        await asyncio.sleep(_RETRY_S)


async def _apply(connection: Connection, step: Step) -> None:
    if step.concurrent_index is not None:
        await _drop_invalid(connection, step.concurrent_index)
        await connection.execute(step.text)
        await record_version(connection, step.version, step.text)
        return
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(
            f"set local lock_timeout = '{_TABLE_LOCK_TIMEOUT_S}s'; set local statement_timeout = 0"
        )
        await connection.execute(step.text)
        await record_version(connection, step.version, step.text)


_INVALID = "select exists (select from pg_index where indexrelid = to_regclass($1) and not indisvalid)"


async def _drop_invalid(connection: Connection, index: str) -> None:
    """Drops what an interrupted `create index concurrently` leaves, which `if not exists` would take for the index."""
    if await connection.fetchval(_INVALID, index):
        await connection.execute(f"drop index concurrently {index}")


@asynccontextmanager
async def _lock(connection: Connection, report: Report) -> AsyncIterator[None]:
    """Lets one process at a time change the tables: holds a lock in a transaction of `connection` during the block.

    The transaction may be idle for long. A lock of a session instead would not work behind PgBouncer. The lock is
    polled, each time in a new transaction, because creating an index concurrently waits for all older transactions and
    statements.
    """
    is_reported = False
    while True:
        async with connection.transaction(isolation="read_committed"):
            if await connection.fetchval("select pg_try_advisory_xact_lock($1)", _LOCK):
                # It must come last: the portal of asyncpg's query holds a snapshot until the next statement, which
                # creating an index would wait for as well.
                await connection.execute("set local idle_in_transaction_session_timeout = 0")
                yield
                return
        if not is_reported:
            report("Another process is changing the tables: waiting for it")
            is_reported = True
        await asyncio.sleep(_LOCK_POLL_S)


@asynccontextmanager
async def _connect(url: str, patience_s: float = 0) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Retries for `patience_s` while the server is not reachable or still starting. Raises SettingsError."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            connection = await pooling.connect(url, timeout=10)
            break
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(0.5)
    try:
        require_postgres(connection)
        yield connection
    finally:
        await connection.close()
