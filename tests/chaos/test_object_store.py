"""Faults of a deployment whose images are in an object store. `--chaos-storage s3` runs all other faults on one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.config.values import StoreUrl
from service.launcher.embedded.object_store import BUCKET
from tests.chaos.load import unique_picture
from tests.chaos.site import Site, run_site
from tests.support.samples import jpeg
from tests.support.waiting import until

_NUM_MOVED = 1000

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(180),
]


@pytest.fixture
async def site(tmp_path: Path, record_property: Callable[[str, object], None]) -> AsyncIterator[Site]:
    async with run_site(tmp_path, record_property, on_s3=True) as running:
        yield running


async def test_object_store_is_stopped_for_20_seconds(site: Site) -> None:
    assert site.object_store is not None
    async with site.load():
        site.kill_server(site.object_store)
        await asyncio.sleep(20)
        await site.start_server(site.object_store)


async def test_object_store_hangs(site: Site) -> None:
    """Its connections stay open, and the kernel accepts new ones."""
    assert site.object_store is not None
    assert site.object_store.process is not None
    async with site.load():
        os.kill(site.object_store.process.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(14)
        finally:
            os.kill(site.object_store.process.pid, signal.SIGCONT)


async def test_images_are_moved_to_the_store_and_back(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """A thousand images and those of the load. Daguerre is stopped only for the end of each move."""
    folder = tmp_path / "storage"
    async with run_site(tmp_path, record_property, on_s3=True, storage=folder) as site:
        kept = await store_many(site, _NUM_MOVED)
        async with site.load():
            for target in (StoreUrl("s3", BUCKET), folder):
                await site.copy_storage(target)
                await site.stop()
                started = time.monotonic()
                await site.copy_storage(target)
                site.use_storage(target)
                site.start()
                await site.wait_ready()
                record_property(f"stopped for the move to {target} ms", round((time.monotonic() - started) * 1000))
        for image_id, body in kept.items():
            async with site.daguerre.session.get(f"/i/{image_id}") as answer:
                assert await answer.read() == body


async def store_many(site: Site, count: int) -> dict[str, bytes]:
    """Uploads pictures of one account, some at the same time. Returns them by their ids."""
    kept: dict[str, bytes] = {}
    bodies = iter([unique_picture(jpeg(64)) for _ in range(count)])

    async def upload_rest() -> None:
        for body in bodies:
            response = await site.daguerre.upload(body)
            assert response.status == 200, response
            kept[response.result["id"]] = body

    await asyncio.gather(*(upload_rest() for _ in range(8)))
    return kept


async def test_processes_are_killed_on_an_object_store(site: Site) -> None:
    async with site.load():
        for _ in range(3):
            killed = site.serve.child_pids("serve --fd")[0]
            os.kill(killed, signal.SIGKILL)
            worker = site.workers.pop(0)
            await until(worker.decoders)
            worker.send(signal.SIGKILL)
            site.start_worker()
            await asyncio.sleep(2)
