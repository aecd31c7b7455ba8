"""Writes renditions to disk. If that fails, they are sent through Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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
        self._lock = threading.Lock()
        self._is_failing = False
        self._failures = 0  # since the last success
        self._next_log = 0.0

    async def write(self, key: RenditionKey, data: bytes) -> Rendition:
        """Raises Rejected if the rendition can neither be stored nor sent."""
        return await self._files.run(partial(self._write, key, data), size=len(data))

    def _write(self, key: RenditionKey, data: bytes) -> Rendition:
        try:
            stored = self._files.write(key, data)
        except OSError as error:
            return self._send(key, data, error)
        self._record_success()
        return Rendition(stored)

    def write_patched(self, key: RenditionKey, paths: Sequence[str], patches: Sequence[tuple[int, bytes]]) -> Rendition:
        """Writes a copy of the file at the first of the paths that exists, with the bytes of `patches` at their
        offsets.

        Blocks. Raises OSError if the file cannot be read, and Rejected as `write` does.
        """
        for path in paths[:-1]:
            with suppress(FileNotFoundError):
                return self._write_copy(key, Path(path), patches)
        return self._write_copy(key, Path(paths[-1]), patches)

    def _write_copy(self, key: RenditionKey, source: Path, patches: Sequence[tuple[int, bytes]]) -> Rendition:
        try:
            stored = self._files.write_patched(key, source, patches)
        except FileNotFoundError:
            raise
        except OSError as error:
            with source.open("rb") as original:
                data = original.read(MAX_UNSTORED_BYTES + 1)
            if len(data) <= MAX_UNSTORED_BYTES:
                data = apply_patches(data, patches)
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
        with self._lock:
            self._is_failing = True
            self._failures += 1
            now = time.monotonic()
            if now < self._next_log:
                return
            self._next_log = now + _LOG_INTERVAL_S
            failures = self._failures
        log.error("renditions.write_failed", folder=self._files.location, failures=failures, error=repr(cause))

    def _record_success(self) -> None:
        if not self._is_failing:
            return
        with self._lock:
            self._is_failing, failures, self._failures = False, self._failures, 0
        log.info("renditions.write_recovered", folder=self._files.location, failures=failures)
