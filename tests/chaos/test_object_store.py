"""Faults of a deployment whose images are in an object store. `--chaos-storage s3` runs all other faults on one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.chaos.site import Site, run_site
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


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
