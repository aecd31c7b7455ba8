"""What the checks share: what they work on, what they may do, and the form of what they report."""

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
from service.images.audit import find_relation
from service.queue.jobs import JobQueue
from service.storage.interface import RenditionStorage
from service.storage.local.originals import LocalOriginals

BATCH_SIZE = 1000
# More of the images or of the files are never out of order at once, but where the storage or the database is not the
# right one.
MAX_PART, MIN_BOUND = 0.1, 10

# A server that met a damaged page may have ended all connections, and starts again.
_RECOVERY_TRIES = 20
_RECOVERY_PAUSE_S = 0.5

_RELATION_FILE = re.compile(r'"base/[0-9]+/(?P<filenode>[0-9]{1,10})')


@dataclass(frozen=True, slots=True)
class Problem:
    """`mended` says what was done about it, and is empty if nothing was."""

    subject: str
    what: str
    mended: str = ""


Problems: TypeAlias = AsyncIterator[Problem]

# What a statement raises, as it is and as `Database` wraps it; the last one for text of a damaged row.
DATABASE_ERRORS = (ServiceError, asyncpg.PostgresError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Options:
    """`read` compares the SHA-256 of every file, which reads all of them. `repair` mends what can be mended without a
    loss. `drop_missing` deletes images whose files are missing. `force` does both beyond the bound.
    """

    read: bool = True
    repair: bool = False
    drop_missing: bool = False
    force: bool = False


@dataclass(slots=True)
class Context:
    """What one verification works on. What may be repaired depends on the last three fields: whether the database knows
    the id of the storage, whether every row of an image could be read, and the shards whose folders are out of order.
    """

    database: Database
    storage: LocalOriginals
    renditions: RenditionStorage
    queue: JobQueue
    options: Options
    num_images: int = field(default=0, init=False)
    num_bytes: int = field(default=0, init=False)
    is_storage_known: bool = field(default=True, init=False)
    are_rows_whole: bool = field(default=False, init=False)
    bad_shards: set[int] = field(default_factory=set, init=False)

    def may_change(self, number: int, total: int) -> bool:
        """Whether so few of all are affected that they are what is wrong, and not the database or the storage."""
        return self.options.force or (self.is_storage_known and number <= max(MIN_BOUND, total * MAX_PART))

    async def explain(self, error: BaseException) -> str:
        """As the function; what PostgreSQL says of a file of its own gets the name of the table or index."""
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
        return f"{text} (index {name}: `reindex index {name}` makes it anew)" if is_index else f"{text} (table {name})"

    async def is_database_there(self) -> bool:
        """Waits some seconds for a server that starts again."""
        for _ in range(_RECOVERY_TRIES):
            try:
                async with self.database.connection() as connection:
                    await connection.execute("select 1")
            except DATABASE_ERRORS:
                await asyncio.sleep(_RECOVERY_PAUSE_S)
            else:
                return True
        return False


def explain(error: BaseException) -> str:
    """What went wrong, in one line, for the operator."""
    if isinstance(error, ServiceError):
        return explain(error.__cause__) if isinstance(error.__cause__, asyncpg.PostgresError) else error.code
    if isinstance(error, OSError) and error.strerror:
        return printable(error.strerror).lower()
    return printable(" ".join(str(error).split())) or type(error).__name__


def printable(name: str | Path) -> str:
    """A file's name as text of one line: what is no text, or moves the cursor, is written as an escape."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )
