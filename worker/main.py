"""One worker process: its job functions, its periodic jobs, start-up and shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import structlog
import uvloop
from arq import func

from service.config.settings import Settings, SettingsError
from service.dependencies.outages import DATABASE, QUEUE, STORAGE
from service.dependencies.versions import require_servers
from service.dependencies.watch import Dependency, watched
from service.health.checks import DatabaseCheck, QueueCheck
from service.queue import jobs
from service.queue.connection import Redis
from service.queue.heartbeats import Heartbeats
from service.storage.backends import open_setup
from service.telemetry import logs
from service.telemetry.metrics import metrics
from worker.cron.counters import refresh_accounts
from worker.cron.eviction import evict_renditions
from worker.cron.scheduler import PeriodicJob, Scheduler
from worker.cron.scrub import scrubbing
from worker.cron.sweep import sweep
from worker.probe import probe_image
from worker.queue.arq_worker import PushWorker
from worker.queue.claims import AccountShares
from worker.render import render_image
from worker.resources import SPARE_DECODERS, Resources, open_resources
from worker.sandbox.pool import MAX_PREFETCH, DecoderPool

log = structlog.get_logger("worker")

# The number of jobs that are claimed in advance, so that no decoder waits for the queue or the database.
_JOB_MARGIN = 2
# Includes the wait for earlier requests of the same decoder. A job that exceeds it is retried.
_JOB_TIMEOUT_S = 30
_PERIODIC_TIMEOUT_S = 20
PERIODIC_JOBS = (
    PeriodicJob(sweep, interval_s=10, timeout_s=_PERIODIC_TIMEOUT_S),
    PeriodicJob(refresh_accounts, interval_s=30, timeout_s=_PERIODIC_TIMEOUT_S),
    PeriodicJob(evict_renditions, interval_s=30, timeout_s=_PERIODIC_TIMEOUT_S),
)
# The API, which creates the folder, may be started at the same time.
_STORAGE_WAIT_S = 10


def run(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT, then finishes the current jobs.

    Raises SettingsError if the storage or a port cannot be used.
    """
    logs.configure(settings, part="worker", pid=os.getpid())
    open_setup(settings).require(wait_s=_STORAGE_WAIT_S)
    if settings.metrics_port:
        _serve_metrics(settings.host, settings.metrics_port)
    else:
        metrics.share(settings.metrics_folder)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings))


def _serve_metrics(host: str, port: int) -> None:
    try:
        metrics.serve(host, port)
    except OSError as error:
        raise SettingsError(f"DAGUERRE_METRICS_PORT: {host}:{port} cannot be listened on: {error.strerror}") from None


async def _run(settings: Settings) -> None:
    redis = jobs.open_redis(settings.redis_url)
    await require_servers(settings.database_url, redis)
    async with (
        open_resources(settings, redis) as resources,
        watched(_list_dependencies(resources)),
        scrubbing(resources.database, resources.storage, settings.scrub),
    ):
        await resources.probers.start()  # so that the first upload need not wait for it
        workers = [
            make_probe_worker(settings, resources, resources.redis),
            make_render_worker(settings, resources, jobs.open_redis(settings.redis_url)),
        ]
        scheduler_redis = jobs.open_redis(settings.redis_url)
        scheduler = Scheduler(scheduler_redis, PERIODIC_JOBS, {"resources": resources})
        _stop_on_signals(workers, scheduler)
        log.info("worker.started", probe_processes=settings.probe_processes)
        try:
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(worker.async_run())
                group.create_task(scheduler.run(drain_s=settings.drain_s))
        finally:
            for worker in workers:
                await worker.close()
            await scheduler_redis.aclose(close_connection_pool=True)
    log.info("worker.stopped")


def _list_dependencies(resources: Resources) -> list[Dependency]:
    return [
        Dependency(DATABASE, DatabaseCheck(resources.database).run),
        Dependency(QUEUE, QueueCheck(resources.jobs).run),
        Dependency(STORAGE, resources.storage.check),
    ]


def _stop_on_signals(workers: list[PushWorker], scheduler: Scheduler) -> None:
    def stop(number: signal.Signals) -> None:
        for worker in workers:
            worker.handle_sig_wait_for_completion(number)
        scheduler.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)


def make_probe_worker(settings: Settings, resources: Resources, redis: Redis, *, burst: bool = False) -> PushWorker:
    """Returns the worker of the probe queue. Call it inside the running loop."""
    return _make_worker(
        settings,
        resources,
        redis,
        functions=[func(probe_image, name=jobs.PROBE_IMAGE)],
        queue_name=jobs.PROBE_QUEUE,
        wakeup_key=jobs.WAKEUP_KEY,
        heartbeats=Heartbeats(redis),
        burst=burst,
        job_timeout=_JOB_TIMEOUT_S,
        **_choose_slots(settings.probe_processes, resources.probers),
    )


def make_render_worker(settings: Settings, resources: Resources, redis: Redis) -> PushWorker:
    """Returns the worker of the render queue. Renditions have their own queue, so that a rush of them delays no
    upload.
    """
    return _make_worker(
        settings,
        resources,
        redis,
        functions=[func(render_image, name=jobs.RENDER_IMAGE)],
        queue_name=jobs.RENDER_QUEUE,
        wakeup_key=jobs.RENDER_WAKEUP_KEY,
        job_timeout=_JOB_TIMEOUT_S,
        result_wait_s=resources.renderers.choose_result_wait_s,
        **_choose_slots(settings.render_processes, resources.renderers),
    )


def _make_worker(settings: Settings, resources: Resources, redis: Redis, **options: Any) -> PushWorker:
    return PushWorker(
        redis_pool=redis,
        ctx={"resources": resources},
        handle_signals=False,
        job_completion_wait=max(1, int(settings.drain_s)),
        job_serializer=jobs.encode,
        job_deserializer=jobs.decode,
        **options,
    )


def _choose_slots(processes: int, pool: DecoderPool) -> dict[str, Any]:
    """Returns the worker's options for the number of jobs to claim: the maximum, and what the pool can take now."""
    return {
        "max_jobs": (processes + SPARE_DECODERS) * MAX_PREFETCH + 2 * _JOB_MARGIN,
        "shares": AccountShares(
            share=lambda: processes * pool.prefetch + _JOB_MARGIN,
            spare=lambda: SPARE_DECODERS * pool.prefetch + _JOB_MARGIN,
            slow=pool.slow_accounts,
        ),
    }
