"""Periodic jobs run once in each interval, in one of all workers, whatever the clocks of hosts say."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from service.queue.connection import Redis
from tests.conftest import Servers
from tests.support.waiting import until
from worker.cron.scheduler import Lease, PeriodicJob, Scheduler

INTERVAL_S = 0.5
LONG_S = 600
KEY = "daguerre:periodic:tick"
DAY_MS = 86_400_000

Function = Callable[[dict[str, Any]], Awaitable[None]]


@asynccontextmanager
async def repeating(
    redis: Redis, *functions: Function, timeout_s: float = 30, drain_s: float = 0.2
) -> AsyncIterator[Scheduler]:
    periodic_jobs = [PeriodicJob(function, INTERVAL_S, timeout_s) for function in functions]
    scheduler = Scheduler(redis, periodic_jobs, {"name": "x"}, retry_s=0.1)
    running = asyncio.create_task(scheduler.run(drain_s=drain_s))
    try:
        yield scheduler
    finally:
        scheduler.stop()
        await running


@pytest.mark.slow
async def test_job_runs_in_one_of_several_workers(redis: Redis) -> None:
    runs: list[float] = []

    async def tick(context: dict[str, Any]) -> None:
        runs.append(time.monotonic())

    async with repeating(redis, tick), repeating(redis, tick), repeating(redis, tick):
        await until(lambda: len(runs) >= 5)
    assert min(after - before for before, after in pairwise(runs)) > INTERVAL_S * 0.8


async def test_job_of_a_dead_worker_runs_elsewhere(redis: Redis) -> None:
    assert await Lease(redis, "tick", LONG_S).acquire() == 0
    survivor = Lease(redis, "tick", LONG_S)
    assert 0 < await survivor.acquire() <= LONG_S
    await redis.delete(KEY)  # as when it expires
    assert await survivor.acquire() == 0


@pytest.mark.parametrize("holder", ["another worker", "itself"])
async def test_lease_outlasts_no_redis_clock_set_back(redis: Redis, holder: str) -> None:
    """Redis would expire it a day late, so a worker counts the interval itself."""
    now = 1000.0
    lease = Lease(redis, "tick", LONG_S, clock=lambda: now)
    assert await (lease if holder == "itself" else Lease(redis, "tick", LONG_S)).acquire() == 0
    await redis.pexpire(KEY, DAY_MS)
    assert 0 < await lease.acquire() <= LONG_S
    now += LONG_S - 1
    assert 0 < await lease.acquire() <= 1
    now += 1
    assert await lease.acquire() == 0
    assert await redis.pttl(KEY) <= LONG_S * 1000


async def test_lost_lease_is_acquired_again(redis: Redis) -> None:
    lease = Lease(redis, "tick", LONG_S)
    assert await lease.acquire() == 0
    await redis.flushall()
    assert await lease.acquire() == 0


async def test_failing_job_delays_no_other(redis: Redis, capfd: pytest.CaptureFixture[str]) -> None:
    runs: Counter[str] = Counter()

    async def fail(context: dict[str, Any]) -> None:
        runs["fail"] += 1
        raise ValueError

    async def hang(context: dict[str, Any]) -> None:
        runs["hang"] += 1
        await asyncio.sleep(60)

    async def tick(context: dict[str, Any]) -> None:
        runs["tick"] += 1

    async with repeating(redis, fail, hang, tick, timeout_s=0.1):
        await until(lambda: min(runs[name] for name in ("fail", "hang", "tick")) >= 3)
    output = capfd.readouterr().out
    assert "periodic.failed" in output
    assert "periodic.timed_out" in output


async def test_shutdown_waits_for_a_run(redis: Redis) -> None:
    ended: list[str] = []

    async def tick(context: dict[str, Any]) -> None:
        await asyncio.sleep(0.1)
        ended.append("run")

    async with repeating(redis, tick, drain_s=30) as scheduler:
        await until(lambda: redis.exists(KEY))
        scheduler.stop()
    assert ended == ["run"]


async def test_run_that_outlasts_the_drain_is_cancelled(redis: Redis) -> None:
    async def hang(context: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    began = time.monotonic()
    async with repeating(redis, hang):
        await until(lambda: redis.exists("daguerre:periodic:hang"))
    assert time.monotonic() - began < 10


@pytest.mark.slow
async def test_jobs_continue_after_an_outage_of_redis(servers: Servers, redis: Redis) -> None:
    runs: list[float] = []

    async def tick(context: dict[str, Any]) -> None:
        runs.append(time.monotonic())

    async with repeating(redis, tick):
        await until(lambda: bool(runs))
        servers.valkey.stop()
        try:
            await asyncio.sleep(1.5)
        finally:
            servers.valkey.start()
        started_at = time.monotonic()
        await until(lambda: runs[-1] > started_at)
