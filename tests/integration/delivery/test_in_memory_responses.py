"""A rendition that no disk can store is sent from memory, and a warning is logged."""

from __future__ import annotations

import asyncio
import gc
import io
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.accounts.policies import set_policy
from service.config.settings import Settings
from service.delivery.limits import MemoryBudget
from service.errors import ServiceError
from service.storage.local.renditions import LocalRenditions
from service.telemetry.metrics import metrics
from tests.conftest import Client, Tenant, resources_of, run_worker
from tests.support import pictures
from tests.support.disks import mounted, remount
from tests.support.scrapes import Scrape

pytestmark = pytest.mark.slow

FAULTS = ["full", "read-only", "no folder"]


@pytest.fixture
def fault(request: pytest.FixtureRequest, settings: Settings) -> Iterator[str]:
    """The folder of renditions is on a small disk of its own, or is none."""
    with ExitStack() as stack:
        if request.param != "no folder":
            stack.enter_context(mounted(settings.renditions_folder, "1m"))
        yield request.param


@contextmanager
def broken_disk(folder: Path, fault: str) -> Iterator[None]:
    if fault == "full":
        ballast = folder / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        yield
        ballast.unlink()
    elif fault == "read-only":
        remount(folder, "ro")
        yield
        remount(folder, "rw")
    else:
        hidden = folder.rename(folder.with_name("hidden"))
        folder.write_bytes(b"a file in its place")
        yield
        folder.unlink()
        hidden.rename(folder)


@pytest.fixture
async def image_id(fault: str, api: Client, settings: Settings, tenant: Tenant) -> AsyncIterator[str]:
    assert fault
    async with run_worker(settings):
        data = pictures.encode("png", pictures.landscape(700, 500))
        answer = await api.post("/v1/images", data=data, headers=tenant.headers)
        yield (await answer.json())["response"]["id"]


def stored_files(settings: Settings) -> list[Path]:
    return [path for path in settings.renditions_folder.glob("??/*") if path.is_file()]


def scrape() -> Scrape:
    return Scrape(metrics.render(None).decode())


@pytest.mark.parametrize("fault", FAULTS, indirect=True)
async def test_rendition_is_sent_without_a_disk(
    api: Client, image_id: str, settings: Settings, fault: str, capfd: Any
) -> None:
    before, began = scrape(), time.monotonic()
    paths = {width: f"/i/{image_id}?width={width}&format=png" for width in (20, 300, 600)}
    with broken_disk(settings.renditions_folder, fault):
        for width in (*paths, 600):
            answer = await api.get(paths[width])
            assert answer.status == 200
            assert Image.open(io.BytesIO(await answer.read())).width == width
        part = await api.get(paths[600], headers={"Range": "bytes=0-9"})
        assert (part.status, len(await part.read())) == (206, 10)
        assert time.monotonic() - began < 5 * settings.wait_s
    assert stored_files(settings) == []
    assert scrape().rise(before, "daguerre_renditions_unkept_total") == 5
    assert capfd.readouterr().out.count("renditions.write_failed") == 1
    async with asyncio.timeout(5):
        while resources_of(api).delivery.memory_budget.held:
            await asyncio.sleep(0.01)
    assert (await api.get(paths[600])).status == 200
    assert len(stored_files(settings)) == 1
    assert capfd.readouterr().out.count("renditions.write_recovered") == 1


@pytest.mark.parametrize("fault", FAULTS, indirect=True)
async def test_copy_without_location_is_sent(
    api: Client, image_id: str, settings: Settings, tenant: Tenant, connection: Any, fault: str
) -> None:
    whole = await (await api.get(f"/i/{image_id}")).read()
    await set_policy(connection, tenant.name, require_signature=None, strip_location=True)
    resources_of(api).delivery.image_cache._policies.clear()
    resources_of(api).delivery.memory_cache.invalidate_all()
    with broken_disk(settings.renditions_folder, fault):
        answer = await api.get(f"/i/{image_id}")
        assert answer.status == 200
        assert await answer.read() == whole  # it has no location to remove
    assert stored_files(settings) == []


@pytest.mark.parametrize("fault", FAULTS[-1:], indirect=True)
async def test_too_large_rendition_is_refused_at_once(
    api: Client, image_id: str, settings: Settings, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.rendition_writer.MAX_UNSTORED_BYTES", 1000)
    with broken_disk(settings.renditions_folder, fault):
        began = time.monotonic()
        answer = await api.get(f"/i/{image_id}?width=300&format=png")
        assert (answer.status, (await answer.json())["error"]["code"]) == (503, "storage-unavailable")
        assert time.monotonic() - began < 3
    assert (await api.get(f"/i/{image_id}?width=300&format=png")).status == 200


@pytest.mark.parametrize("fault", ["full"], indirect=True)
async def test_start_with_a_full_renditions_disk(settings: Settings, fault: str) -> None:
    with broken_disk(settings.renditions_folder, fault):
        LocalRenditions(settings.renditions_folder).prepare()


@pytest.mark.parametrize("fault", ["read-only"], indirect=True)
async def test_start_with_a_read_only_renditions_disk(settings: Settings, fault: str) -> None:
    with broken_disk(settings.renditions_folder, fault):
        LocalRenditions(settings.renditions_folder).prepare()


def test_unmounted_renditions_disk_is_not_filled(tmp_path: Path) -> None:
    disk = tmp_path / "renditions"
    with mounted(disk, "1m"):
        files = LocalRenditions(disk)
        files.prepare()
    with pytest.raises(OSError, match="is not mounted"):
        files._create(disk / "incoming" / "x")
    assert list(disk.iterdir()) == []


def test_bytes_in_memory_are_bounded() -> None:
    class Response:
        pass

    budget, responses = MemoryBudget(100), [Response() for _ in range(3)]
    budget.hold(responses[0], 60)
    with pytest.raises(ServiceError, match="busy"):
        budget.hold(responses[1], 41)
    budget.hold(responses[1], 40)
    assert budget.held == 100
    responses.clear()
    gc.collect()
    assert budget.held == 0
