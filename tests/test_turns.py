"""Accounts take turns: an account that sends much, or what takes long, does not delay another."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.ids import ImageId
from service.queue import jobs
from service.queue.jobs import JobQueue, ProbeJob
from service.settings import Settings
from service.storage.disk import DiskStorage
from tests import pictures
from tests.conftest import Client, NewTenant, Tenant, run_worker
from tests.samples import insert_image, slow_svg

# Some seconds of a child each.
_SLOW = slow_svg(40)
_FLOOD = 200
_SAMPLES = 20


async def flood(settings: Settings, connection: Any, tenant: Tenant) -> None:
    """Slow pictures as uploads leave them, with their jobs."""
    storage = DiskStorage(settings.storage_folder)
    ids = [ImageId(f"slow{number:04}") for number in range(_FLOOD)]
    for image_id in ids:
        storage.path(image_id).write_bytes(_SLOW)
        await insert_image(connection, tenant, image_id, state="pending")
    redis = jobs.open_redis(settings.redis_url)
    await JobQueue(redis).enqueue([ProbeJob(image_id, tenant.id, "", "") for image_id in ids])
    await redis.aclose(close_connection_pool=True)


async def p95(ask: Callable[[], Awaitable[None]]) -> float:
    times = []
    for _ in range(_SAMPLES):
        began = time.monotonic()
        await ask()
        times.append(time.monotonic() - began)
        await asyncio.sleep(0.05)
    print([round(t * 1000) for t in times])
    return statistics.quantiles(times, n=20)[-1]


@pytest.mark.parametrize("processes", [1, 2])
async def test_slow_pictures_delay_no_other_account(
    api: Client, settings: Settings, connection: Any, new_tenant: NewTenant, processes: int
) -> None:
    quiet, loud = await new_tenant(), await new_tenant()
    picture = pictures.encode("jpeg", pictures.landscape(1600, 1200))

    async def upload() -> None:
        async with api.post("/v1/images", data=picture, headers=quiet.headers) as answer:
            assert answer.status == 200, await answer.text()

    async with run_worker(settings, probe_processes=processes):
        alone = await p95(upload)
        await flood(settings, connection, loud)
        await asyncio.sleep(1)
        assert await p95(upload) <= 3 * alone
