"""Admits a body, reserves its bytes in the account's quota, and streams it to a file."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from service.accounts.accounts import Account, load_account
from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.expiring_cache import LOOKUP_TTL_S
from service.ids import AccountId, ImageId
from service.images.idempotency import find_used_keys
from service.images.models import IdempotencyKey
from service.images.pending import new_image_id
from service.limits.slots import GRACE_S, Pace, PreemptibleSlot, PreemptibleSlots
from service.queue.waiter import Subscriber
from service.shared_memory.in_flight_bytes import InFlightBytes
from service.storage.interface import OriginalStorage, UploadFile
from service.telemetry.metrics import metrics

# Each write costs a thread switch, so chunks are gathered. Multiplied by the uploads in flight, this is a large part of
# the memory of bodies (`./run bench memory` prints the peak).
_WRITE_BYTES = 256 * 1024

# The pace of a body that is nearly too slow is not checked more often than this.
_MIN_CHECK_INTERVAL_S = 0.01


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """`idle_timeout_s` bounds a pause of the sender, and `timeout_s` the whole body."""

    max_bytes: int
    idle_timeout_s: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class AdmittedBody:
    """The resources that an admitted body holds until the block ends: a slot, and reserved bytes of its account."""

    slots: PreemptibleSlots
    slot: PreemptibleSlot
    reservation: Reservation

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.slots.release(self.slot)
        self.reservation.close()


@dataclass(frozen=True, slots=True)
class Upload:
    """A received body. Its file is complete, but not synced yet."""

    id: ImageId
    size: int
    sha256: bytes
    file: UploadFile
    reservation: Reservation | None = None


async def receive(
    chunks: AsyncIterator[bytes], storage: OriginalStorage, limits: UploadLimits, body: AdmittedBody | None = None
) -> Upload:
    """Streams a body to disk, and hashes and counts it. Without `body`, only `limits` apply.

    Raises `empty-body`, `upload-too-large` at the first byte over the limit, `quota-exceeded` at the first byte that
    the account has no room for, `upload-timeout` if the sender pauses or takes too long or is slower than the minimum
    pace, `busy` if another body takes its slot, and what `chunks` raises. No file is left behind after an error.
    """
    pace, reservation = (body.slot.pace, body.reservation) if body else (Pace(), None)
    try:
        async with _time_limit(limits, pace):
            return await _receive(chunks, storage, limits.max_bytes, pace, reservation)
    except TimeoutError:
        raise ServiceError("upload-timeout") from None


async def _receive(
    chunks: AsyncIterator[bytes],
    storage: OriginalStorage,
    max_bytes: int,
    pace: Pace,
    reservation: Reservation | None,
) -> Upload:
    image_id = new_image_id()
    hasher = hashlib.sha256()
    pending_bytes = 0
    pending: list[bytes] = []
    try:
        async with storage.receive(image_id) as file:
            pace.start_wait()
            async for chunk in chunks:
                pace.end_wait(len(chunk))
                if pace.size > max_bytes:
                    raise too_large(max_bytes)
                if reservation is not None and pace.size > reservation.size:
                    await reservation.cover(pace.size)
                hasher.update(chunk)
                pending.append(chunk)
                pending_bytes += len(chunk)
                if pending_bytes >= _WRITE_BYTES:
                    await file.write(pending)
                    pending, pending_bytes = [], 0
                pace.start_wait()
            pace.end_wait(0)
            if not pace.size:
                raise ServiceError("empty-body")
            await file.finish(pending)
    finally:
        metrics.upload_bytes.inc(pace.size)
    return Upload(image_id, pace.size, hasher.digest(), file, reservation)


@asynccontextmanager
async def _time_limit(limits: UploadLimits, pace: Pace) -> AsyncIterator[None]:
    """Raises TimeoutError if the block takes longer than the limits, or the transfer is too slow.

    It is one timer, which checks the pace when the body may have become too slow. A timer for each chunk would cost
    more than the chunk.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def check() -> None:
        nonlocal timer
        if scope.expired():  # the block may still wait for a thread
            return
        remaining_s = min(limits.idle_timeout_s - pace.current_wait_s, pace.remaining_s)
        if remaining_s <= 0:
            scope.reschedule(loop.time())
        else:
            timer = loop.call_later(max(remaining_s, _MIN_CHECK_INTERVAL_S), check)

    async with asyncio.timeout(limits.timeout_s) as scope:
        check()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()


def too_large(max_bytes: int) -> ServiceError:
    return ServiceError("upload-too-large", f"The picture is larger than this server accepts: {max_bytes} bytes.")


# Only a quarter (1 / this) of the account's remaining bytes may be reserved without a check, because other processes
# may have stored images since.
_UNCHECKED_PART = 4
_NEAR_QUOTA_TTL_S = 1.0
# How long a repeated request waits for its turn, and how often it checks whether another process has released bytes.
_MAX_TURN_WAIT_S = 10.0
_TURN_POLL_INTERVAL_S = 0.25


@dataclass(slots=True)
class _AccountTotal:
    """The reservations of one account in this process.

    `limit` bounds the reserved bytes until `limit_expires_at`. `stored` counts the bytes that went to rows. The
    repeated request that waits for `released` holds `turn`.
    """

    reserved: int = 0
    limit: int = 0
    limit_expires_at: float = 0.0
    stored: int = 0
    holders: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class Reservation:
    """The reserved bytes of one body, 0 at first."""

    __slots__ = ("_key", "_reservations", "_total", "account", "size")

    def __init__(
        self, account: Account, key: IdempotencyKey | None, reservations: Reservations, total: _AccountTotal
    ) -> None:
        self.account = account
        self.size = 0
        self._key = key
        self._reservations = reservations
        self._total = total

    async def cover(self, size: int) -> None:
        """Grows the reservation to `size` bytes.

        Raises `quota-exceeded`, `busy` for a repeated request that gets no turn, and `database-unavailable`.
        """
        more = size - self.size
        if more <= 0:
            return
        if self._fits_unchecked(more) or await self._fits(more):
            self._add(more)
        elif self._key is None:
            raise ServiceError("quota-exceeded")
        else:
            await self._cover_repeat(more, self._key)

    def hand_over(self) -> None:
        """Releases the bytes before the row is inserted, which decides the quota."""
        self._total.stored += self.size
        self._total.limit -= self.size
        self.release()

    def release(self) -> None:
        if self.size:
            self._add(-self.size)

    def close(self) -> None:
        self.release()
        self._reservations.remove_holder(self.account.id, self._total)

    def _add(self, more: int) -> None:
        self.size += more
        self._total.reserved += more
        self._reservations.shared.put(self.account.id, self._total.reserved)
        if more < 0:
            self._total.released.set()

    def _sum(self, more: int) -> int:
        """Returns the account's reserved bytes in all processes, and `more`."""
        return self._total.reserved + self._reservations.shared.count_others(self.account.id) + more

    def _fits_unchecked(self, more: int) -> bool:
        return time.monotonic() < self._total.limit_expires_at and self._sum(more) <= self._total.limit

    async def _fits(self, more: int) -> bool:
        stored = self._total.stored
        try:
            account = await self._reservations.load_account(self.account.id)
        except ServiceError:
            if self._sum(more) <= self._total.limit:  # bodies continue while the database is unavailable
                return True
            raise
        # Rows that were inserted during the query may or may not be in its result. They are no reason to refuse this
        # body, but count for later ones.
        remaining, reserved = account.remaining_bytes - (self._total.stored - stored), self._sum(more)
        is_far = reserved <= remaining // _UNCHECKED_PART
        self._total.limit = remaining // _UNCHECKED_PART if is_far else remaining
        self._total.limit_expires_at = time.monotonic() + (LOOKUP_TTL_S if is_far else _NEAR_QUOTA_TTL_S)
        return reserved <= account.remaining_bytes

    async def _cover_repeat(self, more: int, key: IdempotencyKey) -> None:
        """Like `cover`, for a repeated request. The image that already has the key may fill the account, which is no
        reason to refuse.
        """
        try:
            async with asyncio.timeout(_MAX_TURN_WAIT_S), self._total.turn:
                while not await self._repeat_fits(more, key):
                    if self.size:  # it holds bytes that others may wait for
                        raise ServiceError("busy")
                    self._total.released.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_TURN_POLL_INTERVAL_S):
                            await self._total.released.wait()
                self._add(more)
        except TimeoutError:
            raise ServiceError("busy") from None

    async def _repeat_fits(self, more: int, key: IdempotencyKey) -> bool:
        """Returns whether it fits in addition to all reservations. Raises `quota-exceeded` if it would not fit without
        them.
        """
        account = await self._reservations.load_account(self.account.id)
        size, room = self.size + more, account.remaining_bytes
        if size > room:
            room = max(account.max_bytes, account.used_bytes)
            if size > room or not await self._reservations.is_used(account.id, key):
                raise ServiceError("quota-exceeded")
        return self._sum(more) <= room


class Reservations:
    """The reservations of one process: bytes of bodies in flight, which count against the quota of their account.

    A body reserves its declared length, or grows its reservation as it arrives. While an account's reservations are
    within a quarter of its cached remaining bytes, the database is not queried. Beyond that it is, about once a second
    for an account that is not full. The insert of the row decides the quota itself.

    Repeated requests with the same Idempotency-Key need no more room than one of them. Those that do not fit at the
    same time take turns. `shared` has the reservations of the other processes on this machine.
    """

    def __init__(self, database: Database, shared: InFlightBytes) -> None:
        self.shared = shared
        self._database = database
        self._by_account: dict[AccountId, _AccountTotal] = {}

    @property
    def reserved(self) -> int:
        """The reserved bytes of all accounts in this process."""
        return sum(total.reserved for total in self._by_account.values())

    def open(self, account: Account, key: IdempotencyKey | None) -> Reservation:
        """Returns an empty reservation, which the caller closes. `account` is at most some seconds old."""
        total = self._by_account.get(account.id)
        if total is None:
            total = self._by_account[account.id] = _AccountTotal()
        now = time.monotonic()
        if now >= total.limit_expires_at:
            total.limit, total.limit_expires_at = account.remaining_bytes // _UNCHECKED_PART, now + LOOKUP_TTL_S
        total.holders += 1
        return Reservation(account, key, self, total)

    def remove_holder(self, account_id: AccountId, total: _AccountTotal) -> None:
        total.holders -= 1
        if not total.holders:
            del self._by_account[account_id]

    async def load_account(self, account_id: AccountId) -> Account:
        async with self._database.connection() as connection:
            return await load_account(connection, account_id)

    async def is_used(self, account_id: AccountId, key: IdempotencyKey) -> bool:
        """Returns whether the key belongs to an image."""
        async with self._database.connection() as connection:
            return bool(await find_used_keys(connection, [(account_id, key.text)]))


class Admission:
    """Decides before the first byte of a body whether a client may send it.

    `results` is the subscriber of job replies; while it is not connected, jobs cannot be enqueued either.
    """

    def __init__(self, settings: Settings, reservations: Reservations, results: Subscriber[Any]) -> None:
        self._max_bytes = settings.max_upload
        self._upload_grace_s = max(GRACE_S, settings.upload_idle_timeout_s)
        self._reservations = reservations
        self._results = results
        self._uploads = PreemptibleSlots(settings.uploads_in_flight, metrics.uploads_in_flight)
        self._downloads = PreemptibleSlots(settings.downloads_in_flight, metrics.downloads_in_flight)

    async def upload(self, account: Account, length: int | None, key: IdempotencyKey | None) -> AdmittedBody:
        """Reserves a slot, and bytes of the account's quota, for a body of this declared length.

        Raises `upload-too-large`, `empty-body`, `quota-exceeded`, `busy`, and `queue-unavailable` while no job can be
        enqueued.
        """
        reservation = self._reservations.open(account, key)
        try:
            await self.reserve(reservation, length)
            return self._admit(self._uploads, reservation, self._upload_grace_s)
        except BaseException:
            reservation.close()
            raise

    async def download(self, account: Account, key: IdempotencyKey | None) -> AdmittedBody:
        """Like `upload`, for a file from a URL. Downloads have their own slots, so that slow origins do not block
        uploads.
        """
        reservation = self._reservations.open(account, key)
        try:
            await self.reserve(reservation, None)
            reservation.release()  # until its length is known, it reserves nothing
            return self._admit(self._downloads, reservation, math.inf)  # the timeouts of the origin expire first
        except BaseException:
            reservation.close()
            raise

    async def reserve(self, reservation: Reservation, length: int | None) -> None:
        """Reserves a file's declared length, if it has one. The bytes that arrive are counted in any case.

        Raises `upload-too-large`, `empty-body`, `quota-exceeded`.
        """
        if length is not None and length > self._max_bytes:
            raise too_large(self._max_bytes)
        if length == 0:
            raise ServiceError("empty-body")
        await reservation.cover(length or 1)

    def _admit(self, slots: PreemptibleSlots, reservation: Reservation, grace_s: float) -> AdmittedBody:
        if not self._results.connected:
            raise ServiceError("queue-unavailable")
        pace = Pace(grace_s)
        pace.start_wait()
        return AdmittedBody(slots, slots.acquire(reservation.account.id, pace), reservation)
