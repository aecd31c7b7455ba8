"""Wake-up tokens: several workers, a backlog, and workers that stop or wait."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
from arq.constants import in_progress_key_prefix
from redis.exceptions import ConnectionError as RedisConnectionError

from service.ids import AccountId, ImageId
from service.queue.connection import Redis
from service.queue.jobs import MAX_WAKEUP_TOKENS, WAKEUP_KEY, JobQueue, ProbeJob
from tests.support.queue_workers import (
    LONG_POLL_S,
    Job,
    Recorder,
    enqueue,
    has_ended,
    is_empty,
    nothing,
    run_queue_worker,
)
from tests.support.waiting import until
from worker.queue.claims import LEASE_S, AccountShares, Claims


async def test_workers_share_a_backlog_on_one_token(redis: Redis, redis_url: str) -> None:
    runs: Counter[str] = Counter()
    by_worker: Counter[int] = Counter()

    def job_of(number: int) -> Job:
        async def run(ctx: Any, image_id: str, **_: Any) -> None:
            runs[image_id] += 1
            by_worker[number] += 1
            await asyncio.sleep(0.002)

        return run

    await enqueue(redis, *(f"image{number:03}" for number in range(500)))
    await redis.delete(WAKEUP_KEY)
    await redis.rpush(WAKEUP_KEY, b"")  # type: ignore[misc]
    async with AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(run_queue_worker(redis_url, job_of(number)))
        await until(lambda: is_empty(redis))
    assert len(runs) == 500
    assert set(runs.values()) == {1}
    assert len(by_worker) == 3
    assert await redis.keys("arq:*") == []


async def test_wakeup_list_is_bounded(redis: Redis) -> None:
    await enqueue(redis, *(f"image{number:03}" for number in range(50)))
    assert await redis.llen(WAKEUP_KEY) == MAX_WAKEUP_TOKENS  # type: ignore[misc]


async def test_backlog_is_claimed_at_start(redis: Redis, redis_url: str, job: Recorder) -> None:
    """Without a token, and without a wait for one."""
    await enqueue(redis, "image01")
    await redis.delete(WAKEUP_KEY)
    started = time.monotonic()
    async with run_queue_worker(redis_url, job, poll_interval_s=LONG_POLL_S):
        await until(lambda: job.finished == ["image01"])
    assert time.monotonic() - started < LONG_POLL_S


async def test_stopped_worker_leaves_the_token(redis: Redis, redis_url: str, job: Recorder) -> None:
    stopped = Recorder()
    async with run_queue_worker(redis_url, stopped) as worker:
        await until(lambda: JobQueue(redis).count_workers())
        await asyncio.sleep(0.3)  # it waits for a wake-up
        worker.allow_pick_jobs = False
        await enqueue(redis, "image01")
        await until(partial(has_ended, worker))
        assert not await redis.exists(in_progress_key_prefix + "image01")
        assert await redis.llen(WAKEUP_KEY) == 1  # type: ignore[misc]
    async with run_queue_worker(redis_url, job):
        await until(lambda: job.finished == ["image01"])
    assert job.tries == [1]
    assert stopped.runs == []


async def test_token_without_a_slot_goes_back(redis: Redis, redis_url: str, job: Recorder) -> None:
    share = 4
    job.release.clear()
    await enqueue(redis, "a", "b")
    async with run_queue_worker(redis_url, job, shares=AccountShares(lambda: share)):
        await until(lambda: len(job.runs) == 2)
        await asyncio.sleep(0.2)  # it waits for a wake-up
        share = 3
        await enqueue(redis, "c")
        await asyncio.sleep(0.2)
        assert len(job.runs) == 2
        await until(lambda: redis.llen(WAKEUP_KEY))
        job.release.set()
        await until(lambda: len(job.runs) == 3)


async def test_jobs_with_a_slot_start_if_the_others_cannot_go_back(
    redis: Redis, redis_url: str, job: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the connection that is lost at that moment delays all of them until their leases expire."""
    share = 4

    async def fail(*_: Any) -> None:
        raise RedisConnectionError

    monkeypatch.setattr(Claims, "release", fail)
    async with run_queue_worker(redis_url, job, shares=AccountShares(lambda: share)):
        await until(lambda: JobQueue(redis).count_workers())
        await asyncio.sleep(0.3)  # it waits for a wake-up
        share = 2
        await JobQueue(redis).enqueue([ProbeJob(ImageId(image_id), AccountId(1), "", "") for image_id in "abcd"])
        await until(lambda: job.finished == ["a", "b"], timeout_s=LEASE_S / 2)


@pytest.mark.slow
async def test_idle_worker_needs_next_to_no_cpu(redis_url: str) -> None:
    async with run_queue_worker(redis_url, nothing):
        await asyncio.sleep(1)
        cpu_s, began = time.process_time(), time.monotonic()
        await asyncio.sleep(3)
        assert (time.process_time() - cpu_s) / (time.monotonic() - began) < 0.02
