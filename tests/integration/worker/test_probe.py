"""Which failures count against a picture, and which never do."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from arq import Retry

from service.config.settings import Settings
from service.dependencies import outages
from service.ids import ImageId
from service.images.probe import Probe
from service.queue import jobs
from service.queue.jobs import PROBE_QUEUE, JobQueue, ProbeJob
from service.storage.local.originals import LocalOriginals
from service.telemetry.metrics import metrics
from service.uploads.ingest import ProbeResult
from tests.conftest import RunBurst, Tenant
from tests.support.samples import insert_image, jpeg
from tests.support.scrapes import Scrape
from worker.main import PERIODIC_JOBS, make_probe_worker, make_render_worker
from worker.probe import probe_image
from worker.resources import Resources, open_resources
from worker.sandbox.pool import DecoderPool

PICTURE = ImageId("picture")


@pytest.fixture
async def pending(connection: Any, tenant: Tenant, settings: Settings) -> None:
    """An uploaded picture and its job."""
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    storage.path(PICTURE).write_bytes(jpeg())
    await insert_image(connection, tenant, PICTURE, state="pending")
    redis = jobs.open_redis(settings.redis_url)
    await JobQueue(redis).enqueue([ProbeJob(PICTURE, tenant.id, "", "")])
    await redis.aclose(close_connection_pool=True)


@pytest.mark.usefixtures("pending")
async def test_queue_wait_is_by_the_clock_of_redis(settings: Settings) -> None:
    """A job's score is a time of that clock, which may differ from the host's by any amount."""
    before = Scrape(metrics.render(None).decode())
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await probe_image({"resources": resources, "job_try": 1, "score": 0, "waited_s": 1.5}, PICTURE, request_id="")
    after = Scrape(metrics.render(None).decode())
    assert after.rise(before, "daguerre_queue_wait_seconds_sum") == pytest.approx(1.5)


@pytest.mark.usefixtures("pending")
async def test_oldest_job_is_by_the_clock_of_redis(settings: Settings) -> None:
    redis = jobs.open_redis(settings.redis_url)
    await redis.zincrby(PROBE_QUEUE, -3_600_000, PICTURE)
    state = await JobQueue(redis).measure()
    await redis.aclose(close_connection_pool=True)
    assert state.depth == 1
    assert 3600 <= state.oldest_s < 3630


@pytest.mark.slow
@pytest.mark.usefixtures("pending")
async def test_tables_of_another_version_defer_a_job(
    connection: Any, burst: RunBurst, monkeypatch: pytest.MonkeyPatch
) -> None:
    deferred = asyncio.Event()
    monkeypatch.setattr(outages.DATABASE, "report", lambda _: deferred.set())
    await connection.execute("alter table images rename column mini_preview to other")
    running = asyncio.ensure_future(burst())
    try:
        await asyncio.wait_for(deferred.wait(), 20)
    finally:
        await connection.execute("alter table images rename column other to mini_preview")
    assert (await running).complete == 1
    assert tuple(await connection.fetchrow("select state, crashes from images")) == ("ready", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("pending")
async def test_result_that_no_row_can_hold_fails_the_image(
    connection: Any, burst: RunBurst, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = DecoderPool.probe

    async def lie(self: DecoderPool, *paths: str, account: str) -> Probe:
        return replace(await probe(self, *paths, account=account), width=1 << 40)

    monkeypatch.setattr(DecoderPool, "probe", lie)
    await burst()
    assert tuple(await connection.fetchrow("select state, crashes, error from images")) == ("failed", 2, "probe-failed")


@pytest.mark.slow
@pytest.mark.usefixtures("pending")
async def test_decoder_that_never_reads_fails_the_image(
    settings: Settings, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker can read the file, so the disk is not the cause."""

    async def probe(worker: Resources, tries: int) -> ProbeResult | None:
        await worker.probers.start()
        pid = worker.probers.decoders[0].process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with suppress(Retry):
            return await probe_image(
                {"resources": worker, "job_try": tries, "score": 0, "waited_s": 0}, PICTURE, request_id=""
            )
        return None

    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings.model_copy(update={"probe_timeout_s": 0.3}), redis) as resources:
        assert await probe(resources, 19) is None
        assert await connection.fetchval("select crashes from images") == 0
        assert await probe(resources, 20) is None
        assert await connection.fetchval("select crashes from images") == 1
        assert await probe(resources, 21) is not None
    assert tuple(await connection.fetchrow("select state, error from images")) == ("failed", "probe-failed")


async def test_jobs_have_a_limit_of_30_seconds(settings: Settings) -> None:
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        workers = [make(settings, resources, redis) for make in (make_probe_worker, make_render_worker)]
        limits = [job.timeout_s or worker.job_timeout_s for worker in workers for job in worker.functions.values()]
        limits += [job.timeout_s for job in PERIODIC_JOBS]
        assert len(limits) == 5
        assert max(limits) <= 30
        for worker in workers:
            await worker.close()
