"""Streams a request body to a file."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from service.errors import ServiceError
from service.ids import ImageId, new_image_id
from service.limits.pace import Pace
from service.limits.slots import PreemptibleSlot, PreemptibleSlots
from service.storage.interface import OriginalStorage, UploadFile
from service.telemetry.metrics import metrics
from service.uploads.reservations import Reservation

# A write costs a switch of threads whatever its size, so chunks are gathered. Times the uploads in flight, this is a
# good part of the memory that bodies take (`./run bench memory` prints the peak).
_WRITE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """`idle_timeout_s` bounds a pause of the sender, and `timeout_s` the whole body."""

    max_bytes: int
    idle_timeout_s: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Body:
    """What an admitted body holds until the block ends: a slot, and bytes of its account."""

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
    chunks: AsyncIterator[bytes], storage: OriginalStorage, limits: UploadLimits, body: Body | None = None
) -> Upload:
    """Streams a body to disk, hashing and counting on the way. Without `body` only `limits` apply.

    Raises `empty-body`, `upload-too-large` at the first byte over the limit, `quota-exceeded` at the first byte that
    the account has no room for, `upload-timeout` if the sender pauses or takes too long or is slower than the minimum
    pace, `busy` if another body takes its slot, and what `chunks` raises. Then no file is left behind.
    """
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await _receive(chunks, storage, limits, body)
    except TimeoutError:
        raise ServiceError("upload-timeout") from None


async def _receive(
    chunks: AsyncIterator[bytes], storage: OriginalStorage, limits: UploadLimits, body: Body | None
) -> Upload:
    image_id = new_image_id()
    hasher = hashlib.sha256()
    pace, reservation = (body.slot.pace, body.reservation) if body else (Pace(), None)
    pending_bytes = 0
    pending: list[bytes] = []
    try:
        async with storage.receive(image_id) as file:
            while (chunk := await _next(chunks, pace, limits.idle_timeout_s)) is not None:
                if pace.size > limits.max_bytes:
                    raise too_large(limits.max_bytes)
                if reservation is not None and pace.size > reservation.size:
                    await reservation.cover(pace.size)
                hasher.update(chunk)
                pending.append(chunk)
                pending_bytes += len(chunk)
                if pending_bytes >= _WRITE_BYTES:
                    await file.write(pending)
                    pending, pending_bytes = [], 0
            if not pace.size:
                raise ServiceError("empty-body")
            await file.finish(pending)
    finally:
        metrics.upload_bytes.inc(pace.size)
    return Upload(image_id, pace.size, hasher.digest(), file, reservation)


async def _next(chunks: AsyncIterator[bytes], pace: Pace, idle_timeout_s: float) -> bytes | None:
    pace.begin_wait()
    async with asyncio.timeout(min(idle_timeout_s, pace.left_s)):
        chunk = await anext(chunks, None)
    pace.end_wait(len(chunk or b""))
    return chunk


def too_large(max_bytes: int) -> ServiceError:
    return ServiceError("upload-too-large", f"The picture is larger than this server accepts: {max_bytes} bytes.")
