"""Reads every original once in a period, slowly, and compares its SHA-256, so that damage is found before a client
does.

One worker at a time reads, which has a lease on a row in PostgreSQL. The row has the progress, so that a round survives
restarts.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import platform
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    finish_round,
    record_damaged,
    record_intact,
    release_lease,
    start_round,
    sum_cost,
)
from service.queue.heartbeats import name_worker
from service.storage.files import in_thread
from service.storage.interface import OriginalStorage
from service.telemetry.metrics import metrics

log = structlog.get_logger("worker")

_BATCH_SIZE = 100
_CHUNK_BYTES = 1 << 20
_SAVE_INTERVAL_S = 10.0
_LEASE_S = 120
_RENEW_INTERVAL_S = 20.0
_POLL_INTERVAL_S = 30.0
# After an error. Errors are logged at most once in `_LOG_INTERVAL_S`.
_ERROR_PAUSE_S = 60.0
_LOG_INTERVAL_S = 3600.0
# A round should take this share of its period. Its speed is at most ten times the average.
_TARGET_SHARE, _MIN_REMAINING_SHARE = 0.9, 0.1
MIN_BYTES_PER_S = 256 << 10
_MAX_BYTES_PER_S = 100 << 20
# Shorter waits compensate for at most this much time of reads and late wake-ups.
_MAX_LAG_S = 0.1
# If this many consecutive images are missing or damaged, the storage itself is broken.
_MAX_CONSECUTIVE_FAULTS = 20
# These errors are about one file. After others, e.g. of a network, the file may be intact.
_FILE_ERRORS = frozenset(
    {errno.EACCES, errno.EINVAL, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.EPERM, errno.ENXIO}
)

# linux/ioprio.h: the class "idle" for the calling thread. I/O schedulers without classes ignore it.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_WHO_PROCESS, _CALLING_THREAD = 1, 0
_CLASS_IDLE = 3 << 13


@asynccontextmanager
async def scrubbing(
    database: Database, storage: OriginalStorage, period_s: float | None, *, min_bytes_per_s: int = MIN_BYTES_PER_S
) -> AsyncIterator[None]:
    """Scrubs for the length of the context, or never if `period_s` is None."""
    if period_s is None:
        yield
        return
    scrub = Scrub(database, storage, period_s, min_bytes_per_s)
    try:
        async with running(scrub.run()):
            yield
    finally:
        with suppress(ServiceError):  # the lease expires by itself
            await scrub.release()


class LeaseLost(Exception):
    """Another worker has the lease: this one was stopped for longer than the lease lasts."""


class Scrub:
    """The scrub of one worker, at least at `min_bytes_per_s`."""

    def __init__(self, database: Database, storage: OriginalStorage, period_s: float, min_bytes_per_s: int) -> None:
        self._database = database
        self._storage = storage
        self._period_s = period_s
        self._min_bytes_per_s = min_bytes_per_s
        self._poll_interval_s = min(_POLL_INTERVAL_S, period_s / 10)
        self._holder = name_worker()
        # Only its I/O priority is idle. With a low CPU priority the thread would hold the interpreter's lock for
        # longer, and delay threads for which clients wait.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="scrub", initializer=_set_idle_io_class)
        self._due = 0.0  # when the next read may start
        self._renewed_at = 0.0
        self._consecutive_faults = 0

    async def run(self) -> None:
        """Runs until cancelled."""
        next_log = 0.0
        while True:
            try:
                pause_s = await self._step()
            except LeaseLost:
                pause_s = self._poll_interval_s
            except Exception as error:  # e.g. an outage; no error of the scrub stops the worker
                pause_s = min(_ERROR_PAUSE_S, self._period_s)
                if time.monotonic() >= next_log:
                    log.warning("scrub.paused", error=repr(error))
                    next_log = time.monotonic() + _LOG_INTERVAL_S
            await asyncio.sleep(pause_s)

    async def release(self) -> None:
        async with self._database.connection() as connection:
            await release_lease(connection, self._holder)

    async def _step(self) -> float:
        """Reads some images if this worker has the lease. Returns the seconds until the next step."""
        async with self._database.connection() as connection:
            lease = await acquire_lease(connection, self._holder, _LEASE_S)
            self._renewed_at = time.monotonic()
            if lease is None:
                return self._poll_interval_s
            if lease.is_over:
                if lease.age_s is not None and 0 <= lease.age_s < self._period_s:
                    return min(self._poll_interval_s, self._period_s - lease.age_s)
                await start_round(connection, self._holder)
                return 0
            rows = await list_stored_rows(connection, lease.after_id, _BATCH_SIZE)
            if not rows:
                log.info(
                    "scrub.round_ended",
                    damaged_images=await finish_round(connection, self._holder),
                    round_s=lease.age_s,
                )
                return 0
            rate = self._choose_rate(lease, await sum_cost(connection))
        await self._storage.require_available()
        await self._read(rows, rate)
        return 0

    def _choose_rate(self, lease: ScrubLease, total_cost: int) -> float:
        """Returns the bytes per second at which the round finishes in time. It is higher after a time without
        workers.
        """
        age_s = max(0.0, lease.age_s or 0.0)  # it is negative after the clock of PostgreSQL was set back
        remaining_s = max(_TARGET_SHARE * self._period_s - age_s, _MIN_REMAINING_SHARE * self._period_s)
        return min(max((total_cost - lease.done_cost) / remaining_s, self._min_bytes_per_s), _MAX_BYTES_PER_S)

    async def _read(self, rows: Sequence[StoredRow], rate: float) -> None:
        """Saves the progress every `_SAVE_INTERVAL_S`, and at the end."""
        first, saved_at = 0, time.monotonic()
        faults: dict[ImageId, str] = {}
        for number, row in enumerate(rows, 1):
            fault = await self._find_fault(row, rate)
            if fault is not None:
                faults[row.id] = fault
            self._consecutive_faults = 0 if fault is None else self._consecutive_faults + 1
            if self._consecutive_faults >= _MAX_CONSECUTIVE_FAULTS:
                self._consecutive_faults = 0
                raise OSError(errno.ENODEV, "many consecutive files are missing or damaged: is it the right storage?")
            if number == len(rows) or time.monotonic() - saved_at >= _SAVE_INTERVAL_S:
                await self._save(rows[first:number], faults)
                first, saved_at, faults = number, time.monotonic(), {}

    async def _save(self, rows: Sequence[StoredRow], faults: dict[ImageId, str]) -> None:
        intact = [row.id for row in rows if row.id not in faults]
        num_bytes = sum(row.size for row in rows)
        async with self._database.connection() as connection:
            existing = await list_existing(connection, list(faults)) if faults else set()
            faults = {image_id: fault for image_id, fault in faults.items() if image_id in existing}
            damaged = await record_damaged(connection, faults) if faults else set()
            recovered = await record_intact(connection, intact)
            await advance(connection, self._holder, rows[-1].id, num_bytes + FILE_COST * len(rows))
        for image_id in sorted(damaged):
            path = self._storage.locate(image_id)
            log.error("scrub.damaged", image_id=image_id, what=faults[image_id], path=path)
        for image_id in recovered:
            log.info("scrub.recovered", image_id=image_id)
        metrics.scrub_images.inc(len(rows))
        metrics.scrub_bytes.inc(num_bytes)
        metrics.scrub_damaged.inc(len(damaged))

    async def _find_fault(self, row: StoredRow, rate: float) -> str | None:
        """Returns a description of the fault, or None. Raises OSError if the storage is unavailable, and LeaseLost."""
        await self._throttle(FILE_COST, rate)
        try:
            return find_fault(row, *await self._digest(row.id, rate))
        except FileNotFoundError:
            await self._storage.require_available()
            return MISSING
        except OSError as error:
            if error.errno not in _FILE_ERRORS:
                raise
            return f"its file cannot be read: {(error.strerror or str(error)).lower()}"

    async def _digest(self, image_id: ImageId, rate: float) -> tuple[int, bytes]:
        """Returns the size and the SHA-256 of an original."""
        file = await in_thread(self._threads, partial(self._storage.open_file, image_id))
        try:
            digest, size = hashlib.sha256(), 0
            while length := await in_thread(self._threads, partial(_read_into, digest, file)):
                size += length
                await self._throttle(length, rate)
            return size, digest.digest()
        finally:
            file.close()

    async def _throttle(self, cost: int, rate: float) -> None:
        """Waits as long as reading `cost` bytes should take at this rate, and renews the lease meanwhile."""
        self._due = max(self._due, time.monotonic() - _MAX_LAG_S) + cost / rate
        while (remaining_s := self._due - time.monotonic()) > 0:
            await asyncio.sleep(min(remaining_s, _RENEW_INTERVAL_S))
            await self._renew()
        await self._renew()

    async def _renew(self) -> None:
        if time.monotonic() - self._renewed_at < _RENEW_INTERVAL_S:
            return
        async with self._database.connection() as connection:
            if await acquire_lease(connection, self._holder, _LEASE_S) is None:
                raise LeaseLost
        self._renewed_at = time.monotonic()


def _set_idle_io_class() -> None:
    number = _IOPRIO_SET.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, _CALLING_THREAD, _CLASS_IDLE)


def _read_into(digest: hashlib._Hash, file: BufferedReader) -> int:
    data = file.read(_CHUNK_BYTES)
    digest.update(data)
    return len(data)
