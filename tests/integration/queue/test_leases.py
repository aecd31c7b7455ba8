"""Leases of jobs: dead workers, a Redis that restarts or whose clock is set back, and lost results."""

from __future__ import annotations

import asyncio
import gc
import shutil
import time
from collections.abc import Sequence
from typing import Any

import pytest
from arq.constants import in_progress_key_prefix

from service.errors import ServiceError
from service.queue import jobs
from service.queue.connection import Redis
from service.queue.fair_dispatch import FairQueueKeys
from service.queue.jobs import PROBE_QUEUE, WAKEUP_KEY
from tests.conftest import Servers
from tests.support.queue_workers import Recorder, enqueue, is_empty, run_queue_worker
from tests.support.waiting import until
from worker import probe, render
from worker.queue.claims import LEASE_S, MAX_DEFER_S, ClaimLimits, Claims, JobResult


@pytest.mark.slow
async def test_job_of_a_dead_worker_runs_elsewhere(redis: Redis, redis_url: str) -> None:
    started: list[float] = []

    async def run(ctx: Any, image_id: str, **_: Any) -> None:
        started.append(time.monotonic())

    await enqueue(redis, "image01")
    # What a worker leaves behind that was killed right after its claim.
    began = time.monotonic()
    await redis.psetex(in_progress_key_prefix + "image01", 1500, b"1")
    async with run_queue_worker(redis_url, run):
        await until(lambda: bool(started))
    assert started[0] - began >= 1.4


async def test_lease_of_a_running_job_is_renewed(redis: Redis, redis_url: str, job: Recorder) -> None:
    key = in_progress_key_prefix + "image01"
    job.release.clear()
    await enqueue(redis, "image01")
    async with run_queue_worker(redis_url, job, lease_s=20, poll_interval_s=0.1):
        await until(lambda: len(job.runs) == 1)
        for _ in range(3):
            await redis.pexpire(key, 10_000)
            await until(lambda: is_longer(redis, key, 15_000))
        job.release.set()
        await until(lambda: job.finished == ["image01"])


async def is_longer(redis: Redis, key: str, ttl_ms: int) -> bool:
    return int(await redis.pttl(key)) > ttl_ms


async def test_worker_outlives_a_restart_of_redis(servers: Servers, redis_url: str, job: Recorder) -> None:
    client = jobs.open_redis(redis_url)
    async with run_queue_worker(redis_url, job):
        await enqueue(client, "before1")
        await until(lambda: job.finished == ["before1"])
        servers.valkey.stop()
        shutil.rmtree(servers.valkey.folder)
        await asyncio.sleep(1)
        servers.valkey.start()
        await client.connection_pool.disconnect()
        await enqueue(client, "after01")
        await until(lambda: job.finished == ["before1", "after01"])
    await client.aclose(close_connection_pool=True)


async def test_job_that_still_runs_is_not_started_again(redis: Redis, redis_url: str, job: Recorder) -> None:
    """Its lease has expired, e.g. during an outage of Redis, and its own worker claims it."""
    job.release.clear()
    await enqueue(redis, "a")
    async with run_queue_worker(redis_url, job) as worker:
        await until(lambda: len(job.runs) == 1)
        await redis.delete(in_progress_key_prefix + "a")
        await redis.zadd(FairQueueKeys.of(PROBE_QUEUE).later, {"a": 0})
        await enqueue(redis, "b")
        await until(lambda: len(job.runs) == 2)
        assert job.runs == ["a", "b"]
        await until(lambda: redis.exists(in_progress_key_prefix + "a"))
        assert worker.running_jobs == 2


@pytest.mark.slow
async def test_lost_result_makes_the_job_run_again(
    redis: Redis, redis_url: str, job: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Claims.finish
    calls = 0
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))

    async def fail_once(claims: Claims, results: Sequence[JobResult]) -> list[None]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ServiceError("queue-unavailable")
        return await finish(claims, results)

    monkeypatch.setattr(Claims, "finish", fail_once)
    async with run_queue_worker(redis_url, job):
        await enqueue(redis, "image01")
        await until(lambda: calls == 1)
        await asyncio.sleep(0.1)
        # The lease expires, and the job is claimed before the worker has seen what has ended.
        await redis.delete(in_progress_key_prefix + "image01")
        await redis.rpush(WAKEUP_KEY, b"")  # type: ignore[misc]
        await until(lambda: is_empty(redis))
    assert job.finished == ["image01"] * 2
    gc.collect()
    assert unhandled == []


@pytest.mark.parametrize("state", ["waiting", "deferred", "claimed by a worker that died"])
async def test_jobs_outlast_a_redis_clock_set_back(redis: Redis, redis_url: str, job: Recorder, state: str) -> None:
    """All times from before lie a day in the future."""
    keys, day_ms = FairQueueKeys.of(PROBE_QUEUE), 86_400_000
    await enqueue(redis, "image01")
    if state != "waiting":
        claims = Claims(redis, PROBE_QUEUE, WAKEUP_KEY)
        await claims.claim(1, ClaimLimits(share=1), wait_s=0)  # loads the script
        await claims.claim(1, ClaimLimits(share=1), wait_s=0)
        assert await redis.exists(in_progress_key_prefix + "image01")
    if state == "deferred":
        await Claims(redis, PROBE_QUEUE, WAKEUP_KEY).finish([JobResult("image01", retry_after_ms=0)])
    await redis.zincrby(PROBE_QUEUE, day_ms, "image01")
    for key in (keys.later, keys.line + "1"):
        if await redis.exists(key):
            await redis.zincrby(key, day_ms, "image01")
    if state == "claimed by a worker that died":
        await redis.pexpire(in_progress_key_prefix + "image01", day_ms)
    async with run_queue_worker(redis_url, job, lease_s=1):
        await until(lambda: job.finished == ["image01"])


def test_no_job_is_deferred_beyond_the_maximum() -> None:
    """Otherwise it would seem to be from before a correction of the clock, and run at once."""
    assert max(probe.RETRY_S, probe.RETRY_MISSING_S, render.RETRY_S, LEASE_S) < MAX_DEFER_S
