"""A disk that hangs, as one over the network may: what does not need it goes on, and few threads wait for it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from service.config.settings import Settings
from service.ids import ImageId
from service.storage.local import disk
from service.storage.local.originals import LocalOriginals
from service.telemetry.metrics import metrics
from tests.conftest import Client, Tenant, resources_of, run_worker
from tests.support.disks import on_disk
from tests.support.samples import insert_image, jpeg

MANY = 40  # more than a pool has threads


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[threading.Thread]]:
    """The threads that wait, until the test ends, in a check of the storage."""
    going_on = threading.Event()
    waiting: list[threading.Thread] = []

    def wait(_: Path) -> None:
        waiting.append(threading.current_thread())
        going_on.wait(30)

    monkeypatch.setattr(disk, "try_write", wait)
    yield waiting
    going_on.set()


async def checks(api: Client) -> dict[str, str]:
    answer = await api.get("/readyz")
    found: dict[str, str] = (await answer.json())["checks"]
    return found


@pytest.mark.slow
async def test_readiness_uses_one_thread(api: Client, hanging: list[threading.Thread]) -> None:
    began = time.monotonic()
    answers = await asyncio.gather(*(checks(api) for _ in range(MANY)))
    assert 1.5 < time.monotonic() - began < 5
    assert {answer["storage"] for answer in answers} == {"unavailable"}
    assert {answer["database"] for answer in answers} == {"ok"}
    began = time.monotonic()
    assert (await checks(api))["storage"] == "unavailable"  # the check under way is older than its time limit
    assert time.monotonic() - began < 1
    assert len(hanging) == 1


@pytest.mark.slow
async def test_readiness_returns_with_the_storage(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()
    monkeypatch.setattr(disk, "try_write", lambda _: going_on.wait(30))
    assert (await checks(api))["storage"] == "unavailable"
    going_on.set()
    async with asyncio.timeout(5):
        while (await checks(api))["storage"] != "ok":
            await asyncio.sleep(0.01)


async def test_disconnect_cancels_no_check(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    began, going_on = threading.Event(), threading.Event()

    def wait(_: Path) -> None:
        began.set()
        going_on.wait(30)

    monkeypatch.setattr(disk, "try_write", wait)
    first = asyncio.create_task(checks(api))
    while not began.is_set():
        await asyncio.sleep(0.01)
    second = asyncio.create_task(checks(api))
    await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.sleep(0.1)
    going_on.set()
    assert (await second)["storage"] == "ok"


@asynccontextmanager
async def blocked_pictures(api: Client, storage: LocalOriginals, image_ids: list[ImageId]) -> AsyncIterator[None]:
    """Requests that hang: the files are FIFOs, and opening one waits for a writer."""
    for image_id in image_ids:
        os.mkfifo(storage.path(image_id))
    requests = [asyncio.create_task(api.get(f"/i/{image_id}")) for image_id in image_ids]
    await asyncio.sleep(0.5)
    try:
        yield
    finally:
        while not all(request.done() for request in requests):
            for image_id in image_ids:
                open_writer(storage.path(image_id))
            await asyncio.wait(requests, timeout=0.05)
        for request in requests:
            (await request).close()
        for image_id in image_ids:
            storage.path(image_id).unlink()


def open_writer(path: Path) -> None:
    """Lets a reader go on, if there is one."""
    with suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.slow
async def test_renditions_do_not_wait_for_originals(
    api: Client, tenant: Tenant, connection: Any, settings: Settings
) -> None:
    resources = resources_of(api)
    async with run_worker(settings):
        answer = await api.post("/v1/images", data=jpeg(), headers=tenant.headers | {"Content-Type": "image/jpeg"})
        path = f"/i/{(await answer.json())['response']['id']}?width=10"
        assert (await api.get(path)).status == 200
    image_ids = [ImageId(f"Hanging{number:02}") for number in range(MANY)]
    for image_id in image_ids:
        await insert_image(connection, tenant, image_id)
    async with blocked_pictures(api, on_disk(resources.storage), image_ids):
        resources.delivery.memory_cache.invalidate_all()
        async with asyncio.timeout(5):
            assert (await api.get(path)).status == 200
            assert (await api.get("/metrics")).status == 200
            assert (await checks(api))["storage"] == "unavailable"  # no thread of its disk is free


async def test_delete_does_not_wait_for_a_disk(
    api: Client, tenant: Tenant, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()
    storage = on_disk(resources_of(api).storage)
    await insert_image(connection, tenant, "AAAAAAA")
    storage.path(ImageId("AAAAAAA")).write_bytes(b"x")
    remove = disk.remove

    def wait(image_id: ImageId, root: int) -> None:
        going_on.wait(30)
        remove(image_id, root)

    monkeypatch.setattr(disk, "remove", wait)
    resources_of(api).file_removal.timeout_s = 0.2
    async with asyncio.timeout(10):
        assert (await api.delete("/v1/images/AAAAAAA", headers=tenant.headers)).status == 200
        assert storage.path(ImageId("AAAAAAA")).exists()
        assert await connection.fetchval("select count(*) from removals") == 1
        going_on.set()
        while await connection.fetchval("select count(*) from removals"):
            await asyncio.sleep(0.01)
    assert not storage.path(ImageId("AAAAAAA")).exists()


async def test_metrics_have_a_time_limit(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()
    waiting: list[object] = []

    def render(*_: object) -> bytes:
        waiting.append(None)
        going_on.wait(30)
        return b""

    with monkeypatch.context() as patch:
        patch.setattr(type(metrics), "render", render)
        patch.setattr(resources_of(api).metrics_scrape, "_timeout_s", 0.3)
        answers = await asyncio.gather(*(api.get("/metrics") for _ in range(MANY)))
        assert {(answer.status, answer.headers["Retry-After"]) for answer in answers} == {(503, "1")}
        async with asyncio.timeout(5):
            while not waiting:  # its look at the queue may outlast the answers
                await asyncio.sleep(0.01)
        assert len(waiting) == 1
        going_on.set()
        async with asyncio.timeout(5):
            while (await api.get("/metrics")).status != 200:
                await asyncio.sleep(0.01)
