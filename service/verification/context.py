"""What the checks share: their resources, options and reports."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import asyncpg

from service.database import Database
from service.errors import ServiceError
from service.images.integrity import find_relation
from service.queue.jobs import JobQueue
from service.storage.interface import OriginalInventory, RenditionStorage

BATCH_SIZE = 1000
# If more than this fraction of the images or files is affected, and more than this number, the storage or the database
# is probably the wrong one.
MAX_AFFECTED_PART, MIN_AFFECTED = 0.1, 10

# A server that read a damaged page may have closed all connections, and restarts.
_RECOVERY_TRIES = 20
_RECOVERY_POLL_INTERVAL_S = 0.5

_RELATION_FILE = re.compile(r'"base/[0-9]+/(?P<filenode>[0-9]{1,10})')


@dataclass(frozen=True, slots=True)
class Problem:
    """`repair` says what was done about it, and is empty if nothing was done."""

    subject: str
    what: str
    repair: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}" + (f"; {self.repair}" if self.repair else "")


Problems: TypeAlias = AsyncIterator[Problem]

# Errors of a statement, raw or wrapped by `Database`, and of text in a damaged row.
DATABASE_ERRORS = (ServiceError, asyncpg.PostgresError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Options:
    """`read` compares the SHA-256 of every file, which reads all of them. `repair` repairs what can be repaired without
    losing data. `drop_missing` deletes images whose files are missing. `force` does both if any number is affected.
    """

    read: bool = True
    repair: bool = False
    drop_missing: bool = False
    force: bool = False


@dataclass(slots=True)
class Context:
    """The state of one run. What it may repair depends on the last three fields: whether the database knows the id of
    the storage, whether every row of an image could be read, and the shards whose folders cannot be used.
    """

    database: Database
    storage: OriginalInventory
    renditions: RenditionStorage
    queue: JobQueue
    options: Options
    num_images: int = field(default=0, init=False)
    num_bytes: int = field(default=0, init=False)
    is_storage_known: bool = field(default=True, init=False)
    are_rows_complete: bool = field(default=False, init=False)
    bad_shards: set[int] = field(default_factory=set, init=False)

    def may_change(self, number: int, total: int) -> bool:
        """Returns whether few enough are affected to repair them. If many are, the database or the storage is probably
        the wrong one.
        """
        return self.options.force or (self.is_storage_known and number <= max(MIN_AFFECTED, total * MAX_AFFECTED_PART))

    async def explain(self, error: BaseException) -> str:
        """Like the function `explain`, but names the table or index if PostgreSQL names one of its files."""
        text = explain(error)
        match = _RELATION_FILE.search(text)
        if match is None:
            return text
        try:
            async with self.database.connection() as connection:
                relation = await find_relation(connection, int(match["filenode"]))
        except DATABASE_ERRORS:
            return text
        if relation is None:
            return text
        name, is_index = relation
        return f"{text} (index {name}: `reindex index {name}` rebuilds it)" if is_index else f"{text} (table {name})"

    async def is_database_available(self) -> bool:
        """Returns whether the database responds. Waits some seconds for a server that restarts."""
        for _ in range(_RECOVERY_TRIES):
            try:
                async with self.database.connection() as connection:
                    await connection.execute("select 1")
            except DATABASE_ERRORS:
                await asyncio.sleep(_RECOVERY_POLL_INTERVAL_S)
            else:
                return True
        return False


def explain(error: BaseException) -> str:
    """Returns what went wrong, in one line for the operator."""
    if isinstance(error, ServiceError):
        return explain(error.__cause__) if isinstance(error.__cause__, asyncpg.PostgresError) else error.code
    if isinstance(error, OSError) and error.strerror:
        return printable(error.strerror).lower()
    return printable(" ".join(str(error).split())) or type(error).__name__


def printable(name: str | Path) -> str:
    """Returns a file's name as one printable line: invalid UTF-8 and control characters are escaped."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
