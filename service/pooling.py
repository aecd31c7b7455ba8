"""Connections to PostgreSQL, which may go through a pooler such as PgBouncer.

A pooler in transaction mode may give each transaction another connection to the server. So what a session keeps is lost
or reaches other clients: settings, and prepared statements unless the pooler knows them (PgBouncer from 1.21 on, if its
`max_prepared_statements` is not 0). Here such a connection keeps nothing between transactions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import asyncpg
import structlog

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

log = structlog.get_logger("service")

Pooler: TypeAlias = Literal["auto", "none", "transaction"]

APPLICATION_NAME = "daguerre"

# Every statement finds its rows by an index, and searches need the order of the index, for all values of the
# parameters. So each statement is planned once, because planning takes longer than most statements run. These settings
# also give the right plan before the first ANALYZE, when the planner would scan a small table or sort a bitmap of all
# matches.
_PLANNING = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
}
_SET_PLANNING = "; ".join(f"set {name} = {value}" for name, value in _PLANNING.items())
_SET_PLANNING_LOCALLY = "; ".join(f"set local {name} = {value}" for name, value in _PLANNING.items())


class PooledConnection(_Connection):
    """A connection through a pooler. Each statement outside of a transaction gets one, with the settings for planning.

    That takes three more round trips, since no plan is cached. Only the methods that Daguerre calls are overridden.
    """

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        async with self._planned():
            return await super().fetch(query, *args, **options)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        async with self._planned():
            return await super().fetchrow(query, *args, **options)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        async with self._planned():
            return await super().fetchval(query, *args, **options)

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        if args:
            async with self._planned():
                return await super().execute(query, *args, **options)
        # One message is one transaction, also of several statements. If it ends with BEGIN, the settings hold in the
        # transaction that it begins, so `transaction` needs no more.
        return await super().execute(self._prefix(query), **options)

    def _prefix(self, query: str) -> str:
        return query if self.is_in_transaction() else f"{_SET_PLANNING_LOCALLY}; {query}"

    @asynccontextmanager
    async def _planned(self) -> AsyncIterator[None]:
        if self.is_in_transaction():
            yield
            return
        try:
            await self.execute("begin")
            yield
            await self.execute("commit")
        except BaseException:
            await self._roll_back()
            raise

    async def _roll_back(self) -> None:
        """Closes the connection if that fails: a transaction that stays open would swallow later statements.

        `is_in_transaction` is no condition. After a cancellation, the reply to BEGIN may still be on its way.
        """
        if self.is_closed():
            return
        try:
            await super().execute("rollback")
        except BaseException:
            self.terminate()
            raise


class Connector:
    """Opens the connections of a pool: directly, or through a pooler.

    With "auto", the first connection finds out whether there is a pooler.
    """

    def __init__(self, pooler: Pooler) -> None:
        self._is_pooled = {"auto": None, "none": False, "transaction": True}[pooler]

    async def connect(self, *args: Any, **options: Any) -> asyncpg.Connection[asyncpg.Record]:
        """Takes the arguments of `asyncpg.connect`."""
        if self._is_pooled is not False:
            pooled = {**options, "connection_class": PooledConnection, "statement_cache_size": 0}
            connection = await asyncpg.connect(*args, **pooled)
            if self._is_pooled or await self._find_pooler(connection):
                return cast("_Connection", connection)
        connection = await asyncpg.connect(*args, **options)
        await connection.execute(_SET_PLANNING)
        return cast("_Connection", connection)

    async def _find_pooler(self, connection: _Connection) -> bool:
        """Closes the connection if there is none."""
        try:
            is_pooled = await has_pooler(connection)
        except BaseException:
            connection.terminate()
            raise
        if is_pooled and self._is_pooled is None and structlog.is_configured():
            log.info("database.pooler_found")
        self._is_pooled = is_pooled
        if not is_pooled:
            await connection.close()
        return is_pooled


async def connect(url: str, **options: Any) -> asyncpg.Connection[asyncpg.Record]:
    """Returns a connection for a few statements, which works through a pooler: it prepares no named statements."""
    connection = await asyncpg.connect(
        url, statement_cache_size=0, server_settings={"application_name": APPLICATION_NAME}, **options
    )
    return cast("_Connection", connection)


async def has_pooler(connection: _Connection) -> bool:
    """Returns whether the process that the server named at the start is another one than that of this statement.

    A pooler names none of PostgreSQL's processes, because a client may get any of them.
    """
    pid: int = await connection.fetchval("select pg_backend_pid()")
    return pid != connection.get_server_pid()
