"""Hosts with wrong clocks: no decision depends on them, so no work is lost or late and no process counts as dead."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.config.settings import Settings
from service.ids import ImageId
from service.launcher.embedded.valkey import Valkey
from service.queue import jobs
from service.storage.local.originals import LocalOriginals
from tests.conftest import Tenant
from tests.support.clocks import WrongClock, wrong_clock
from tests.support.daguerre_processes import Daguerre, Part, processes_of, stop_process
from tests.support.folders import temporary_folder
from tests.support.samples import jpeg
from tests.support.waiting import until

pytestmark = pytest.mark.slow


def receive(settings: Settings, image_id: str, *, age_s: float = 0) -> Path:
    """Writes the file of an upload that has no row yet."""
    path = LocalOriginals(settings.storage_folder).incoming_path(ImageId(image_id))
    path.write_bytes(jpeg())
    os.utime(path, (time.time() - age_s,) * 2)
    return path


async def start_both(daguerre: Daguerre, api_clock: WrongClock, worker_clock: WrongClock) -> tuple[Part, Part]:
    """Starts an API process and a worker. Returns when /readyz is 200."""
    api = daguerre.start_api(api_clock.environment)
    await api.wait_logged("api.listening")
    worker = daguerre.start_worker(worker_clock.environment)
    await worker.wait_logged("worker.started")
    await daguerre.wait_ready()
    return api, worker


@pytest.mark.parametrize(("api", "worker"), [("-1d", "+2h"), ("+2h", "-1d"), ("-90", "+90"), ("+90", "-90")])
async def test_wrong_clocks_stop_no_work(
    daguerre: Daguerre, settings: Settings, connection: Any, tmp_path: Path, api: str, worker: str
) -> None:
    """The worker probes, counts as alive, refreshes the counters, and sweeps only old files."""
    LocalOriginals(settings.storage_folder).prepare()
    young, old = receive(settings, "Young01"), receive(settings, "Old0001", age_s=3700)
    await start_both(daguerre, wrong_clock(tmp_path, api), wrong_clock(tmp_path, worker))
    assert (await daguerre.upload(jpeg())).status == 200
    assert (await asyncio.to_thread(check_health, settings)).returncode == 0
    await until(lambda: not old.exists(), timeout_s=40)
    assert young.exists()

    async def is_counted() -> bool:
        return bool(await connection.fetchval("select bool_and(refreshed_at > '-infinity') from accounts"))

    await until(is_counted, timeout_s=40)


def check_health(settings: Settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "service.cli", "health", "worker"],
        env={"PATH": os.environ["PATH"], "DAGUERRE_REDIS_URL": settings.redis_url},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_clock_jump_stops_no_periodic_job(daguerre: Daguerre, settings: Settings, tmp_path: Path) -> None:
    clock = wrong_clock(tmp_path, "+0", moves=True)
    await start_both(daguerre, wrong_clock(tmp_path, "+0"), clock)
    assert (await daguerre.upload(jpeg())).status == 200
    for number, offset in enumerate(("+2h", "-2h")):
        clock.set(offset)
        young, old = receive(settings, f"Young0{number}"), receive(settings, f"Old000{number}", age_s=3700)
        await until(lambda old=old: not old.exists(), timeout_s=40)  # type: ignore[misc]
        assert young.exists()
    assert (await daguerre.upload(jpeg())).status == 200


async def test_dead_worker_is_detected_by_a_wrong_clock(daguerre: Daguerre, tmp_path: Path) -> None:
    _, worker = await start_both(daguerre, wrong_clock(tmp_path, "-1d"), wrong_clock(tmp_path, "+2h"))
    worker.send(signal.SIGKILL)
    await daguerre.wait_unavailable("worker", timeout_s=40)


@pytest.fixture
def valkey_with_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Valkey, WrongClock]]:
    clock = wrong_clock(tmp_path, "+0", moves=True)
    with temporary_folder() as folder:
        valkey = Valkey(folder / "valkey")
        with monkeypatch.context() as environment:
            for name, value in clock.environment.items():
                environment.setenv(name, value)
            valkey.start()
        yield valkey, clock
        valkey.stop()


@pytest.mark.parametrize("offset", ["-1d", "+2h"])
async def test_clock_jump_of_redis_stops_no_work(
    settings: Settings, tenant: Tenant, tmp_path: Path, valkey_with_clock: tuple[Valkey, WrongClock], offset: str
) -> None:
    valkey, clock = valkey_with_clock
    changed = settings.model_copy(update={"redis_url": valkey.url})
    async with processes_of(changed, tenant.key, tmp_path / "logs") as daguerre:
        _, worker = await daguerre.start()
        stop_process(worker.pid)
        uploading = [asyncio.create_task(daguerre.upload(jpeg(100 + number))) for number in range(3)]
        redis = jobs.open_redis(valkey.url)
        await until(lambda: redis.zcard(jobs.PROBE_QUEUE))
        clock.set(offset)

        async def has_jumped() -> bool:
            seconds, _ = await redis.time()
            return bool(abs(seconds - time.time()) > 3600)

        await until(has_jumped)
        os.kill(worker.pid, signal.SIGCONT)
        assert {response.status for response in await asyncio.gather(*uploading)} <= {200, 202}
        await redis.aclose(close_connection_pool=True)
        await daguerre.wait_ready(timeout_s=40)
        for response in [await upload for upload in uploading]:
            await daguerre.wait_processed(response.result["id"])
        old = receive(changed, "Old0001", age_s=3700)
        await until(lambda: not old.exists(), timeout_s=40)
