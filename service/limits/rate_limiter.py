"""How often something may be done: a bucket of tokens in Redis for each key, of which each process takes a block at a
time.

Of the libraries for this, limits, pyrate-limiter and throttled-py ask Redis once for each request, and aiolimiter knows
one process only. Where a request may have a weight it is granted whole or refused, so that the last tokens of a bucket
could not be had as a block.

In any span of time, a key is let through for at most the burst, what the rate adds, and a block for each process.

A request may cost any number of tokens, and its cost may be corrected later. It is let through if one token is left;
the rest becomes a debt, which the rate pays off before the key is let through again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import structlog
from redis.asyncio import Redis

from service.accounts.api_keys import hash_key
from service.batcher import Batcher, running
from service.config.rates import Rate
from service.queue.jobs import UNAVAILABLE
from service.telemetry.metrics import metrics

log = structlog.get_logger(__name__)

# A block is this part of the burst, or of a second's tokens if those are more; what a process has not spent of it after
# so long goes back to the bucket when it takes the next.
_BLOCK_PART = 20
_KEEP_S = 1.0
# A process that was given less than it asked for asks again when there is a token, within these bounds.
_LEAST_PAUSE_S = 0.05
_MOST_PAUSE_S = 1.0
# A request waits so long for Redis at most. Then none waits, and one is asked on the side every `_RETRY_S`.
_TIMEOUT_S = 0.25
_RETRY_S = 1.0
_REMEMBERED_KEYS = 10_000
# A debt is at most what the rate adds in this time, so that nobody is locked out for longer.
MAX_DEBT_S = 60

# By the clock of Redis, which all processes share. A bucket that is full again is as good as none, and expires.
_TAKE = """
local per_ms, burst, max_debt = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local answer = {}
for i, bucket in ipairs(KEYS) do
    local wanted, given_back = tonumber(ARGV[2 * i + 2]), tonumber(ARGV[2 * i + 3])
    local kept = redis.call('HMGET', bucket, 'tokens', 'at')
    local tokens = burst
    if kept[1] then
        local passed = math.max(0, now - tonumber(kept[2]))
        tokens = math.min(burst, tonumber(kept[1]) + passed * per_ms)
    end
    local owed = -max_debt - (tokens + given_back)
    tokens = math.max(-max_debt, math.min(burst, tokens + given_back))
    local taken = math.max(0, math.min(wanted, math.floor(tokens + 1e-6)))
    tokens = tokens - taken
    redis.call('HSET', bucket, 'tokens', string.format('%.9f', tokens), 'at', string.format('%.3f', now))
    redis.call('PEXPIRE', bucket, string.format('%.0f', math.ceil((burst - tokens) / per_ms) + 1000))
    answer[4 * i - 3] = taken
    answer[4 * i - 2] = math.max(0, math.floor(tokens))
    answer[4 * i - 1] = math.ceil(math.max(0, 1 - tokens) / per_ms)
    answer[4 * i] = math.ceil(math.max(0, owed))
end
return answer
"""


class RateLimitStatus(NamedTuple):
    """Where a key stands after a request: `remaining` more, and no others within `retry_after_s` seconds."""

    remaining: int
    retry_after_s: int
    refused: bool


class _Wanted(NamedTuple):
    """A debt is given back as less than nothing."""

    bucket: str
    given_back: float


class _Taken(NamedTuple):
    """`forgiven` is what a debt would have been beyond the largest."""

    tokens: int
    remaining: int
    next_s: float
    forgiven: int


@dataclass(slots=True)
class _Share:
    """What one process holds of one bucket; `left` is below 0 while the bucket does not know of a debt. Times are of
    the monotonic clock.
    """

    bucket: str
    left: float = 0.0
    spend_until: float = 0
    remaining: int = 0  # in the bucket, when it was last looked into
    forgiven: float = 0.0  # of debts that came from here
    ask_at: float = 0
    next_at: float = 0
    taking: asyncio.Task[None] | None = None


class RateLimiter:
    """Counts the requests of keys. While Redis is away it lets them through and says so.

    A key is a client's own, or whatever else is counted; `name` keeps the limits apart.
    """

    def __init__(self, redis: Any, rate: Rate, name: str) -> None:
        self.rate = rate
        self._prefix = f"daguerre:{name}:"
        self.lease_size = max(1, min(rate.burst, int(max(rate.burst, rate.per_s) / _BLOCK_PART)))
        self._redis = redis
        self._script = redis.register_script(_TAKE)
        self._shares: OrderedDict[str, _Share] = OrderedDict()  # least recently used first
        self._taking: Batcher[_Wanted, _Taken | None] = Batcher(self._take)
        self._away_since: float | None = None
        self._retry_at = 0.0
        self._retrying = False

    @classmethod
    @asynccontextmanager
    async def open(cls, redis_url: str, rate: Rate, name: str = "rate") -> AsyncIterator[Self]:
        """On a connection of its own, since the queue's has more patience."""
        redis = Redis.from_url(redis_url, socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S)
        try:
            limiter = cls(redis, rate, name)
            async with running(limiter._taking.run()):
                yield limiter
        finally:
            await redis.aclose(close_connection_pool=True)

    async def admit(self, key: str, cost: float = 1.0) -> RateLimitStatus | None:
        """Count a request of a valid key, which costs at least one token. None if it was let through without a look at
        the limit.
        """
        share = self._find_share(key)
        while True:
            now = time.monotonic()
            if share.left >= 1 and now < share.spend_until:
                self._add(share, -cost)
                remaining = max(0, int(share.left + share.remaining))
                return RateLimitStatus(remaining, self.rate.next_after_s, refused=False)
            if now < share.ask_at:
                return RateLimitStatus(0, max(1, math.ceil(share.next_at - now)), refused=True)
            if self._away_since is not None:
                if now >= self._retry_at and share.taking is None:
                    self._retry_at = now + _RETRY_S
                    self._retrying = True
                    self._begin_taking(share)
                metrics.rate_limit_unchecked.inc()
                return None
            await asyncio.shield(share.taking or self._begin_taking(share))

    def correct(self, key: str, tokens: float) -> None:
        """Give tokens of an earlier request back, or take more for it if `tokens` is below 0."""
        self._add(self._find_share(key), tokens)

    def retry_after_s(self, key: str) -> int:
        """For so many seconds this process knows that nothing is left of the key's bucket; 0 if it does not. Counts
        nothing, and asks nobody: it holds until the next token is due, also where `admit` would look again.
        """
        share = self._shares.get(key)
        now = time.monotonic()
        if share is None or share.left >= 1 or now >= share.next_at:
            return 0
        self._shares.move_to_end(key)
        return max(1, math.ceil(share.next_at - now))

    def _find_share(self, key: str) -> _Share:
        share = self._shares.get(key)
        if share is not None:
            self._shares.move_to_end(key)
            return share
        share = self._shares[key] = _Share(self._prefix + hash_key(key).hex())
        if len(self._shares) > _REMEMBERED_KEYS:
            self._shares.popitem(last=False)
        return share

    def _add(self, share: _Share, tokens: float) -> None:
        """Debts go to the bucket at once, for all processes, and what comes back while the bucket may be in debt. What
        was forgiven does not come back.
        """
        if tokens > 0:
            unpaid = min(tokens, share.forgiven)
            share.forgiven -= unpaid
            tokens -= unpaid
        share.left += tokens
        in_debt = share.left < 0 or (tokens > 0 and time.monotonic() < share.ask_at)
        if in_debt and share.taking is None and self._away_since is None:
            self._begin_taking(share)

    def _begin_taking(self, share: _Share) -> asyncio.Task[None]:
        """All requests of the key that wait share it."""
        share.taking = asyncio.create_task(self._take_block(share))
        return share.taking

    async def _take_block(self, share: _Share) -> None:
        given_back, share.left = share.left, 0.0
        try:
            taken = await self._taking.submit(_Wanted(share.bucket, given_back))
        finally:
            share.taking = None
        if taken is None:
            return
        now = time.monotonic()
        share.left += taken.tokens  # what was corrected meanwhile counts
        share.remaining = taken.remaining
        share.forgiven += taken.forgiven
        share.spend_until = now + _KEEP_S
        share.next_at = now + taken.next_s
        pause_s = 0.0 if taken.tokens == self.lease_size else min(max(taken.next_s, _LEAST_PAUSE_S), _MOST_PAUSE_S)
        share.ask_at = now + pause_s

    async def _take(self, wanted: Sequence[_Wanted]) -> list[_Taken | None]:
        """A block of each bucket in one step; None for each of them where Redis is away."""
        if self._away_since is not None and not self._retrying:  # they waited while the batch before them failed
            return [None] * len(wanted)
        self._retrying = False
        words: list[Any] = [self.rate.per_s / 1000, self.rate.burst, self.rate.per_s * MAX_DEBT_S]
        for one in wanted:
            words += (self.lease_size, one.given_back)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                if self._away_since is not None:
                    await self._redis.ping()  # one that hangs does later what it was sent: it must not take blocks
                answer = await self._script(keys=[one.bucket for one in wanted], args=words)
        except UNAVAILABLE as error:
            self._note_away(error)
            return [None] * len(wanted)
        self._note_back()
        return [
            _Taken(tokens, remaining, wait_ms / 1000, forgiven)
            for tokens, remaining, wait_ms, forgiven in zip(*(answer[at::4] for at in range(4)), strict=True)
        ]

    def _note_away(self, error: Exception) -> None:
        now = time.monotonic()
        self._retry_at = now + _RETRY_S
        if self._away_since is None:
            self._away_since = now
            log.warning("rates.unchecked", error=repr(error))

    def _note_back(self) -> None:
        if self._away_since is not None:
            log.info("rates.checked_again", seconds=round(time.monotonic() - self._away_since, 1))
            self._away_since = None
