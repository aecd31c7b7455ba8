"""Heartbeats: which workers are counted."""

from __future__ import annotations

import pytest

from service.queue.connection import Redis
from service.queue.heartbeats import WORKERS_KEY
from service.queue.jobs import JobQueue
from tests.support.queue_workers import nothing, run_queue_worker
from tests.support.waiting import until


async def test_worker_is_counted_while_it_runs(redis: Redis, redis_url: str) -> None:
    queue = JobQueue(redis)
    assert await queue.count_workers() == 0
    async with run_queue_worker(redis_url, nothing), run_queue_worker(redis_url, nothing):
        await until(lambda: has_workers(queue, 2))
    assert await queue.count_workers() == 0


async def has_workers(queue: JobQueue, count: int) -> bool:
    return await queue.count_workers() == count


@pytest.mark.parametrize("age_s", [20, -20, -86400])
async def test_dead_worker_is_not_counted(redis: Redis, redis_url: str, age_s: float) -> None:
    """A heartbeat from the future was given before the clock of Redis was set back."""
    seconds, _ = await redis.time()
    await redis.zadd(WORKERS_KEY, {"host:dead": seconds - age_s})
    assert await JobQueue(redis).count_workers() == 0
    async with run_queue_worker(redis_url, nothing):
        await until(lambda: has_workers(JobQueue(redis), 1))


@pytest.mark.parametrize("ahead_s", [0.5, 5])
async def test_heartbeat_of_a_clock_ahead_counts(redis: Redis, redis_url: str, ahead_s: float) -> None:
    """As a worker of an earlier version gives it, by its host's clock; or before a small correction of Redis's."""
    seconds, microseconds = await redis.time()
    await redis.zadd(WORKERS_KEY, {"host:old": seconds + microseconds / 1e6 + ahead_s})
    assert await JobQueue(redis).count_workers() == 1
    async with run_queue_worker(redis_url, nothing):
        await until(lambda: has_workers(JobQueue(redis), 2))
