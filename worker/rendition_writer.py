"""Writes renditions to disk. If that fails, they are sent through Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from service.images.probe import Rejected
from service.storage.files import apply_patches
from service.storage.interface import RenditionKey, RenditionStorage, StoredFile
from service.telemetry.metrics import metrics

log = structlog.get_logger("worker")

# A rendition that is not on disk goes through Redis, and Valkey closes a subscriber's connection at a backlog of 32 MB.
MAX_UNSTORED_BYTES = 8 << 20
# The log reports a failing disk at most this often.
_LOG_INTERVAL_S = 60.0


@dataclass(frozen=True, slots=True)
class Rendition:
    """`stored` contains the data if the file is small or was not stored."""

    stored: StoredFile
    is_stored: bool = True


class RenditionWriter:
    """`metrics.renditions_unkept` counts the renditions that could not be stored."""

    def __init__(self, files: RenditionStorage) -> None:
        self._files = files
        self._is_failing = False
        self._failures = 0  # since the last success
        self._next_log = 0.0

    async def write(self, key: RenditionKey, data: bytes) -> Rendition:
        """Raises Rejected if the rendition can neither be stored nor sent."""
        try:
            stored = await self._files.write(key, data)
        except OSError as error:
            return self._send(key, data, error)
        self._record_success()
        return Rendition(stored)

    async def write_patched(
        self, key: RenditionKey, paths: Sequence[str], patches: Sequence[tuple[int, bytes]]
    ) -> Rendition:
        """Writes a copy of the file at the first of the paths that exists, with the bytes of `patches` at their
        offsets.

        Raises OSError if the file cannot be read, and Rejected as `write` does.
        """
        for path in paths[:-1]:
            with suppress(FileNotFoundError):
                return await self._write_copy(key, Path(path), patches)
        return await self._write_copy(key, Path(paths[-1]), patches)

    async def _write_copy(self, key: RenditionKey, source: Path, patches: Sequence[tuple[int, bytes]]) -> Rendition:
        try:
            stored = await self._files.write_patched(key, source, patches)
        except FileNotFoundError:
            raise
        except OSError as error:
            data = await asyncio.to_thread(_read_patched, source, patches)
            return self._send(key, data, error)
        self._record_success()
        return Rendition(stored)

    def _send(self, key: RenditionKey, data: bytes, cause: OSError) -> Rendition:
        self._record_failure(cause)
        if len(data) > MAX_UNSTORED_BYTES:
            raise Rejected("storage-unavailable") from cause
        return Rendition(StoredFile(self._files.path(key), len(data), time.time_ns(), data), is_stored=False)

    def _record_failure(self, cause: OSError) -> None:
        metrics.renditions_unkept.inc()
        self._is_failing = True
        self._failures += 1
        now = time.monotonic()
        if now < self._next_log:
            return
        self._next_log = now + _LOG_INTERVAL_S
        log.error("renditions.write_failed", folder=self._files.location, failures=self._failures, error=repr(cause))

    def _record_success(self) -> None:
        if not self._is_failing:
            return
        self._is_failing, failures, self._failures = False, self._failures, 0
        log.info("renditions.write_recovered", folder=self._files.location, failures=failures)


def _read_patched(source: Path, patches: Sequence[tuple[int, bytes]]) -> bytes:
    """Returns the patched content of a file, or more than `MAX_UNSTORED_BYTES` of it. Blocks; raises OSError."""
    with source.open("rb") as file:
        data = file.read(MAX_UNSTORED_BYTES + 1)
    return apply_patches(data, patches) if len(data) <= MAX_UNSTORED_BYTES else data
