"""Jobs and their results: enqueued once, retried, and replied to all who wait."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest
from arq import Retry
from arq.constants import job_key_prefix
from arq.jobs import serialize_job

from service.ids import AccountId, ImageId
from service.queue import jobs
from service.queue.connection import Redis
from service.queue.jobs import PROBE_IMAGE, PROBE_QUEUE, WAKEUP_KEY, JobQueue
from tests.support.queue_workers import Recorder, enqueue, is_empty, run_queue_worker
from tests.support.waiting import until
from worker.queue.claims import Claims, JobResult


async def test_job_is_enqueued_once(redis: Redis, redis_url: str, job: Recorder) -> None:
    job.release.clear()
    await enqueue(redis, "image01", "image01")
    async with run_queue_worker(redis_url, job) as worker:
        await until(lambda: len(job.runs) == 1)
        await enqueue(redis, "image01")
        await JobQueue(redis).enqueue_again({ImageId("image01"): AccountId(1)})
        await asyncio.sleep(0.2)
        job.release.set()
        await until(lambda: is_empty(redis))
        await until(lambda: not worker.running_jobs)
    assert job.runs == ["image01"]


@pytest.mark.slow
async def test_retried_job_runs_after_its_delay(redis: Redis, redis_url: str) -> None:
    tries: list[float] = []

    async def run(ctx: Any, image_id: str, **_: Any) -> None:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise Retry(defer=0.3)

    await enqueue(redis, "image01")
    async with run_queue_worker(redis_url, run):
        await until(lambda: len(tries) == 3)
    assert tries[1] - tries[0] > 0.25


async def test_reply_goes_to_all_who_wait(redis: Redis, redis_url: str) -> None:
    """Also after a retry, and nothing remains in Redis."""
    received: dict[str, list[object]] = {"one": [], "two": []}

    def receive(message: dict[str, Any]) -> None:
        received[message["channel"].decode()] += jobs.decode(message["data"])

    async def run(ctx: Any, image_id: str, **_: Any) -> str:
        if ctx["job_try"] == 1:
            raise Retry(defer=0.1)
        return f"of {image_id}"

    queue = JobQueue(redis)
    a, b = (jobs.ProbeJob(ImageId(image_id), AccountId(1), "one", "q") for image_id in ("image01", "image02"))
    await queue.enqueue([a, b, dataclasses.replace(a, reply_to="two"), a, dataclasses.replace(b, reply_to="")])
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(one=receive, two=receive)
        async with run_queue_worker(redis_url, run):
            async with asyncio.timeout(20):
                while len(received["one"]) < 2 or not received["two"]:
                    await pubsub.get_message(timeout=0.1)
    assert set(received["one"]) == {"of image01", "of image02"}
    assert received["two"] == ["of image01"]
    assert await redis.keys("arq:*") == await redis.keys("daguerre:waiting:*") == []


async def test_channel_gets_replies_in_one_message(redis: Redis) -> None:
    ids = [f"image{number:03}" for number in range(300)]
    await JobQueue(redis).enqueue([jobs.ProbeJob(ImageId(each), AccountId(1), "channel", "q") for each in ids])
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe("channel")
        await pubsub.get_message(timeout=5)  # the confirmation
        await Claims(redis, PROBE_QUEUE, WAKEUP_KEY).finish([JobResult(image_id, image_id) for image_id in ids])
        message = await pubsub.get_message(timeout=5)
    assert message is not None
    assert jobs.decode(message["data"]) == ids


async def test_job_of_an_earlier_version_runs(redis: Redis, redis_url: str, job: Recorder) -> None:
    """It names where to reply, and is in the queue after an upgrade. Nobody listens there any more."""
    options = {"reply_to": "r", "request_id": "q"}
    await redis.set(
        job_key_prefix + "image01", serialize_job(PROBE_IMAGE, ("image01",), options, None, 0, serializer=jobs.encode)
    )
    await redis.zadd(PROBE_QUEUE, {"image01": 0})
    async with run_queue_worker(redis_url, job):
        await until(lambda: is_empty(redis))
    assert job.finished == ["image01"]


async def test_finished_job_is_not_retried(redis: Redis) -> None:
    """Otherwise the next job with its id would begin with a try that was never made."""
    await Claims(redis, PROBE_QUEUE, WAKEUP_KEY).finish([JobResult("image01", retry_after_ms=0)])
    assert await redis.keys("*") == []


async def test_payload_is_no_pickle_and_has_no_time(redis: Redis) -> None:
    """The clock of Redis counts, and that of the client's host may differ."""
    await enqueue(redis, "image01")
    payload = jobs.decode(await redis.get(job_key_prefix + "image01"))
    assert payload["a"] == ["image01"]
    assert payload["et"] == 0
