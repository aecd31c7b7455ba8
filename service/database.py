"""The connection pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.dependencies.outages import DATABASE
from service.errors import ServiceError
from service.pooling import APPLICATION_NAME, Connector, Pooler

_PoolConnection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | _PoolConnection"

# The maximum time to wait for a connection while none is returned, and in any case. Under a rush of requests each waits
# for its turn, which is no outage.
_ACQUIRE_TIMEOUT_S = 2
_MAX_TURN_WAIT_S = 5
_RETURN_TIMEOUT_S = 2
# The maximum time of a statement for a client. It detects a server that vanished without closing its connections.
_COMMAND_TIMEOUT_S = 5
# asyncpg's own default for the connections of its pool.
_MAX_IDLE_S = 300

# Errors of a database that is not set up yet, or for another version.
SETUP_ERRORS = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
)

# Errors of a server that is unavailable, starting, stopping or full, or that ended this transaction because of a
# deadlock. The same statement may succeed a moment later.
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

# Those of them that the server raises for a statement or a connection before any commit.
_UNCHANGED = (
    asyncpg.DeadlockDetectedError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    *SETUP_ERRORS,
)


def changed_nothing(error: ServiceError) -> bool:
    """Returns whether this `database-unavailable` is known to precede the commit. Otherwise the outcome is unknown."""
    return isinstance(error.__cause__, _UNCHANGED)


def is_server_error(error: Exception) -> bool:
    """Returns whether the next statement would fail, too, because the server is unavailable, full or read-only."""
    is_of_statement = isinstance(error, OSError | asyncpg.TransactionRollbackError | asyncpg.QueryCanceledError)
    return isinstance(error, _UNAVAILABLE) and not is_of_statement


async def _skip_reset(connection: Connection) -> None:
    """Replaces asyncpg's reset, which is a round trip at each release. No code changes the session after its start, so
    there is nothing to reset, unless a transaction was cancelled while it began.
    """
    if connection.is_in_transaction():
        connection.terminate()


class Database:
    """A connection pool that raises the API's `database-unavailable` in place of a dozen exceptions."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool
        self._spare: _PoolConnection | None = None
        self._spare_since = 0.0
        self._acquiring = 0
        self._returned_at = 0.0
        self._is_closing = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, connections: int, command_timeout_s: float = _COMMAND_TIMEOUT_S, pooler: Pooler = "auto"
    ) -> AsyncIterator[Database]:
        pool = await asyncpg.create_pool(
            url,
            min_size=0,  # so that a start needs no database; /readyz reports it
            max_size=connections,
            command_timeout=command_timeout_s,
            timeout=_ACQUIRE_TIMEOUT_S,
            connect=Connector(pooler).connect,
            reset=_skip_reset,
            server_settings={"application_name": APPLICATION_NAME},
        )
        self = cls(pool)
        try:
            yield self
        finally:
            self._is_closing = True
            try:
                await self._release_spare()
                await asyncio.wait_for(pool.close(), timeout=5)
            except OSError:  # e.g. a time-out, or a connection that the server has just closed
                pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Acquires a connection. Hold it only for queries, never while waiting for a client or a job.

        Raises `database-unavailable`.
        """
        is_connected = False
        try:
            connection = await self._acquire()
            is_connected = True
            try:
                yield connection
            except BaseException as error:
                if isinstance(error, asyncpg.InternalClientError):
                    connection.terminate()  # its state is undefined after the server closed it
                await self._return(connection)
                raise
            await self._release(connection)
        except _UNAVAILABLE as error:
            if not isinstance(error, asyncpg.TransactionRollbackError):  # a conflict of two transactions, not an outage
                DATABASE.report(error)
            raise ServiceError("database-unavailable") from error
        except asyncpg.PostgresError as error:
            if is_connected:
                raise
            DATABASE.report(error)  # any error while connecting
            raise ServiceError("database-unavailable") from error

    async def _acquire(self) -> _PoolConnection:
        """Returns the spare connection, or one of the pool.

        The next statement usually follows soon, and going through the pool costs more than a small statement itself. So
        one free connection is not returned to the pool, unless a caller waits there.
        """
        connection, self._spare = self._spare, None
        if connection is not None:
            is_recent = time.monotonic() - self._spare_since < _MAX_IDLE_S  # a firewall may forget an older one
            if is_recent and _is_open(connection):
                return connection
            if _is_open(connection):
                connection.terminate()
            await self._return(connection)
        self._acquiring += 1
        try:
            async with self._time_limit():
                return await self._pool.acquire()
        finally:
            self._acquiring -= 1

    @asynccontextmanager
    async def _time_limit(self) -> AsyncIterator[None]:
        """Raises TimeoutError if no connection is returned for _ACQUIRE_TIMEOUT_S, or after _MAX_TURN_WAIT_S."""
        loop = asyncio.get_running_loop()
        started_at = time.monotonic()
        timer: asyncio.TimerHandle

        def check() -> None:
            nonlocal timer
            idle_since = max(started_at, self._returned_at)
            remaining_s = min(idle_since + _ACQUIRE_TIMEOUT_S, started_at + _MAX_TURN_WAIT_S) - time.monotonic()
            if remaining_s > 0:
                timer = loop.call_later(remaining_s, check)
            else:
                scope.reschedule(loop.time())

        async with asyncio.timeout(None) as scope:
            timer = loop.call_later(_ACQUIRE_TIMEOUT_S, check)
            try:
                yield
            finally:
                timer.cancel()

    async def _release(self, connection: _PoolConnection) -> None:
        self._returned_at = time.monotonic()
        if not (self._spare or self._acquiring or self._is_closing) and _is_open(connection):
            self._spare, self._spare_since = connection, time.monotonic()
        else:
            await self._return(connection)

    async def _return(self, connection: _PoolConnection) -> None:
        """Returns it to the pool. After a cancelled statement the pool waits until the server has confirmed that, but
        for at most _RETURN_TIMEOUT_S: then it closes the connection, and raises TimeoutError.
        """
        await self._pool.release(connection, timeout=_RETURN_TIMEOUT_S)

    async def _release_spare(self) -> None:
        if self._spare is not None:
            connection, self._spare = self._spare, None
            await self._return(connection)


def _is_open(connection: _PoolConnection) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # it was closed while it was in use, and the pool took it back
        return False
