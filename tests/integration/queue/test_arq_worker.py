"""The names of arq.Worker: what a worker does by each that worker/queue/arq_worker.py overrides or uses."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import Any

import pytest
from arq import Retry
from arq.constants import in_progress_key_prefix, job_key_prefix
from arq.jobs import serialize_job
from arq.worker import Worker

from service.queue import jobs
from service.queue.connection import Redis
from service.queue.jobs import PROBE_IMAGE, PROBE_QUEUE
from tests.conftest import Servers
from tests.support.queue_workers import (
    LONG_POLL_S,
    Recorder,
    enqueue,
    has_ended,
    has_run,
    is_empty,
    nothing,
    run_queue_worker,
)
from tests.support.waiting import until


async def test_arq_polls_and_runs_no_jobs_itself(
    redis: Redis, redis_url: str, job: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_poll_iteration` is overridden, and arq's main loop calls it."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("arq does it itself")

    for name in ("_poll_iteration", "start_jobs", "run_job", "heart_beat", "finish_job", "finish_failed_job"):
        assert hasattr(Worker, name)
        monkeypatch.setattr(Worker, name, fail)
    await enqueue(redis, "image01")
    async with run_queue_worker(redis_url, job):
        await until(lambda: is_empty(redis))
    assert job.finished == ["image01"]


async def test_waiting_worker_starts_a_job_immediately(redis: Redis, redis_url: str, job: Recorder) -> None:
    """Neither arq's `poll_delay_s` nor the poll interval delays it: 30 polls would take two minutes."""
    async with run_queue_worker(redis_url, job, poll_interval_s=LONG_POLL_S) as worker:
        assert worker.poll_delay_s == 0
        async with asyncio.timeout(20):
            for number in range(30):
                await enqueue(redis, f"job{number}")
                await until(partial(has_run, job, number + 1))


@pytest.mark.slow
async def test_main_waits_for_redis(servers: Servers, redis_url: str, job: Recorder) -> None:
    """arq's own `main` would raise."""
    servers.valkey.stop()
    async with run_queue_worker(redis_url, job) as worker:
        await asyncio.sleep(0.3)
        servers.valkey.start()
        assert not has_ended(worker)
        client = jobs.open_redis(redis_url)
        await enqueue(client, "image01")
        await until(lambda: job.finished == ["image01"])
        await client.aclose(close_connection_pool=True)


async def test_main_outlives_an_error_of_redis(redis: Redis, redis_url: str, job: Recorder) -> None:
    """arq's own `main` sends INFO first."""
    permit: Any = partial(redis.execute_command, "ACL", "SETUSER", "default")
    await permit("-info")
    try:
        async with run_queue_worker(redis_url, job):
            await asyncio.sleep(0.3)
            await permit("+info")
            await enqueue(redis, "image01")
            await until(lambda: job.finished == ["image01"])
    finally:
        await permit("+info")


async def test_signal_lets_tasks_finish_and_starts_none(redis: Redis, redis_url: str, job: Recorder) -> None:
    """arq's handler sets `allow_pick_jobs` to False, and waits until `tasks` is empty."""
    job.release.clear()
    await enqueue(redis, *(f"image{number:03}" for number in range(10)))
    async with run_queue_worker(redis_url, job, max_jobs=2, job_completion_wait=30) as worker:
        await until(lambda: len(job.runs) == 2)
        worker.handle_sig_wait_for_completion(signal.SIGTERM)
        assert not worker.allow_pick_jobs
        job.release.set()
        await until(partial(has_ended, worker))
    assert job.runs == job.finished
    assert len(job.finished) == 2
    assert await redis.zcard(PROBE_QUEUE) == 8


async def test_signal_cancels_tasks_at_the_time_limit(redis: Redis, redis_url: str, job: Recorder) -> None:
    """arq's handler cancels what is in `tasks`, and another worker runs it at once."""
    job.release.clear()
    await enqueue(redis, "image01")
    async with run_queue_worker(redis_url, job, job_completion_wait=1) as worker:
        await until(lambda: len(job.runs) == 1)
        worker.handle_sig_wait_for_completion(signal.SIGTERM)
        await until(partial(has_ended, worker))
    assert job.finished == []
    assert not await redis.exists(in_progress_key_prefix + "image01")
    other = Recorder()
    async with run_queue_worker(redis_url, other):
        await until(lambda: other.finished == ["image01"])


async def test_close_hands_unfinished_jobs_over(redis: Redis, redis_url: str, job: Recorder) -> None:
    stuck = Recorder()
    stuck.release.clear()
    await enqueue(redis, "image01")
    async with run_queue_worker(redis_url, stuck) as worker:
        await until(lambda: len(stuck.runs) == 1)
    assert worker.tasks == {}
    async with run_queue_worker(redis_url, job):
        await until(lambda: job.finished == ["image01"])


async def test_close_is_quiet_while_redis_is_away(servers: Servers, redis_url: str) -> None:
    async with run_queue_worker(redis_url, nothing):
        servers.valkey.stop()
    servers.valkey.start()


async def test_undecodable_jobs_are_dropped(redis: Redis, redis_url: str, job: Recorder) -> None:
    """By `job_deserializer` and `functions`. The next job runs."""
    payloads = {
        "noise01": b"\xc1",
        "unknown": serialize_job("another_function", ("unknown",), {}, None, 0, serializer=jobs.encode),
        "image01": serialize_job(PROBE_IMAGE, ("image01",), {}, None, 0, serializer=jobs.encode),
    }
    for image_id, payload in payloads.items():
        await redis.set(job_key_prefix + image_id, payload or b"")
        await redis.zadd(PROBE_QUEUE, {image_id: 0})
    await redis.zadd(PROBE_QUEUE, {"lost001": 0})  # without a payload
    async with run_queue_worker(redis_url, job) as worker:
        await until(lambda: is_empty(redis))
    assert job.finished == ["image01"]
    assert (worker.jobs_complete, worker.jobs_failed) == (1, 3)
    assert await redis.keys("arq:*") == []


@pytest.mark.slow
async def test_ends_of_jobs_are_counted(redis: Redis, redis_url: str) -> None:
    """By `jobs_complete`, `jobs_retried` and `jobs_failed`. arq's maximum of five tries does not hold."""

    async def run(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
        if image_id == "broken1":
            raise ValueError
        if ctx["job_try"] < 8:
            raise Retry(defer=0)

    await enqueue(redis, "image01", "broken1")
    async with run_queue_worker(redis_url, run) as worker:
        await until(lambda: worker.jobs_complete == 1)
        await until(lambda: worker.jobs_failed == 1)
        await until(lambda: is_empty(redis))
    assert worker.jobs_retried == 7


async def test_burst_ends_with_the_queue(redis: Redis, redis_url: str, job: Recorder) -> None:
    await enqueue(redis, *(f"image{number:03}" for number in range(10)))
    async with run_queue_worker(redis_url, job, burst=True, poll_interval_s=LONG_POLL_S) as worker:
        await until(partial(has_ended, worker))
        assert len(job.finished) == worker.jobs_complete == 10


async def test_context_reaches_jobs(redis: Redis, redis_url: str) -> None:
    """That of the constructor, `ctx`, and what is known of the job."""
    contexts: list[dict[str, Any]] = []

    async def run(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
        contexts.append(ctx)

    await enqueue(redis, "image01", account=7)
    async with run_queue_worker(redis_url, run, ctx={"resources": "all"}):
        await until(lambda: len(contexts) == 1)
    [context] = contexts
    assert context["resources"] == "all"
    assert (context["job_id"], context["account"], context["job_try"]) == ("image01", "7", 1)
    assert 0 <= context["waited_s"] < 60


@pytest.mark.slow
async def test_job_at_its_time_limit_is_retried(redis: Redis, redis_url: str) -> None:
    """By `job_timeout_s`: most likely it waited for a decoder."""
    tries: list[int] = []

    async def run(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
        tries.append(ctx["job_try"])
        if len(tries) == 1:
            await asyncio.sleep(60)

    async with run_queue_worker(redis_url, run, job_timeout=0.5) as worker:
        await enqueue(redis, "image01")
        await until(lambda: worker.jobs_complete == 1)
    assert tries == [1, 2]
    assert worker.jobs_failed == 0


async def test_max_jobs_is_never_exceeded(redis: Redis, redis_url: str) -> None:
    now, maximum, finished = 0, 0, 0

    async def run(ctx: Any, image_id: str, **_: Any) -> None:
        nonlocal now, maximum, finished
        now += 1
        maximum = max(maximum, now)
        await asyncio.sleep(0.01)
        now -= 1
        finished += 1

    await enqueue(redis, *(f"image{number:03}" for number in range(40)))
    async with run_queue_worker(redis_url, run, max_jobs=3):
        await until(lambda: finished == 40)
    assert maximum == 3
