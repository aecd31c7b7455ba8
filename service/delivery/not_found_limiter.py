"""Guesses at ids: an address that asks for many that do not exist is told nothing for a while, right guess or wrong."""

from __future__ import annotations

from service.addresses import client_network
from service.errors import ServiceError
from service.limits.rate_limiter import RateLimiter


class Misses:
    """`limiter` is None where there is no limit."""

    def __init__(self, limiter: RateLimiter | None) -> None:
        self._limiter = limiter

    def check(self, address: str) -> None:
        """Raises `too-many-misses` where this process knows that the address has none left."""
        if self._limiter is not None and (seconds := self._limiter.retry_after_s(client_network(address))):
            raise ServiceError("too-many-misses", retry_after_s=seconds)

    async def count(self, address: str) -> None:
        """One more. Raises `too-many-misses`."""
        if self._limiter is None:
            return
        standing = await self._limiter.admit(client_network(address))
        if standing is not None and standing.refused:
            raise ServiceError("too-many-misses", retry_after_s=standing.retry_after_s)
