"""Keeps renditions as files; if their disk takes none, they are made all the same and sent by the worker."""

from __future__ import annotations

import threading
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

# A rendition that is not kept goes through Redis, and Valkey ends a subscriber's connection at a backlog of 32 MB.
MAX_UNKEPT_BYTES = 8 << 20
# The log says at most this often that the disk takes none.
_REMINDER_S = 60.0


@dataclass(frozen=True, slots=True)
class Rendition:
    """`stored` has the data if the file is small or was not kept."""

    stored: StoredFile
    is_kept: bool = True


class RenditionKeeper:
    """Called from threads. `metrics.renditions_unkept` counts what the disk does not take, and the log says why."""

    def __init__(self, files: RenditionStorage) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._is_failing = False
        self._unkept = 0
        self._reminder_at = 0.0

    def keep(self, key: RenditionKey, data: bytes) -> Rendition:
        """Blocks. Raises Rejected if the rendition can neither be kept nor sent."""
        try:
            stored = self._files.write(key, data)
        except OSError as error:
            return self._send(key, data, error)
        self._note_kept()
        return Rendition(stored)

    def keep_patched(self, key: RenditionKey, places: Sequence[str], patches: Sequence[tuple[int, bytes]]) -> Rendition:
        """A copy of the file at the first of the places that is there, with these bytes, by their offsets, in place of
        as many others. Blocks. Raises OSError if the file cannot be read, and what `keep` does.
        """
        for place in places[:-1]:
            with suppress(FileNotFoundError):
                return self._keep_copy(key, Path(place), patches)
        return self._keep_copy(key, Path(places[-1]), patches)

    def _keep_copy(self, key: RenditionKey, source: Path, patches: Sequence[tuple[int, bytes]]) -> Rendition:
        try:
            stored = self._files.write_patched(key, source, patches)
        except FileNotFoundError:
            raise
        except OSError as error:
            with source.open("rb") as original:
                data = original.read(MAX_UNKEPT_BYTES + 1)
            if len(data) <= MAX_UNKEPT_BYTES:
                data = apply_patches(data, patches)
            return self._send(key, data, error)
        self._note_kept()
        return Rendition(stored)

    def _send(self, key: RenditionKey, data: bytes, cause: OSError) -> Rendition:
        self._note_unkept(cause)
        if len(data) > MAX_UNKEPT_BYTES:
            raise Rejected("storage-unavailable") from cause
        return Rendition(StoredFile(self._files.path(key), len(data), time.time_ns(), data), is_kept=False)

    def _note_unkept(self, cause: OSError) -> None:
        metrics.renditions_unkept.inc()
        with self._lock:
            self._is_failing = True
            self._unkept += 1
            now = time.monotonic()
            if now < self._reminder_at:
                return
            self._reminder_at = now + _REMINDER_S
            unkept = self._unkept
        log.error("renditions.not_kept", folder=self._files.location, unkept=unkept, error=repr(cause))

    def _note_kept(self) -> None:
        if not self._is_failing:
            return
        with self._lock:
            self._is_failing, unkept, self._unkept = False, self._unkept, 0
        log.info("renditions.kept_again", folder=self._files.location, unkept=unkept)
