"""One worker process: its functions, its cron jobs, its start and its end."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

import structlog
import uvloop
from arq import cron, func
from arq.connections import ArqRedis

from service import jobs, logs
from service.settings import Settings
from worker.counters import refresh_accounts
from worker.doorbell import DoorbellWorker
from worker.probe import probe_image
from worker.resources import Resources, open_resources
from worker.sweep import sweep

log = structlog.get_logger("worker")

# A dead worker's cron job waits for its time limit at most, and so does a drain.
_JOB_TIMEOUT_S = 30
_CRON_TIMEOUT_S = 20
# Jobs that are claimed while the children are busy, so that no child waits for the queue or the database.
_JOBS_AHEAD = 2
# A dependency that is away never makes a job give up.
_MAX_TRIES = 1_000_000


def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then finish the jobs at hand."""
    logs.configure(settings, part="worker", pid=os.getpid())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings))


async def _run(settings: Settings) -> None:
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        worker = make_worker(settings, redis, resources)
        log.info("worker.started", probe_processes=settings.probe_processes)
        try:
            with suppress(asyncio.CancelledError):  # how arq ends on a signal
                await worker.async_run()
        finally:
            await worker.close()
    log.info("worker.stopped")


def make_worker(settings: Settings, redis: ArqRedis, resources: Resources, *, burst: bool = False) -> DoorbellWorker:
    """Call it inside the running loop."""
    return DoorbellWorker(
        functions=[func(probe_image, name=jobs.PROBE_IMAGE)],
        cron_jobs=[
            cron(sweep, second=set(range(0, 60, 10)), timeout=_CRON_TIMEOUT_S),
            cron(refresh_accounts, second={5, 35}, timeout=_CRON_TIMEOUT_S),
        ],
        queue_name=jobs.PROBE_QUEUE,
        redis_pool=redis,
        ctx={"resources": resources},
        burst=burst,
        handle_signals=not burst,
        job_completion_wait=max(1, int(settings.drain_s)),
        max_jobs=settings.probe_processes + _JOBS_AHEAD,
        job_timeout=_JOB_TIMEOUT_S,
        max_tries=_MAX_TRIES,
        keep_result=0,
        log_results=False,
        job_serializer=jobs.encode,
        job_deserializer=jobs.decode,
    )
