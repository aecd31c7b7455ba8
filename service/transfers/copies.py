"""Copies the files of images, which never change: an existing copy is not copied again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from service.config.values import format_size
from service.database import Database
from service.ids import ImageId
from service.images.integrity import MISSING, StoredRow, find_fault, find_sha256, list_stored_rows
from service.storage.files import in_thread
from service.storage.interface import OriginalInventory, UnreadableFile

_PARALLEL = 16
_BATCH_SIZE = 1000

# What is wrong with the copies of images that are missing or damaged.
Faults: TypeAlias = dict[ImageId, str]


@dataclass(slots=True)
class Copies:
    """Counts the files that were copied, their bytes, and copies that existed before.

    `reads_source` compares the SHA-256 of each file that is copied.
    """

    source: OriginalInventory
    target: OriginalInventory
    reads_source: bool = False
    copied: int = field(default=0, init=False)
    present: int = field(default=0, init=False)
    bytes: int = field(default=0, init=False)

    def describe(self) -> str:
        return f"{self.copied} files copied ({format_size(self.bytes)}), {self.present} already there"

    async def add(self, rows: Sequence[StoredRow]) -> list[str | None]:
        """Copies the files of images, some at the same time. Returns what is wrong with each copy now, or None.

        Raises OSError if a copy cannot be written, or the storage that is copied cannot be reached.
        """
        slots = asyncio.Semaphore(_PARALLEL)
        results = await asyncio.gather(*(self._add(row, slots) for row in rows), return_exceptions=True)
        faults: list[str | None] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            faults.append(result)
        return faults

    async def add_all(self, database: Database) -> AsyncIterator[Faults]:
        """Copies the files of all rows. Yields what is wrong with some of the copies, again and again.

        Images that were deleted meanwhile need no copy. Raises what `add` raises, and `database-unavailable`.
        """
        last = ""
        while rows := await self._list_rows(database, last):
            last = rows[-1].id
            results = zip(rows, await self.add(rows), strict=True)
            faults = {row.id: fault for row, fault in results if fault is not None}
            if faults:
                async with database.connection() as connection:
                    faults = {image_id: faults[image_id] for image_id in await find_sha256(connection, list(faults))}
            yield faults

    @staticmethod
    async def _list_rows(database: Database, last: str) -> list[StoredRow]:
        async with database.connection() as connection:
            return await list_stored_rows(connection, last, _BATCH_SIZE)

    async def _add(self, row: StoredRow, slots: asyncio.Semaphore) -> str | None:
        """Copies a file completely or not at all.

        An existing copy is replaced only if its size is wrong and the file is right, because it may be the only good
        copy.
        """
        async with slots:
            size = await self.target.find_size(row.id)
            if size == row.size:
                self.present += 1
                return None
            draft = self.target.draft_path(row.id)
            draft.unlink(missing_ok=True)  # from an interrupted run
            try:
                await self.source.export(row.id, draft)
                fault = await in_thread(self.target.threads, partial(self._examine, row, draft))
                if size is None or fault is None:
                    await self.target.adopt(row.id, draft, replace=size is not None)
                    self.copied += 1
                    self.bytes += row.size
                    return fault
            except FileNotFoundError:  # it was deleted meanwhile, or is lost
                pass
            except FileExistsError:  # by another run, or by this one, and the response was lost
                if await self.target.find_size(row.id) != row.size:
                    raise
                self.present += 1
                return None
            except UnreadableFile as error:
                return f"its file cannot be read: {(error.strerror or str(error)).lower()}"
            finally:
                with suppress(OSError):
                    draft.unlink(missing_ok=True)
            return MISSING if size is None else find_fault(row, size, None)

    def _examine(self, row: StoredRow, draft: Path) -> str | None:
        """Returns what is wrong with a file. Blocks; raises OSError."""
        with draft.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").digest() if self.reads_source else None
            return find_fault(row, file.seek(0, 2), sha256)
