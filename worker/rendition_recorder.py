"""The rows of renditions, written behind their replies: nobody waits for one, and a group costs as much as one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

import structlog

from service.batcher import running
from service.database import Database
from service.dependencies.outages import level_of
from service.errors import ServiceError
from service.renditions.queries import NewRendition, insert_renditions
from service.storage.interface import RenditionStorage

log = structlog.get_logger("worker")

_GATHER_S = 0.5
_RETRY_S = 1.0
_AT_ONCE = 500
_LAST_WRITE_S = 2.0
# Of those that wait while the database is away. A file that comes to no row is removed by the next look at its folder.
_MOST_WAITING = 50_000


class RenditionLedger:
    """Takes note of files that are there. One whose image was deleted meanwhile is removed again."""

    def __init__(self, database: Database, files: RenditionStorage) -> None:
        self._database = database
        self._files = files
        self._waiting: deque[NewRendition] = deque(maxlen=_MOST_WAITING)
        self._arrived = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, database: Database, files: RenditionStorage) -> AsyncIterator[Self]:
        """What was noted within the block is written when it ends, if the database is there."""
        self = cls(database, files)
        async with running(self._run()):
            yield self
        with suppress(ServiceError, OSError, TimeoutError):
            async with asyncio.timeout(_LAST_WRITE_S):
                await self._write()

    def note(self, made: NewRendition) -> None:
        self._waiting.append(made)
        self._arrived.set()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await asyncio.sleep(_GATHER_S)
            try:
                await self._write()
            except (ServiceError, OSError) as error:
                log.log(level_of(error), "renditions.not_noted", error=repr(error), waiting=len(self._waiting))
                self._arrived.set()
                await asyncio.sleep(_RETRY_S)

    async def _write(self) -> None:
        """Takes out what is written, and nothing if that fails.

        A file that belongs to no image and cannot be removed is left to the eviction, which looks for files without
        rows: it must not keep the rows of others from being written.
        """
        while self._waiting:
            group = [self._waiting[at] for at in range(min(len(self._waiting), _AT_ONCE))]
            kept = await insert_renditions(self._database, group)
            for made in group:
                if self._waiting and self._waiting[0] is made:  # else more came than may wait
                    self._waiting.popleft()
            await asyncio.to_thread(
                self._files.remove, [made.key for made, there in zip(group, kept, strict=True) if not there]
            )
