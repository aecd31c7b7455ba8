"""Writes the rows of renditions behind their replies, in batches: no client waits for a row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Self

import structlog

from service.batcher import Batcher, running
from service.database import Database
from service.dependencies.outages import level_of
from service.errors import ServiceError
from service.renditions.queries import NewRendition, insert_renditions
from service.storage.interface import RenditionStorage

log = structlog.get_logger("worker")

# The pause after each batch, in which the next one gathers.
INTERVAL_S = 0.5
RETRY_S = 1.0
_BATCH_SIZE = 500
_DRAIN_TIMEOUT_S = 2.0
# The maximum while the database is away. Files without a row are removed by the eviction.
_MAX_BACKLOG = 50_000


class RenditionRecorder:
    """Records files that were written. A file whose image was deleted meanwhile is removed again."""

    def __init__(
        self, database: Database, files: RenditionStorage, *, interval_s: float = INTERVAL_S, retry_s: float = RETRY_S
    ) -> None:
        self._database = database
        self._files = files
        self._interval_s = interval_s
        self._retry_s = retry_s
        self._batcher = Batcher(self._write, limit=_BATCH_SIZE)
        self._tasks: set[asyncio.Task[bool]] = set()
        self._closing = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, database: Database, files: RenditionStorage, *, interval_s: float = INTERVAL_S, retry_s: float = RETRY_S
    ) -> AsyncIterator[Self]:
        """On exit the backlog is written, if the database is there."""
        self = cls(database, files, interval_s=interval_s, retry_s=retry_s)
        async with running(self._batcher.run()):
            try:
                yield self
            finally:
                self._closing.set()
                if self._tasks:
                    await asyncio.wait(self._tasks, timeout=_DRAIN_TIMEOUT_S)

    @property
    def backlog(self) -> int:
        return len(self._tasks)

    def record(self, rendition: NewRendition) -> None:
        if self.backlog >= _MAX_BACKLOG:
            return
        task = asyncio.create_task(self._batcher.submit(rendition))
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[bool]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("rendition.record_failed", error=repr(error))

    async def _write(self, batch: Sequence[NewRendition]) -> Sequence[bool]:
        """Returns which have a row now. Files that cannot be removed are left to the eviction."""
        have_rows = await self._insert(batch)
        orphans = [rendition.key for rendition, has_row in zip(batch, have_rows, strict=True) if not has_row]
        try:
            await asyncio.to_thread(self._files.remove, orphans)
        except OSError as error:
            log.log(level_of(error), "rendition.removal_failed", error=repr(error))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await self._closing.wait()
        return have_rows

    async def _insert(self, batch: Sequence[NewRendition]) -> list[bool]:
        """Retries while the database is away."""
        while True:
            try:
                return await insert_renditions(self._database, batch)
            except (ServiceError, OSError) as error:
                log.log(level_of(error), "rendition.record_deferred", error=repr(error), backlog=self.backlog)
                await asyncio.sleep(self._retry_s)
