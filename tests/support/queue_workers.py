"""Runs workers of a queue in the process of the test, and enqueues jobs for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from arq import func

from service.ids import AccountId, ImageId
from service.queue import jobs
from service.queue.connection import Redis
from service.queue.heartbeats import Heartbeats
from service.queue.jobs import PROBE_IMAGE, PROBE_QUEUE, WAKEUP_KEY, JobQueue
from worker.queue.arq_worker import PushWorker

Job: TypeAlias = Callable[..., Coroutine[Any, Any, object]]

# The maximum time that clients of Redis wait for a response. A faster test did not wait for the next poll.
LONG_POLL_S = 4.0


class Recorder:
    """A job that records the images it ran for. Each run waits for `release`, which is set at first."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.finished: list[str] = []
        self.tries: list[int] = []
        self.release = asyncio.Event()
        self.release.set()

    async def __call__(self, ctx: Any, image_id: str, **_: Any) -> None:
        self.runs.append(image_id)
        self.tries.append(ctx["job_try"])
        await self.release.wait()
        self.finished.append(image_id)


async def nothing(ctx: Any, image_id: str, **_: Any) -> None: ...


@asynccontextmanager
async def run_queue_worker(url: str, job: Job, *, max_jobs: int = 4, **options: Any) -> AsyncIterator[PushWorker]:
    """Yields a worker of the probe queue that calls `job` for each image. Closes it at the end."""

    async def run(*args: Any, **options: Any) -> object:
        return await job(*args, **options)

    redis = jobs.open_redis(url)
    worker = PushWorker(
        functions=[func(run, name=PROBE_IMAGE)],
        queue_name=PROBE_QUEUE,
        wakeup_key=WAKEUP_KEY,
        heartbeats=Heartbeats(redis),
        redis_pool=redis,
        max_jobs=max_jobs,
        handle_signals=False,
        job_serializer=jobs.encode,
        job_deserializer=jobs.decode,
        **{"job_timeout": 10, **options},
    )
    task = asyncio.create_task(worker.async_run())
    try:
        yield worker
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.2)
        await worker.close()


async def enqueue(redis: Redis, *ids: str, account: int = 1) -> None:
    queue = JobQueue(redis)
    for image_id in ids:
        await queue.enqueue([jobs.ProbeJob(ImageId(image_id), AccountId(account), "r", "q")])


def has_ended(worker: PushWorker) -> bool:
    return worker.main_task is not None and worker.main_task.done()


def has_run(job: Recorder, count: int) -> bool:
    return len(job.runs) == count


async def is_empty(redis: Redis) -> bool:
    """Whether the probe queue is empty."""
    return int(await redis.zcard(PROBE_QUEUE)) == 0
