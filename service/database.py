"""The connection pool, and the schema."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.dependencies.outages import DATABASE
from service.dependencies.versions import require_postgres
from service.errors import ServiceError

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

_ACQUIRE_TIMEOUT_S = 2
# Of a statement for a client. A server that vanished without a word is noticed by it.
_COMMAND_TIMEOUT_S = 5
_SCHEMA = Path(__file__).with_name("schema.sql")  # a link to the one at the top of the repository
_VERSION = re.compile(r"-- version: (?P<version>[1-9][0-9]*)\n")
_TABLE = re.compile(r"^create table if not exists (\w+)", re.MULTILINE)
_SCHEMA_LOCK = 0xDA60E88E
_SCHEMA_LOCK_TIMEOUT_S = 2
_SCHEMA_TRIES = 20
_SCHEMA_PAUSE_S = 3

# Of a database that is not set up yet, or for another version.
SETUP_ERRORS = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
)

# What asyncpg raises where the server is away, starting, stopping, full, or chose this transaction to end a deadlock:
# the same statement may work a moment later.
_UNAVAILABLE = (
    OSError,  # TimeoutError is one
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    *SETUP_ERRORS,
)

# Of those, what the server itself says of a statement, or of a connection, before any commit.
_UNCHANGED = (
    asyncpg.DeadlockDetectedError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    *SETUP_ERRORS,
)


def changed_nothing(error: ServiceError) -> bool:
    """Whether this `database-unavailable` is known to have come before the commit; of others it is unknown."""
    return isinstance(error.__cause__, _UNCHANGED)


def is_of_server(error: Exception) -> bool:
    """Whether the next statement would fail as well: the server is away, full or read-only."""
    is_of_statement = isinstance(error, OSError | asyncpg.TransactionRollbackError | asyncpg.QueryCanceledError)
    return isinstance(error, _UNAVAILABLE) and not is_of_statement


# Every statement here finds its rows along an index, and searches need them in its order, whatever the values are. So a
# plan is made once: to plan each call anew takes longer than most of them run. And it is the right one before the first
# ANALYZE too, when the planner, left alone, would read a small table as a whole or sort a bitmap of all that match.
_PLANNING = """
set plan_cache_mode = force_generic_plan;
set enable_seqscan = off;
set enable_bitmapscan = off;
set jit = off
"""


async def _set_planning(connection: Connection) -> None:
    await connection.execute(_PLANNING)


async def _keep_session(_: Connection) -> None:
    """A session stays as it starts, so asyncpg's reset, a round trip at every release, has nothing to do."""


class Database:
    """A pool that answers the API's `database-unavailable` instead of a dozen exceptions."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, connections: int, command_timeout_s: float = _COMMAND_TIMEOUT_S
    ) -> AsyncIterator[Database]:
        pool = await asyncpg.create_pool(
            url,
            min_size=0,  # a database that is away at the start is no reason to end: /readyz tells
            max_size=connections,
            command_timeout=command_timeout_s,
            timeout=_ACQUIRE_TIMEOUT_S,
            init=_set_planning,
            reset=_keep_session,
            server_settings={"application_name": "daguerre"},
        )
        try:
            yield cls(pool)
        finally:
            try:
                await asyncio.wait_for(pool.close(), timeout=5)
            except OSError:  # a time-out is one, and so is a connection that the server has just ended
                pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Hold one only around queries, never while waiting for a client or a job."""
        is_connected = False
        try:
            async with self._pool.acquire(timeout=_ACQUIRE_TIMEOUT_S) as connection:
                is_connected = True
                try:
                    yield connection
                except asyncpg.InternalClientError:
                    connection.terminate()  # confused by a server that ended it: not for the next one
                    raise
        except _UNAVAILABLE as error:
            if not isinstance(error, asyncpg.TransactionRollbackError):  # of two transactions, not of the server
                DATABASE.report(error)
            raise ServiceError("database-unavailable") from error
        except asyncpg.PostgresError as error:
            if is_connected:
                raise
            DATABASE.report(error)  # whatever it is that lets nobody in
            raise ServiceError("database-unavailable") from error


async def _connect(url: str, patience_s: float) -> asyncpg.Connection[asyncpg.Record]:
    """Try again while no server is there yet, or one that is still starting."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return await asyncpg.connect(url, timeout=10)
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(0.5)


class SchemaNewer(Exception):
    """The tables are those of a later version of Daguerre; the message says what to do, to the operator."""

    def __init__(self, applied: int, known: int) -> None:
        super().__init__(
            f"The database has tables of a newer Daguerre (schema {applied}; this one knows {known}): start the newer "
            "one again, or restore a backup of the database from before it was upgraded."
        )


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of this version of Daguerre, as `schema.sql` has them."""

    text: str
    version: int

    @classmethod
    def load(cls) -> Schema:
        text = _SCHEMA.read_text()
        match = _VERSION.match(text)
        assert match is not None  # noqa: S101 - the first line has it
        return cls(text, int(match["version"]))

    @property
    def tables(self) -> list[str]:
        return _TABLE.findall(self.text)

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.text.encode()).digest()


async def apply_schema(url: str, *, patience_s: float = 0) -> None:
    """Create or update the tables, unless that is done; safe to run from several processes at once, and again.

    `patience_s` is how long a server that is not there yet is waited for. Raises SchemaNewer, and SettingsError for a
    server that is too old.
    """
    schema = Schema.load()
    connection = await _connect(url, patience_s)
    try:
        require_postgres(connection)
        for tries_left in reversed(range(_SCHEMA_TRIES)):
            try:
                return await _apply_once(connection, schema)
            except asyncpg.LockNotAvailableError:
                if not tries_left:
                    raise
            await asyncio.sleep(_SCHEMA_PAUSE_S)
    finally:
        await connection.close()


async def _apply_once(connection: asyncpg.Connection[asyncpg.Record], schema: Schema) -> None:
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", _SCHEMA_LOCK)
        applied = await find_schema_version(connection)
        if applied == schema.version:
            return
        if applied > schema.version:
            raise SchemaNewer(applied, schema.version)
        # What waits for a table, behind a vacuum perhaps, makes all others wait behind it: only for a moment.
        await connection.execute(f"set local lock_timeout = '{_SCHEMA_LOCK_TIMEOUT_S}s'")
        await connection.execute(schema.text)
        await connection.execute("delete from applied_schema")
        await connection.execute(
            "insert into applied_schema (digest, version) values ($1, $2)", schema.digest, schema.version
        )


# The first version's table has no such column.
_APPLIED = "select max(coalesce((to_jsonb(applied_schema) ->> 'version')::integer, 1)) from applied_schema"


async def find_schema_version(connection: Connection) -> int:
    """Returns the version of the tables, or 0 if there are none."""
    if await connection.fetchval("select to_regclass('applied_schema')") is None:
        return 0
    return int(await connection.fetchval(_APPLIED) or 0)
