"""Cheap checks that do what an upload does, and raise the errors that it would get."""

from __future__ import annotations

import time
from collections.abc import Callable

import asyncpg

from service.database import Connection, Database
from service.dependencies.outages import DATABASE
from service.dependencies.reasons import Unready
from service.errors import ServiceError
from service.queue.jobs import JobQueue
from service.schema.definition import Schema

# Writing takes ten times as long as reading. Without an outage, the check writes at most this often.
_WRITE_INTERVAL_S = 2.0

_STATE = """
select pg_is_in_recovery() as is_standby, current_setting('transaction_read_only')::boolean as is_read_only,
    (select max(coalesce((to_jsonb(applied_schema) ->> 'version')::integer, 1)) from applied_schema) as version,
    has_table_privilege('images', 'insert') and has_table_privilege('images', 'update')
        and has_table_privilege('accounts', 'update') as may_write
"""
# Allocates new blocks on the disk of the tables, which fails if it is full. New rows and the write-ahead log would fit
# into existing blocks for a long time. A result beyond 64 KB of memory goes to a temporary file, which needs neither
# vacuum nor write-ahead log.
_ALLOCATE_BLOCKS = """
select set_config('work_mem', '64kB', true), set_config('temp_tablespaces', '', true);
select count(*) from generate_series(1, 10000)
"""
# A commit that changes nothing and waits for the disk, and for a synchronous standby if there is one.
_COMMIT = "select pg_logical_emit_message(true, 'daguerre', ''::text)"


class DatabaseCheck:
    """Checks that PostgreSQL accepts connections and writes, and has the tables of this version."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known_version = Schema.load().version
        self._was_current = False
        self._next_write_at = 0.0

    async def run(self) -> None:
        """Raises Unready, and the errors of asyncpg."""
        try:
            async with self._database.connection() as connection:
                await self._check_state(connection)
                if DATABASE.is_under_way or time.monotonic() >= self._next_write_at:
                    await _check_writes(connection)
                    self._next_write_at = time.monotonic() + _WRITE_INTERVAL_S
        except ServiceError as error:
            raise error.__cause__ or error from None

    async def _check_state(self, connection: Connection) -> None:
        state = await connection.fetchrow(_STATE)
        assert state is not None  # noqa: S101 - it has no condition
        self._check_version(state["version"] or 0)
        if state["is_standby"]:
            raise Unready("it is a hot standby, which is read-only")
        if state["is_read_only"]:
            raise Unready("it is read-only (see default_transaction_read_only)")
        if not state["may_write"]:
            raise Unready("its user may not write to Daguerre's tables")

    def _check_version(self, applied: int) -> None:
        """A process that started with its own version keeps running during an upgrade, which only adds to the
        tables.
        """
        known = self._known_version
        if applied < known:
            raise Unready(
                f"its tables are of schema {applied}, and this version needs {known}: run `daguerre schema upgrade`"
            )
        if applied > known and not self._was_current:
            raise Unready(f"its tables are of schema {applied}, of a newer Daguerre; this one knows {known}")
        self._was_current = True


async def _check_writes(connection: Connection) -> None:
    try:
        await connection.execute(_ALLOCATE_BLOCKS)
    except asyncpg.ConfigurationLimitExceededError:
        pass  # temp_file_limit, which says nothing about the disk
    except asyncpg.InsufficientPrivilegeError as error:  # PostgreSQL's error for EROFS and EACCES
        raise Unready("it cannot write to its disk") from error
    await connection.execute(_COMMIT)


class QueueCheck:
    """Checks that Redis accepts jobs and that this process receives their replies.

    `find_reply_error` returns the error that keeps the process from receiving them, or None.
    """

    def __init__(self, jobs: JobQueue, find_reply_error: Callable[[], BaseException | None] = lambda: None) -> None:
        self._jobs = jobs
        self._find_deafness = find_reply_error

    async def run(self) -> None:
        """Raises the errors of redis-py."""
        await self._jobs.check()
        if (error := self._find_deafness()) is not None:
            raise error
