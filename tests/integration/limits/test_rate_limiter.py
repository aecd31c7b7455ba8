"""Requests of a key are limited over all processes, which lease tokens, and not at all while Valkey is away."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis as sync_redis

from service.accounts.accounts import hash_key
from service.config.values import Rate
from service.expiring_cache import ExpiringCache
from service.launcher.embedded.valkey import Valkey
from service.limits.rate_limiter import RateLimiter, RateLimitTimings
from tests.conftest import empty
from tests.support.daguerre_processes import stop_process

SLOW = Rate(per_s=0.001, burst=100)


@pytest.fixture
def redis_url(own_valkey: Valkey) -> str:
    return empty(own_valkey)


def count_commands(url: str, *names: str) -> int:
    with sync_redis.Redis.from_url(url) as client:
        found: Any = client.info("commandstats")
    return sum(found.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names)


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[list[RateLimiter]]:
    """Two processes' worth of a slow rate."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(RateLimiter.open(redis_url, SLOW)) for _ in range(2)]


async def ask(limiter: RateLimiter, key: str, times: int) -> Counter[bool]:
    """How many were refused, and how many not."""
    answers = await asyncio.gather(*(limiter.admit(key) for _ in range(times)))
    assert None not in answers
    return Counter(answer.refused for answer in answers if answer is not None)


async def test_processes_share_the_burst_to_the_last_token(pair: list[RateLimiter]) -> None:
    answers = await asyncio.gather(*(ask(limiter, "a", 90) for limiter in pair))
    assert sum(answers, Counter())[False] == SLOW.burst


async def test_keys_share_nothing(pair: list[RateLimiter]) -> None:
    assert (await ask(pair[0], "a", 150))[False] == 100
    assert (await ask(pair[0], "b", 150))[False] == 100


async def test_bucket_hides_its_key_and_expires(pair: list[RateLimiter], redis_url: str) -> None:
    await pair[0].admit("the-key-in-plain-text")
    with sync_redis.Redis.from_url(redis_url) as client:
        assert client.keys() == [b"daguerre:rate:" + hash_key("the-key-in-plain-text").hex().encode()]
        [bucket] = client.keys()
        left_ms: Any = client.pttl(bucket)
    assert 0 < left_ms <= 5 / SLOW.per_s * 1000 + 1000  # when the lease of 5 is refilled


async def test_refused_requests_cost_no_round_trips(pair: list[RateLimiter], redis_url: str) -> None:
    [limiter, _] = pair
    assert limiter.lease_size == 5
    await ask(limiter, "a", 5)
    assert count_commands(redis_url, "evalsha") <= 2  # the first may tell that the script is not there yet
    await ask(limiter, "a", 200)
    asked = count_commands(redis_url, "evalsha")
    assert asked <= 2 + 95 / limiter.lease_size + 1
    assert await ask(limiter, "a", 5000) == {True: 5000}
    assert count_commands(redis_url, "evalsha") <= asked + 5  # some leases expire meanwhile on a busy machine


async def test_keys_share_a_round_trip(pair: list[RateLimiter], redis_url: str) -> None:
    await asyncio.gather(*(pair[0].admit(f"key {number}") for number in range(200)))
    assert count_commands(redis_url, "evalsha") <= 4


async def test_least_recently_used_lease_goes_first(pair: list[RateLimiter], redis_url: str) -> None:
    limiter = pair[0]
    limiter.leases = ExpiringCache(10)
    for number in range(30):  # one key in use among many that come once
        await limiter.admit("used")
        await limiter.admit(f"key {number}")
    assert "used" in limiter.leases
    assert len(limiter.leases) == 10
    assert count_commands(redis_url, "evalsha") <= 30 + 30 / limiter.lease_size + 2


async def test_refused_key_in_use_is_remembered(pair: list[RateLimiter]) -> None:
    limiter = pair[0]
    limiter.leases = ExpiringCache(10)
    assert (await ask(limiter, "guesses", 150))[True] == 50
    for number in range(30):
        assert limiter.retry_after_s("guesses") > 0
        await limiter.admit(f"key {number}")


async def test_expired_lease_goes_back_to_the_bucket(pair: list[RateLimiter]) -> None:
    for limiter in pair:
        limiter.timings.lease_ttl_s = 0.1
        await limiter.admit("a")  # and keeps four
    await asyncio.sleep(0.11)
    for limiter in pair:
        await limiter.admit("a")
    assert sum([await ask(limiter, "a", 100) for limiter in pair], Counter())[False] == SLOW.burst - 4


async def test_request_is_admitted_after_retry_after(redis_url: str) -> None:
    async with RateLimiter.open(redis_url, Rate(per_s=1.25, burst=2)) as limiter:
        assert await ask(limiter, "a", 2) == {False: 2}
        refused = await limiter.admit("a")
        assert refused is not None
        assert (refused.refused, refused.remaining, refused.retry_after_s) == (True, 0, 1)  # 0.8, rounded up
        await asyncio.sleep(refused.retry_after_s)
        assert await ask(limiter, "a", 1) == {False: 1}


async def test_sustained_rate_is_the_configured_one(redis_url: str) -> None:
    rate = Rate(per_s=400, burst=50)
    async with AsyncExitStack() as stack:
        limiters = [await stack.enter_async_context(RateLimiter.open(redis_url, rate)) for _ in range(2)]
        passed, began = 0, time.monotonic()
        while time.monotonic() - began < 1:
            for limiter in limiters:
                answer = await limiter.admit("a")
                assert answer is not None
                passed += not answer.refused
            await asyncio.sleep(0.001)
        took = time.monotonic() - began
    slack = 2 * limiters[0].lease_size
    assert 0.8 * rate.per_s * took <= passed <= rate.burst + rate.per_s * took + slack


async def test_status_has_the_remaining_tokens(redis_url: str) -> None:
    async with RateLimiter.open(redis_url, Rate(per_s=10, burst=100)) as limiter:
        statuses = [await limiter.admit("a") for _ in range(20)]
    assert [status.remaining for status in statuses if status is not None] == list(range(99, 79, -1))
    assert statuses[-1] == (80, 1, False)


async def test_debt_is_paid_off_before_the_next_request(redis_url: str) -> None:
    """By the rate, with parts of tokens, and in every process."""
    async with AsyncExitStack() as stack:
        rate = Rate(per_s=20, burst=10)
        pair = [await stack.enter_async_context(RateLimiter.open(redis_url, rate)) for _ in range(2)]
        assert await pair[0].admit("a", 30.5) == (0, 1, False)
        began = time.monotonic()
        await asyncio.sleep(0.05)
        for limiter in pair:
            refused = await limiter.admit("a")
            assert refused is not None
            assert (refused.refused, refused.retry_after_s) == (True, 2)
        while (await pair[1].admit("a")).refused:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
    assert 21 / rate.per_s <= time.monotonic() - began < 21 / rate.per_s + 1.5


async def test_debt_is_bounded(redis_url: str) -> None:
    timings = RateLimitTimings(max_debt_s=3)
    async with RateLimiter.open(redis_url, Rate(per_s=10, burst=10), timings=timings) as limiter:
        for _ in range(3):
            await limiter.admit("a", 1000)
            limiter.correct("a", -1e6)
        await asyncio.sleep(0.05)
        refused = await limiter.admit("a")
        assert refused is not None
        assert (refused.refused, refused.retry_after_s) == (True, 4)  # 31 tokens, rounded up
        assert limiter.retry_after_s("a") == 4


async def test_forgiven_debt_is_not_given_back(redis_url: str) -> None:
    """A price that is far too high, and is corrected, would else fill the bucket."""
    async with RateLimiter.open(redis_url, SLOW) as limiter:
        for key, price, correction in (("a", 90, 85), ("b", 100_000, 99_000)):
            await limiter.admit(key, price)
            await asyncio.sleep(0.05)
            limiter.correct(key, correction)
            await asyncio.sleep(0.05)
        assert (await ask(limiter, "a", 200))[False] == 95
        assert await ask(limiter, "b", 10) == {True: 10}


async def test_corrected_tokens_can_be_spent(pair: list[RateLimiter]) -> None:
    await ask(pair[0], "a", 40)
    pair[0].correct("a", -30)
    await asyncio.sleep(0.05)
    passed = [await ask(limiter, "a", 100) for limiter in pair]
    assert sum(passed, Counter())[False] == 30
    pair[0].correct("a", 20.5)
    await asyncio.sleep(0.05)
    assert (await ask(pair[0], "a", 100))[False] == 20


async def test_tokens_beyond_the_burst_are_not_given_back(pair: list[RateLimiter]) -> None:
    await ask(pair[0], "a", 1)
    pair[0].correct("a", 1e6)
    lease = pair[0].leases.get("a")
    assert lease is not None
    lease.expires_at = 0  # its tokens go back to the bucket
    assert (await ask(pair[0], "a", 200))[False] == SLOW.burst


async def test_cancelled_request_leaves_others_the_lease(pair: list[RateLimiter]) -> None:
    first = asyncio.create_task(pair[0].admit("a"))
    others = asyncio.create_task(ask(pair[0], "a", 5))
    await asyncio.sleep(0)
    first.cancel()
    assert await others == {False: 5}


async def test_leases_are_bounded(pair: list[RateLimiter]) -> None:
    pair[0].leases = ExpiringCache(10)
    await asyncio.gather(*(pair[0].admit(f"key {number}") for number in range(50)))
    assert len(pair[0].leases) == 10


async def until_checked(limiter: RateLimiter, key: str) -> None:
    async with asyncio.timeout(5):
        while await limiter.admit(key) is None:
            await asyncio.sleep(0.01)


async def test_limit_is_suspended_while_valkey_hangs(pair: list[RateLimiter], own_valkey: Valkey, capfd: Any) -> None:
    [limiter, _] = pair
    limiter.timings.retry_s = 0.05
    await ask(limiter, "a", 100)

    async def time_one(key: str) -> float:
        began = time.monotonic()
        assert await limiter.admit(key) is None
        return time.monotonic() - began

    assert own_valkey.process is not None
    stop_process(own_valkey.process.pid)
    try:
        limiter.timings.timeout_s = 0.1
        waiting = []
        for number in range(10):
            waiting.append(asyncio.create_task(time_one(f"b{number}")))
            await asyncio.sleep(0.01)
        assert max(await asyncio.gather(*waiting)) < 0.2  # the time-out is theirs together
        looks = 0
        lease = limiter.leases.get("b0")
        assert lease is not None
        async with asyncio.timeout(5):
            while looks < 3 or lease.renewal is not None:
                before = lease.renewal
                assert await time_one("b0") < 0.1  # no request waits for the check whether Valkey is back
                looks += lease.renewal not in (before, None)
                await asyncio.sleep(0.005)
        limiter.timings.timeout_s = 0.25
    finally:
        os.kill(own_valkey.process.pid, signal.SIGCONT)
    await until_checked(limiter, "c")
    assert await ask(limiter, "a", 10) == {True: 10}
    # Of what was sent to it while it hung, it has leased tokens to the first request only.
    assert [(await ask(limiter, key, 150))[False] for key in ("b0", "b1")] == [
        SLOW.burst - limiter.lease_size,
        SLOW.burst,
    ]
    output, _ = capfd.readouterr()
    assert (output.count("rate_limit.suspended"), output.count("rate_limit.recovered")) == (1, 1)


async def test_connection_closed_by_uvloop_is_an_outage(
    pair: list[RateLimiter], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write_too_late(**_: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    with monkeypatch.context() as lost:
        lost.setattr(pair[0], "_script", write_too_late)
        assert await pair[0].admit("a") is None
    pair[0].timings.retry_s = 0
    await until_checked(pair[0], "a")


async def test_limit_is_suspended_while_valkey_is_away(pair: list[RateLimiter], own_valkey: Valkey, capfd: Any) -> None:
    [limiter, _] = pair
    limiter.timings.retry_s = 0.05
    await limiter.admit("a")
    own_valkey.stop()
    try:
        began = time.monotonic()
        assert [await limiter.admit("b") for _ in range(1000)] == [None] * 1000
        assert time.monotonic() - began < 1
    finally:
        own_valkey.start()
    await until_checked(limiter, "b")
    assert (await ask(limiter, "c", 150))[False] == SLOW.burst
    output, _ = capfd.readouterr()
    assert (output.count("rate_limit.suspended"), output.count("rate_limit.recovered")) == (1, 1)
