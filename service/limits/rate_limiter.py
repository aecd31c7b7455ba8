"""Rate limits: a token bucket in Redis for each key. Each process leases some of its tokens at a time.

Why not a library: limits, pyrate-limiter and throttled-py query Redis once for each request, and aiolimiter supports
one process only. Those that support weights grant a request completely or not at all, so the last tokens of a bucket
could not be leased.

In any span of time, a key is admitted for at most the burst, what the rate adds, and one lease for each process.

A request may cost any number of tokens, and its cost may be corrected later. It is admitted if one token is left. The
rest becomes a debt, which the rate pays off before the key is admitted again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import structlog
from redis.asyncio import Redis

from service.accounts.accounts import hash_key
from service.batcher import Batcher, running
from service.config.values import Rate
from service.expiring_cache import ExpiringCache
from service.queue.jobs import UNAVAILABLE
from service.queue.servers import open_pool
from service.telemetry.metrics import metrics

log = structlog.get_logger(__name__)

# A lease is the burst, or the tokens of a second if those are more, divided by this.
_LEASE_PART = 20
# A process that got less than a full lease retries when the next token is available, within these bounds.
_MIN_PAUSE_S = 0.05
_MAX_PAUSE_S = 1.0
_MAX_LEASES = 10_000

_LEASE_TOKENS = Path(__file__).with_name("lease_tokens.lua").read_text()


@dataclass(slots=True)
class RateLimitTimings:
    """Tokens of a lease that are not spent within `lease_ttl_s` go back to the bucket with the next lease.

    A request waits for Redis for at most `timeout_s`. During an outage of Redis no request waits, and one retries in
    the background every `retry_s`. A debt is at most what the rate adds in `max_debt_s`, so that nobody is locked out
    for longer.
    """

    lease_ttl_s: float = 1.0
    timeout_s: float = 0.25
    retry_s: float = 1.0
    max_debt_s: float = 60.0
    max_pause_s: float = _MAX_PAUSE_S


class RateLimitStatus(NamedTuple):
    """The limit of a key after a request: `remaining` more are allowed, and another one after `retry_after_s`
    seconds.
    """

    remaining: int
    retry_after_s: int
    refused: bool


class _LeaseRequest(NamedTuple):
    """`returned` tokens go back to the bucket; a debt is negative."""

    bucket: str
    returned: float


class _Leased(NamedTuple):
    """`forgiven` is the part of a debt beyond the maximum."""

    tokens: int
    remaining: int
    next_token_s: float
    forgiven: int


@dataclass(slots=True)
class Lease:
    """The tokens of a bucket that one process holds. Times are from the monotonic clock.

    `tokens` is negative while the bucket does not know of a debt yet.
    """

    bucket: str
    tokens: float = 0.0
    expires_at: float = 0
    remaining: int = 0  # tokens in the bucket after the last request to it
    forgiven: float = 0.0  # of debts that this process caused
    next_request_at: float = 0
    next_token_at: float = 0
    renewal: asyncio.Task[None] | None = None


class RateLimiter:
    """Limits the requests of keys. During an outage of Redis it admits all of them, and logs that.

    A key is e.g. a client's API key or address. `name` separates the keys of several limits.
    """

    def __init__(
        self,
        redis: Any,
        rate: Rate,
        name: str,
        *,
        timings: RateLimitTimings | None = None,
    ) -> None:
        self.rate = rate
        self.lease_size = max(1, min(rate.burst, int(max(rate.burst, rate.per_s) / _LEASE_PART)))
        self.leases: ExpiringCache[str, Lease] = ExpiringCache(_MAX_LEASES)
        self.timings = timings or RateLimitTimings()
        self._prefix = f"daguerre:{name}:"
        self._redis = redis
        self._script = redis.register_script(_LEASE_TOKENS)
        self._batcher: Batcher[_LeaseRequest, _Leased | None] = Batcher(self._lease_batch)
        self._unavailable_since: float | None = None
        self._retry_at = 0.0
        self._retrying = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls, redis_url: str, rate: Rate, name: str = "rate", *, timings: RateLimitTimings | None = None
    ) -> AsyncIterator[Self]:
        """Uses its own connection, because the queue's timeouts are longer."""
        timings = timings or RateLimitTimings()
        pool = open_pool(redis_url, timeout_s=timings.timeout_s, connect_timeout_s=timings.timeout_s, max_connections=1)
        redis = Redis(connection_pool=pool)
        try:
            self = cls(redis, rate, name, timings=timings)
            async with running(self._batcher.run()):
                yield self
        finally:
            await redis.aclose(close_connection_pool=True)

    async def admit(self, key: str, cost: float = 1.0) -> RateLimitStatus | None:
        """Counts a request, which costs at least one token. Returns None if it is admitted without a check."""
        lease = self._find_lease(key)
        while True:
            now = time.monotonic()
            if lease.tokens >= 1 and now < lease.expires_at:
                self._add(lease, -cost)
                remaining = max(0, int(lease.tokens + lease.remaining))
                return RateLimitStatus(remaining, self.rate.next_after_s, refused=False)
            if now < lease.next_request_at:
                return RateLimitStatus(0, max(1, math.ceil(lease.next_token_at - now)), refused=True)
            if self._unavailable_since is not None:
                if now >= self._retry_at and lease.renewal is None:
                    self._retry_at = now + self.timings.retry_s
                    self._retrying = True
                    self._renew(lease)
                metrics.rate_limit_unchecked.inc()
                return None
            await asyncio.shield(lease.renewal or self._renew(lease))

    def correct(self, key: str, tokens: float) -> None:
        """Returns tokens of an earlier request, or takes more for it if `tokens` is negative."""
        self._add(self._find_lease(key), tokens)

    def retry_after_s(self, key: str) -> int:
        """Returns the seconds for which this process knows that the key has no tokens, or 0 if it does not know.

        Counts nothing and does not query Redis. The result is valid until the next token is due, even if `admit` would
        query earlier.
        """
        lease = self.leases.get(key)
        now = time.monotonic()
        if lease is None or lease.tokens >= 1 or now >= lease.next_token_at:
            return 0
        return max(1, math.ceil(lease.next_token_at - now))

    def _find_lease(self, key: str) -> Lease:
        lease = self.leases.get(key)
        if lease is None:
            lease = Lease(self._prefix + hash_key(key).hex())
            self.leases.put(key, lease)
        return lease

    def _add(self, lease: Lease, tokens: float) -> None:
        """Adds tokens to the lease. Debts go to the bucket immediately, for all processes, and so do returned tokens
        while it may be in debt.

        Forgiven tokens are not returned.
        """
        if tokens > 0:
            unpaid = min(tokens, lease.forgiven)
            lease.forgiven -= unpaid
            tokens -= unpaid
        lease.tokens += tokens
        in_debt = lease.tokens < 0 or (tokens > 0 and time.monotonic() < lease.next_request_at)
        if in_debt and lease.renewal is None and self._unavailable_since is None:
            self._renew(lease)

    def _renew(self, lease: Lease) -> asyncio.Task[None]:
        """Starts a renewal, which all waiting requests of the key share."""
        lease.renewal = asyncio.create_task(self._renew_lease(lease))
        return lease.renewal

    async def _renew_lease(self, lease: Lease) -> None:
        returned, lease.tokens = lease.tokens, 0.0
        try:
            leased = await self._batcher.submit(_LeaseRequest(lease.bucket, returned))
        finally:
            lease.renewal = None
        if leased is None:
            return
        now = time.monotonic()
        lease.tokens += leased.tokens  # corrections that arrived meanwhile count
        lease.remaining = leased.remaining
        lease.forgiven += leased.forgiven
        lease.expires_at = now + self.timings.lease_ttl_s
        lease.next_token_at = now + leased.next_token_s
        is_full = leased.tokens == self.lease_size
        pause_s = 0.0 if is_full else min(max(leased.next_token_s, _MIN_PAUSE_S), self.timings.max_pause_s)
        lease.next_request_at = now + pause_s

    async def _lease_batch(self, requests: Sequence[_LeaseRequest]) -> list[_Leased | None]:
        """Leases tokens of all these buckets in one round trip. Returns None for each if Redis is unavailable."""
        if self._unavailable_since is not None and not self._retrying:  # they waited while the previous batch failed
            return [None] * len(requests)
        self._retrying = False
        args: list[Any] = [self.rate.per_s / 1000, self.rate.burst, self.rate.per_s * self.timings.max_debt_s]
        for request in requests:
            args += (self.lease_size, request.returned)
        try:
            async with asyncio.timeout(self.timings.timeout_s):
                if self._unavailable_since is not None:
                    await self._redis.ping()  # a Redis that hangs would run the script later, and lease tokens in vain
                leases = await self._script(keys=[request.bucket for request in requests], args=args)
        except UNAVAILABLE as error:
            self._record_outage(error)
            return [None] * len(requests)
        self._record_recovery()
        return [
            _Leased(tokens, remaining, wait_ms / 1000, forgiven)
            for tokens, remaining, wait_ms, forgiven in zip(*(leases[offset::4] for offset in range(4)), strict=True)
        ]

    def _record_outage(self, error: Exception) -> None:
        now = time.monotonic()
        self._retry_at = now + self.timings.retry_s
        if self._unavailable_since is None:
            self._unavailable_since = now
            log.warning("rate_limit.suspended", error=repr(error))

    def _record_recovery(self) -> None:
        if self._unavailable_since is not None:
            log.info("rate_limit.recovered", seconds=round(time.monotonic() - self._unavailable_since, 1))
            self._unavailable_since = None
