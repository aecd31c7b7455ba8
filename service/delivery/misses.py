"""Guesses at ids: an address that asks for many that do not exist is told nothing for a while, right guess or wrong."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from service.errors import ServiceError
from service.limits.buckets import RateLimiter

# Who has one IPv6 address has all of these.
_IPV6_NETWORK_BITS = 64


class Misses:
    """`limiter` is None where there is no limit."""

    def __init__(self, limiter: RateLimiter | None) -> None:
        self._limiter = limiter

    def check(self, address: str) -> None:
        """Raises `too-many-misses` where this process knows that the address has none left."""
        if self._limiter is not None and (seconds := self._limiter.refused_for_s(_network(address))):
            raise ServiceError("too-many-misses", retry_after_s=seconds)

    async def count(self, address: str) -> None:
        """One more. Raises `too-many-misses`."""
        if self._limiter is None:
            return
        standing = await self._limiter.admit(_network(address))
        if standing is not None and standing.refused:
            raise ServiceError("too-many-misses", retry_after_s=standing.next_s)


@lru_cache(4096)
def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a socket without one
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _IPV6_NETWORK_BITS), strict=False))
