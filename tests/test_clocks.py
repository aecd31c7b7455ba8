"""Hosts whose clocks are wrong: nothing is decided by them, so nothing is lost, late or taken for dead."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.ids import ImageId
from service.settings import Settings
from service.storage.disk import DiskStorage
from tests.clocks import WrongClock, wrong_clock
from tests.conftest import Tenant
from tests.daguerre_processes import Daguerre, Part, processes_of, until
from tests.samples import jpeg

OFFSETS = ("+2h", "+90", "-90", "-1d")


@pytest.fixture
async def daguerre(settings: Settings, tenant: Tenant, tmp_path: Path) -> AsyncIterator[Daguerre]:
    async with processes_of(settings, tenant.key, tmp_path / "logs") as started:
        yield started


def receive(settings: Settings, image_id: str, *, age_s: float = 0) -> Path:
    """A file of an upload that has no row yet."""
    path = DiskStorage(settings.storage_folder).incoming_path(ImageId(image_id))
    path.write_bytes(jpeg())
    os.utime(path, (time.time() - age_s,) * 2)
    return path


async def start_both(daguerre: Daguerre, clock: WrongClock) -> tuple[Part, Part]:
    """The API has the right clock, and the worker the wrong one."""
    api = daguerre.start_api()
    await api.told("api.listening")
    worker = daguerre.start_worker(clock.environment)
    await worker.told("worker.started")
    await daguerre.wait_away()
    return api, worker


@pytest.mark.parametrize("offset", OFFSETS)
async def test_worker_with_wrong_clock_does_its_work(
    daguerre: Daguerre, settings: Settings, connection: Any, tmp_path: Path, offset: str
) -> None:
    """It probes, is taken for alive, and sweeps what is old and nothing else."""
    DiskStorage(settings.storage_folder).prepare()
    young, old = receive(settings, "Young01"), receive(settings, "Old0001", age_s=3700)
    await start_both(daguerre, wrong_clock(tmp_path, offset))
    assert (await daguerre.upload(jpeg())).status == 200
    assert (await asyncio.to_thread(check_health, settings)).returncode == 0
    await until(lambda: not old.exists())
    assert young.exists()

    async def is_refreshed() -> bool:
        return bool(await connection.fetchval("select bool_and(refreshed_at > '-infinity') from accounts"))

    await until(is_refreshed, timeout_s=60)


def check_health(settings: Settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "service.cli", "health", "worker"],
        env={"PATH": os.environ["PATH"], "DAGUERRE_REDIS_URL": settings.redis_url},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("moved_to", ["-2h", "+2h"])
async def test_periodic_jobs_outlast_a_clock_that_jumps(
    daguerre: Daguerre, settings: Settings, tmp_path: Path, moved_to: str
) -> None:
    clock = wrong_clock(tmp_path, "+0")
    await start_both(daguerre, clock)
    first = receive(settings, "Old0001", age_s=3700)
    await until(lambda: not first.exists())
    clock.set(moved_to)
    young, old = receive(settings, "Young01"), receive(settings, "Old0002", age_s=3700)
    await until(lambda: not old.exists())
    assert young.exists()
    assert (await daguerre.upload(jpeg())).status == 200


async def test_two_workers_of_different_clocks_share_the_work(
    daguerre: Daguerre, settings: Settings, tmp_path: Path
) -> None:
    ahead, behind = (wrong_clock(tmp_path / name, name) for name in ("+2h", "-1d"))
    api = daguerre.start_api()
    await api.told("api.listening")
    for clock in (ahead, behind):
        await daguerre.start_worker(clock.environment).told("worker.started")
    young = receive(settings, "Young01")
    for number in range(2):  # in either order, and after either of them has had a turn
        old = receive(settings, f"Old000{number}", age_s=3700)
        await until(lambda old=old: not old.exists(), timeout_s=40)  # type: ignore[misc]
    assert young.exists()
    assert (await daguerre.upload(jpeg())).status == 200


async def test_api_with_wrong_clock_serves(daguerre: Daguerre, tmp_path: Path) -> None:
    api = daguerre.start_api(wrong_clock(tmp_path, "-1d").environment)
    await api.told("api.listening")
    await daguerre.start_worker().told("worker.started")
    await daguerre.wait_away()
    assert (await daguerre.upload(jpeg())).status == 200
