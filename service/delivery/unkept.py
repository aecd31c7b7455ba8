"""Renditions that no disk takes are sent from memory, and slow clients hold them there: this bounds them."""

from __future__ import annotations

import weakref

from service.errors import ServiceError

# Of one process, in bytes.
MAX_UNSTORED_BYTES = 64 << 20


class UnkeptBytes:
    """The bytes of answers under way that no disk has."""

    def __init__(self, limit: int = MAX_UNSTORED_BYTES) -> None:
        self._limit = limit
        self.held = 0

    def hold(self, answer: object, size: int) -> None:
        """Counts the bytes for as long as the answer lives. Raises `busy` if there are too many."""
        if self.held + size > self._limit:
            raise ServiceError("busy", "Too many renditions are sent from memory; try again shortly.")
        self.held += size
        weakref.finalize(answer, self._release, size)

    def _release(self, size: int) -> None:
        self.held -= size
