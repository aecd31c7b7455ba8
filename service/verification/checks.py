"""Whether what is stored is whole: rows, files and counters held against each other, and mended where that can be done.

It may run while Daguerre does: what looks wrong is looked at again where something under way would explain it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from service.accounts.counters import has_grown_since_quota, measure_drift, refresh_counters
from service.accounts.records import AccountUnknown, list_accounts
from service.database import Database
from service.errors import ServiceError
from service.ids import ImageId
from service.images.audit import StoredRow, find_sha256, find_unclaimed, list_stored_rows
from service.images.deletions import delete_images
from service.images.leftovers import Overdue, list_existing, list_overdue
from service.queue.jobs import JobQueue
from service.removals import list_removals, remove_files
from service.sizes import readable
from service.storage.disk import SHARDS, DiskStorage
from service.storage.renditions import RenditionFiles

# Each is beyond what the sweep, which runs every few seconds, leaves lying about.
_PENDING_S = 60
_ABANDONED_S = 3600 + 600
_REMOVAL_S = 120

_MISSING = "its file is missing"
# More are not dropped: that many are not deleted while a backup is made.
_MISSING_PART, _MISSING_AT_LEAST = 0.1, 10

_AT_ONCE = 1000
_MOST_LEFTOVERS = 100_000
_READERS = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """`mended` tells what was done about it, and is empty where nothing was."""

    subject: str
    what: str
    mended: str = ""


@dataclass(slots=True)
class Verification:
    """`read` also compares the SHA-256 of every file, which reads all of them; `repair` mends what can be mended
    without a loss, and `drop_missing` deletes images whose files are missing.

    The checks raise ServiceError where the database is away, or the queue if something is to be enqueued, and OSError
    where the storage is.
    """

    database: Database
    storage: DiskStorage
    renditions: RenditionFiles
    queue: JobQueue
    read: bool = True
    repair: bool = False
    drop_missing: bool = False
    seen_images: int = field(default=0, init=False)
    seen_bytes: int = field(default=0, init=False)

    async def check_images(self) -> AsyncIterator[Problem]:
        """Every image that is stored has its file, and the file is what was sent."""
        last = ""
        missing = []
        while rows := await self._list_rows(last):
            last = rows[-1].id
            faults = await self._find_faults(rows)
            async with self.database.connection() as connection:
                existing = await list_existing(connection, [row.id for row, _ in faults])
            for row, fault in faults:
                if row.id not in existing:
                    continue  # deleted meanwhile
                if fault == _MISSING:
                    missing.append(row)
                else:
                    yield Problem(f"image {row.id}", fault)
        may_drop = self.drop_missing and len(missing) <= max(_MISSING_AT_LEAST, self.seen_images * _MISSING_PART)
        for row in missing:
            yield Problem(f"image {row.id}", _MISSING, await self._drop(row) if may_drop else "")
        if self.drop_missing and not may_drop:
            told = f"{len(missing)} of {self.seen_images} files are missing, so none was dropped"
            yield Problem("storage", f"{told}: is it the right one, and mounted?")

    async def _list_rows(self, after: str) -> list[StoredRow]:
        async with self.database.connection() as connection:
            return await list_stored_rows(connection, after, _AT_ONCE)

    async def _find_faults(self, rows: Sequence[StoredRow]) -> list[tuple[StoredRow, str]]:
        self.seen_images += len(rows)
        self.seen_bytes += sum(row.size for row in rows)
        with ThreadPoolExecutor(_READERS) as readers:
            found = await asyncio.to_thread(lambda: list(readers.map(self._find_fault, rows)))
        return [(row, fault) for row, fault in zip(rows, found, strict=True) if fault is not None]

    def _find_fault(self, row: StoredRow) -> str | None:
        try:
            size, sha256 = self.storage.examine(row.id, read=self.read)
        except FileNotFoundError:
            return _MISSING
        except OSError as error:
            return f"its file cannot be read: {(error.strerror or repr(error)).lower()}"
        if size != row.size:
            return f"its file has {size} bytes instead of {row.size}"
        if sha256 not in (None, row.sha256):
            return "its file is not what was sent: the SHA-256 differs"
        return None

    async def _drop(self, row: StoredRow) -> str:
        with suppress(ServiceError):  # deleted meanwhile
            async with self.database.connection() as connection:
                await delete_images(connection, [row.id], row.account_id)
        return "deleted"

    async def check_files(self) -> AsyncIterator[Problem]:
        """Every file has its row, but for what is on its way in or out."""
        for shard in range(SHARDS):
            paths = await asyncio.to_thread(self.storage.list_shard, shard)
            for first in range(0, len(paths), _AT_ONCE):
                some = {path.name: path for path in paths[first : first + _AT_ONCE]}
                async with self.database.connection() as connection:
                    unclaimed = await find_unclaimed(connection, list(some))
                for name in unclaimed:
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        yield await asyncio.to_thread(self._look_at_unclaimed, some[name])

    def _look_at_unclaimed(self, path: Path) -> Problem:
        path.stat()
        what, mended = "no image belongs to it", ""
        if self.repair:
            try:
                mended = f"moved to {self.storage.set_aside(path)}"
            except FileNotFoundError:
                raise
            except OSError as error:
                what += f", and it cannot be moved: {(error.strerror or repr(error)).lower()}"
        return Problem(f"file {path}", what, mended)

    async def check_leftovers(self) -> AsyncIterator[Problem]:
        """What the sweep should have dealt with: received files without an end, files that are to be removed."""
        abandoned = await self.storage.list_abandoned(_ABANDONED_S, _MOST_LEFTOVERS)
        async with self.database.connection() as connection:
            existing = await find_sha256(connection, abandoned)
        conflicts = await asyncio.to_thread(self.storage.find_conflicts, existing)
        if self.repair:
            await self.storage.settle(existing)
            await self.storage.remove_abandoned([image_id for image_id in abandoned if image_id not in existing])
        for image_id in abandoned:
            if image_id not in existing:
                what, done = "it was never accepted", "removed"
            elif conflicts.get(image_id):
                what, done = "another file is in its place", "moved, and the other one to `unclaimed`"
            elif image_id in conflicts:
                what, done = "it came under an id that was taken", "removed"
            else:
                what, done = "it was not moved to its place", "moved"
            is_left = await asyncio.to_thread(self.storage.incoming_path(image_id).exists)
            yield Problem(f"file incoming/{image_id}", what, done if self.repair and not is_left else "")
        removals = await self._list_removals()
        if self.repair:
            await remove_files(self.database, self.storage, self.renditions, removals)
        left = set(await self._list_removals())
        for image_id in removals:
            what = "it is gone and its file still to be removed"
            yield Problem(f"image {image_id}", what, "removed" if self.repair and image_id not in left else "")

    async def _list_removals(self) -> list[ImageId]:
        async with self.database.connection() as connection:
            return [one.image_id for one in await list_removals(connection, _REMOVAL_S, _MOST_LEFTOVERS)]

    async def check_pending(self) -> AsyncIterator[Problem]:
        """Every image is looked at within a minute."""
        last: Overdue | None = None
        while overdue := await self._list_overdue(last):
            last = overdue[-1]
            if self.repair:
                await self.queue.enqueue_again({image.id: image.account_id for image in overdue})
            for image in overdue:
                what = f"no worker has looked at it since {image.created_at:%Y-%m-%d %H:%M:%S} UTC"
                yield Problem(f"image {image.id}", what, "in the queue" if self.repair else "")

    async def _list_overdue(self, after: Overdue | None) -> list[Overdue]:
        async with self.database.connection() as connection:
            return await list_overdue(connection, _PENDING_S, _AT_ONCE, after)

    async def check_accounts(self) -> AsyncIterator[Problem]:
        """The counters are the sums of what is stored, and no account is over its quota."""
        async with self.database.connection() as connection:
            accounts = await list_accounts(connection)
        for account in accounts:
            subject = f"account {account.name}"
            async with self.database.connection() as connection:
                measure = refresh_counters if self.repair else measure_drift
                try:
                    drift = await measure(connection, account.id)
                except AccountUnknown:
                    continue  # deleted meanwhile
                used = account.used_bytes + drift.bytes
                is_over = used > account.max_bytes and await has_grown_since_quota(connection, account.id)
            if drift:
                what = f"its counters are off by {-drift.images} images and {-drift.bytes} bytes"
                yield Problem(subject, what, "counted anew" if self.repair else "")
            if is_over:
                yield Problem(subject, f"it stores {readable(used)} of {readable(account.max_bytes)}")

    async def check_expected(self, expected: Mapping[ImageId, bytes]) -> AsyncIterator[Problem]:
        """These images are stored, with rows of these SHA-256."""
        image_ids = list(expected)
        for first in range(0, len(image_ids), _AT_ONCE):
            chunk = image_ids[first : first + _AT_ONCE]
            async with self.database.connection() as connection:
                stored = await find_sha256(connection, chunk)
            for image_id in chunk:
                if image_id not in stored:
                    yield Problem(f"image {image_id}", "it was expected and is not stored")
                elif stored[image_id] != expected[image_id]:
                    yield Problem(f"image {image_id}", "another SHA-256 was expected")
