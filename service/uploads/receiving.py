"""A body becomes a file."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.errors import ServiceError
from service.ids import ImageId, new_image_id
from service.storage.disk import DiskStorage
from service.storage.incoming import IncomingFile
from service.telemetry.metrics import metrics

# A write costs a thread's turn whatever its size, so it is worth gathering the chunks that arrive. Times the uploads
# in flight, this is a good part of the memory that bodies take (`./run bench memory` prints the peak).
_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """`idle_timeout_s` bounds a pause of the sender, `timeout_s` the whole body."""

    max_bytes: int
    idle_timeout_s: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Upload:
    """A received body: its file is finished, and still to be sealed."""

    id: ImageId
    size: int
    sha256: bytes
    file: IncomingFile


async def receive(chunks: AsyncIterator[bytes], storage: DiskStorage, limits: UploadLimits) -> Upload:
    """Stream a body to disk, hashing and counting on the way.

    Raises `empty-body`, `upload-too-large` at the first byte over the limit, `upload-timeout` when the sender pauses
    or takes for too long, and what `chunks` raises; nothing is left behind then.
    """
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await _receive(chunks, storage, limits)
    except TimeoutError:
        raise ServiceError("upload-timeout") from None


async def _receive(chunks: AsyncIterator[bytes], storage: DiskStorage, limits: UploadLimits) -> Upload:
    image_id = new_image_id()
    hasher = hashlib.sha256()
    size = gathered = 0
    piece: list[bytes] = []
    try:
        async with storage.receive(image_id) as file:
            while (chunk := await _next(chunks, limits.idle_timeout_s)) is not None:
                size += len(chunk)
                if size > limits.max_bytes:
                    raise too_large(limits.max_bytes)
                hasher.update(chunk)
                piece.append(chunk)
                gathered += len(chunk)
                if gathered >= _PIECE_BYTES:
                    await file.write(piece)
                    piece, gathered = [], 0
            if not size:
                raise ServiceError("empty-body")
            await file.finish(piece)
    finally:
        metrics.upload_bytes.inc(size)
    return Upload(image_id, size, hasher.digest(), file)


async def _next(chunks: AsyncIterator[bytes], idle_timeout_s: float) -> bytes | None:
    async with asyncio.timeout(idle_timeout_s):
        return await anext(chunks, None)


def too_large(max_bytes: int) -> ServiceError:
    return ServiceError("upload-too-large", f"The picture is larger than this server accepts: {max_bytes} bytes.")
