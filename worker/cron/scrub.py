"""Reads every original once in a period and compares its SHA-256, slowly, so that damage is found before it is asked
for.

One worker at a time reads: it holds a row of PostgreSQL by a lease. Its progress is in that row, so a round survives
restarts.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from io import BufferedReader

import structlog

from service.batcher import running
from service.database import Database
from service.errors import ServiceError
from service.ids import ImageId
from service.images.integrity import MISSING, StoredRow, find_fault, list_stored_rows
from service.images.queries import list_existing
from service.images.scrubbing import (
    FILE_COST,
    ScrubLease,
    acquire_lease,
    advance,
    begin_round,
    end_round,
    record_damaged,
    record_intact,
    release_lease,
    sum_cost,
)
from service.queue.heartbeats import name_worker
from service.storage.files import in_thread
from service.storage.interface import OriginalStorage
from service.telemetry.metrics import metrics
from worker.cron.idle_threads import idle_threads

log = structlog.get_logger("worker")

_BATCH_SIZE = 100
_CHUNK_BYTES = 1 << 20
_SAVE_S = 10.0
_LEASE_S = 120
_RENEW_S = 20.0
_POLL_S = 30.0
# After an error, which is logged at most once in so long.
_PAUSE_S = 60.0
_LOG_S = 3600.0
# A round aims at this part of its period, and is never hurried beyond ten times the average.
_AIM, _HURRY = 0.9, 0.1
_MIN_BYTES_PER_S = 256 << 10
_MAX_BYTES_PER_S = 100 << 20
# The time of reads and late wake-ups that is made good by shorter waits.
_SLACK_S = 0.1
# If this many images in a row have no good file, the storage itself is out of order.
_MAX_FAULTS_IN_A_ROW = 20
# What these say is about one file. After others, e.g. of a network, the file may be whole.
_OF_ONE_FILE = frozenset(
    {errno.EACCES, errno.EINVAL, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.EPERM, errno.ENXIO}
)


@asynccontextmanager
async def scrubbing(database: Database, storage: OriginalStorage, period_s: float | None) -> AsyncIterator[None]:
    """Scrubs for the length of a block, or never without a period."""
    if period_s is None:
        yield
        return
    scrub = Scrub(database, storage, period_s)
    try:
        async with running(scrub.run()):
            yield
    finally:
        with suppress(ServiceError):  # the lease ends by itself
            await scrub.release()


class LeaseLost(Exception):
    """Another worker reads: this one was stopped for longer than its lease."""


class Scrub:
    def __init__(self, database: Database, storage: OriginalStorage, period_s: float) -> None:
        self._database = database
        self._storage = storage
        self._period_s = period_s
        self._poll_s = min(_POLL_S, period_s / 10)
        self._holder = name_worker()
        self._threads = idle_threads("scrub")
        self._due = 0.0  # when the next read may begin
        self._renewed = 0.0
        self._faults_in_a_row = 0

    async def run(self) -> None:
        """Until cancelled."""
        next_log = 0.0
        while True:
            try:
                pause_s = await self._step()
            except LeaseLost:
                pause_s = self._poll_s
            except Exception as error:  # mostly a dependency that is away; never a reason to end the worker
                pause_s = min(_PAUSE_S, self._period_s)
                if time.monotonic() >= next_log:
                    log.warning("scrub.paused", error=repr(error))
                    next_log = time.monotonic() + _LOG_S
            await asyncio.sleep(pause_s)

    async def release(self) -> None:
        async with self._database.connection() as connection:
            await release_lease(connection, self._holder)

    async def _step(self) -> float:
        """Reads some images if it is this worker's turn; returns the seconds until the next step."""
        async with self._database.connection() as connection:
            turn = await acquire_lease(connection, self._holder, _LEASE_S)
            self._renewed = time.monotonic()
            if turn is None:
                return self._poll_s
            if turn.is_over:
                if turn.age_s is not None and 0 <= turn.age_s < self._period_s:
                    return min(self._poll_s, self._period_s - turn.age_s)
                await begin_round(connection, self._holder)
                return 0
            rows = await list_stored_rows(connection, turn.after_id, _BATCH_SIZE)
            if not rows:
                log.info(
                    "scrub.round_ended", damaged_images=await end_round(connection, self._holder), round_s=turn.age_s
                )
                return 0
            rate = self._choose_rate(turn, await sum_cost(connection))
        await self._storage.require_available()
        await self._read(rows, rate)
        return 0

    def _choose_rate(self, turn: ScrubLease, total_cost: int) -> float:
        """Bytes a second that bring the round to its end in time; more after the workers were away."""
        age_s = max(0.0, turn.age_s or 0.0)  # less than nothing after the clock of PostgreSQL was set back
        left_s = max(_AIM * self._period_s - age_s, _HURRY * self._period_s)
        return min(max((total_cost - turn.done_cost) / left_s, _MIN_BYTES_PER_S), _MAX_BYTES_PER_S)

    async def _read(self, rows: Sequence[StoredRow], rate: float) -> None:
        """Saves the progress after some seconds, and at the end."""
        first, saved_at = 0, time.monotonic()
        faults: dict[ImageId, str] = {}
        for number, row in enumerate(rows, 1):
            fault = await self._find_fault(row, rate)
            if fault is not None:
                faults[row.id] = fault
            self._faults_in_a_row = 0 if fault is None else self._faults_in_a_row + 1
            if self._faults_in_a_row >= _MAX_FAULTS_IN_A_ROW:
                self._faults_in_a_row = 0
                raise OSError(errno.ENODEV, "many files in a row are missing or damaged: is it the right storage?")
            if number == len(rows) or time.monotonic() - saved_at >= _SAVE_S:
                await self._save(rows[first:number], faults)
                first, saved_at, faults = number, time.monotonic(), {}

    async def _save(self, rows: Sequence[StoredRow], faults: dict[ImageId, str]) -> None:
        whole = [row.id for row in rows if row.id not in faults]
        num_bytes = sum(row.size for row in rows)
        async with self._database.connection() as connection:
            existing = await list_existing(connection, list(faults)) if faults else set()
            faults = {image_id: what for image_id, what in faults.items() if image_id in existing}
            noted = await record_damaged(connection, faults) if faults else set()
            recovered = await record_intact(connection, whole)
            await advance(connection, self._holder, rows[-1].id, num_bytes + FILE_COST * len(rows))
        for image_id in sorted(noted):
            path = self._storage.locate(image_id)
            log.error("scrub.damaged", image_id=image_id, what=faults[image_id], path=path)
        for image_id in recovered:
            log.info("scrub.recovered", image_id=image_id)
        metrics.scrub_images.inc(len(rows))
        metrics.scrub_bytes.inc(num_bytes)
        metrics.scrub_damaged.inc(len(noted))

    async def _find_fault(self, row: StoredRow, rate: float) -> str | None:
        """Raises OSError if the storage is away, and LeaseLost."""
        await self._pace(FILE_COST, rate)
        try:
            return find_fault(row, *await self._digest(row.id, rate))
        except FileNotFoundError:
            await self._storage.require_available()
            return MISSING
        except OSError as error:
            if error.errno not in _OF_ONE_FILE:
                raise
            return f"its file cannot be read: {(error.strerror or str(error)).lower()}"

    async def _digest(self, image_id: ImageId, rate: float) -> tuple[int, bytes]:
        """Size and SHA-256 of a stored image's file."""
        file = await in_thread(self._threads, partial(self._storage.open_file, image_id))
        try:
            digest, size = hashlib.sha256(), 0
            while length := await in_thread(self._threads, partial(_read_into, digest, file)):
                size += length
                await self._pace(length, rate)
            return size, digest.digest()
        finally:
            file.close()

    async def _pace(self, cost: int, rate: float) -> None:
        """Waits until so much may have been read, and keeps the lease meanwhile."""
        self._due = max(self._due, time.monotonic() - _SLACK_S) + cost / rate
        while (left_s := self._due - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, _RENEW_S))
            await self._renew()
        await self._renew()

    async def _renew(self) -> None:
        if time.monotonic() - self._renewed < _RENEW_S:
            return
        async with self._database.connection() as connection:
            if await acquire_lease(connection, self._holder, _LEASE_S) is None:
                raise LeaseLost
        self._renewed = time.monotonic()


def _read_into(digest: hashlib._Hash, file: BufferedReader) -> int:
    data = file.read(_CHUNK_BYTES)
    digest.update(data)
    return len(data)
