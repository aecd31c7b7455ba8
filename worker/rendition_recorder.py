"""Writes the rows of renditions in batches after their replies, so that no client waits for a row."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import structlog

from service.batcher import WriteBehind
from service.database import Database
from service.dependencies.outages import level_of
from service.renditions.queries import NewRendition, insert_renditions
from service.storage.interface import RenditionStorage

log = structlog.get_logger("worker")

GATHER_S = 0.5
RETRY_S = 1.0


class RenditionRecorder:
    """Records files that were written. Removes a file if its image was deleted meanwhile."""

    def __init__(
        self, database: Database, files: RenditionStorage, *, gather_s: float = GATHER_S, retry_s: float = RETRY_S
    ) -> None:
        self._database = database
        self._files = files
        self._rows = WriteBehind(self._write, self._on_error, gather_s=gather_s, retry_s=retry_s)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, database: Database, files: RenditionStorage, *, gather_s: float = GATHER_S, retry_s: float = RETRY_S
    ) -> AsyncIterator[Self]:
        """On exit the backlog is written, if the database is available."""
        self = cls(database, files, gather_s=gather_s, retry_s=retry_s)
        async with self._rows.running():
            yield self

    @property
    def backlog(self) -> int:
        return self._rows.pending

    def record(self, rendition: NewRendition) -> None:
        self._rows.add(rendition)

    async def _write(self, batch: Sequence[NewRendition]) -> None:
        """Inserts rows, and removes the files of deleted images. The eviction retries files that cannot be removed."""
        have_rows = await insert_renditions(self._database, batch)
        orphans = [rendition.key for rendition, has_row in zip(batch, have_rows, strict=True) if not has_row]
        try:
            await self._files.remove(orphans)
        except OSError as error:
            log.log(level_of(error), "rendition.removal_failed", error=repr(error))

    def _on_error(self, error: Exception) -> None:
        log.log(level_of(error), "rendition.record_failed", error=repr(error), backlog=self.backlog)
