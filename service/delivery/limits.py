"""Limits of delivery: guessed ids, and the memory that slow clients hold."""

from __future__ import annotations

import weakref

from service.addresses import client_network
from service.errors import ServiceError
from service.limits.rate_limiter import RateLimiter

# The default of MemoryBudget, for one process.
MAX_BYTES_IN_MEMORY = 64 << 20


class NotFoundLimiter:
    """Limits how many unknown ids an address may request, so that nobody can guess ids.

    Over its limit an address gets a 429 for every id, so that it cannot learn which exist. `limiter` is None if there
    is no limit.
    """

    def __init__(self, limiter: RateLimiter | None) -> None:
        self._limiter = limiter

    def check(self, address: str) -> None:
        """Raises `too-many-misses` if this process knows that the address is over its limit. Does not count the
        request.
        """
        if self._limiter is not None and (seconds := self._limiter.retry_after_s(client_network(address))):
            raise ServiceError("too-many-misses", retry_after_s=seconds)

    async def count(self, address: str) -> None:
        """Counts one id that was not found. Raises `too-many-misses`."""
        if self._limiter is None:
            return
        status = await self._limiter.admit(client_network(address))
        if status is not None and status.refused:
            raise ServiceError("too-many-misses", retry_after_s=status.retry_after_s)


class MemoryBudget:
    """Bounds the memory of responses in flight whose file is in memory only: large renditions that could not be stored.

    A slow client holds such a response in memory until it has read it.
    """

    def __init__(self, limit: int = MAX_BYTES_IN_MEMORY) -> None:
        self._limit = limit
        self.held = 0

    def hold(self, response: object, size: int) -> None:
        """Counts `size` bytes until `response` is garbage-collected. Raises `busy` if that exceeds the limit."""
        if self.held + size > self._limit:
            raise ServiceError("busy", "Too many renditions are being sent from memory; try again shortly.")
        self.held += size
        weakref.finalize(response, self._release, size)

    def _release(self, size: int) -> None:
        self.held -= size
