"""One fault at a time. What each test waits for after it, and the invariants, are in `site`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from service.ids import ImageId
from service.launcher.embedded.server import Server
from service.queue import jobs
from service.storage.local.originals import LocalOriginals
from tests.chaos.load import ChaosClient, unique_picture
from tests.chaos.site import Site, site_in
from tests.support.disks import away, mounted
from tests.support.raw_http import upload_head
from tests.support.samples import jpeg
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
async def site(tmp_path: Path, record_property: Callable[[str, object], None]) -> AsyncIterator[Site]:
    async with site_in(tmp_path, record_property) as started:
        yield started


async def test_workers_are_killed_during_jobs(site: Site) -> None:
    async with site.load():
        for _ in range(3):
            killed = site.workers.pop(0)
            await until(killed.children)
            killed.send(signal.SIGKILL)
            site.start_worker()
            await asyncio.sleep(2)


async def test_children_are_killed_during_probes(site: Site) -> None:
    async with site.load():
        for number in range(4):
            os.kill((await until(site.workers[number % 2].children))[0], signal.SIGKILL)
            await asyncio.sleep(3)  # a picture that takes two along is refused


async def test_api_processes_are_killed_during_uploads(site: Site) -> None:
    async with site.load() as clients:
        for _ in range(3):
            killed = site.serve.children("serve --fd")[0]
            os.kill(killed, signal.SIGKILL)
            await until(lambda killed=killed: killed not in site.serve.children("serve --fd"))  # type: ignore[misc]
            await asyncio.sleep(2)
    assert sum(client.memory.answers["none"] for client in clients) > 0


async def test_clients_disconnect(site: Site) -> None:
    async def leave(part: float, after_s: float) -> None:
        body = unique_picture(jpeg(800, 600))
        _, writer = await asyncio.open_connection("127.0.0.1", site.daguerre.port)
        writer.write(upload_head(site.keys[0], len(body)) + body[: int(len(body) * part)])
        await asyncio.sleep(after_s)
        writer.transport.abort()

    async with site.load():
        for number in range(100):
            await leave((0.0, 0.5, 1.0, 1.0)[number % 4], number % 7 * 0.01)


@pytest.mark.parametrize("server", ["valkey", "postgres"])
@pytest.mark.parametrize("how", ["restarted", "killed", "away for 20 seconds"])
async def test_server_is(site: Site, server: str, how: str) -> None:
    ended: Server = {"valkey": site.valkey, "postgres": site.postgres}[server]
    async with site.load():
        if how == "killed":
            site.kill_server(ended)
        else:
            await site.stop_server(ended)
        if how == "away for 20 seconds":
            await asyncio.sleep(20)
        await site.start_server(ended)


async def test_valkey_forgets_everything(site: Site) -> None:
    redis = jobs.open_redis(site.settings.redis_url)
    async with site.load():
        for _ in range(3):
            await redis.flushall()
            await asyncio.sleep(1)
    await redis.aclose(close_connection_pool=True)


async def test_disk_is_full(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    storage = tmp_path / "disk"
    storage.mkdir()
    with mounted(storage, "40m"):
        async with site_in(tmp_path, record_property, storage=storage) as site, site.load() as clients:
            await until(lambda: count(clients, "503 storage-unavailable") >= 20, timeout_s=60)
            enlarge(storage, "1g")


async def test_storage_is_unmounted(site: Site) -> None:
    """As a disk that is unmounted, with folders of its own below, and mounted again."""
    storage = site.settings.storage_folder
    async with site.load() as clients:
        with away(storage, "folders"):
            await until(lambda: count(clients, "503 storage-unavailable") >= 20, timeout_s=60)
            await asyncio.sleep(3)


def enlarge(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def count(clients: list[ChaosClient], answer: str) -> int:
    return sum(client.memory.answers[answer] for client in clients)


async def test_500_clients_send_a_byte_a_second(site: Site) -> None:
    async with site.load() as clients, AsyncExitStack() as stack:
        writers = []
        for _ in range(500):
            _, writer = await asyncio.open_connection("127.0.0.1", site.daguerre.port)
            stack.callback(writer.transport.abort)
            writer.write(upload_head(site.keys[0], 1_000_000))
            writers.append(writer)
        before = count(clients, "200")
        for _ in range(10):
            for writer in writers:
                writer.write(b"x")
            await asyncio.sleep(1)
        assert count(clients, "200") > before + 100


async def test_everything_is_restarted(site: Site) -> None:
    async with site.load():
        for worker in site.workers:  # before, SIGTERM would end it at once
            await worker.wait_logged("worker.started")
        ended = [site.serve, *site.workers]
        for part in ended:
            part.send(signal.SIGTERM)
        assert [await part.exit_code() for part in ended] == [0, 0, 0]
        site.start()
        await site.wait_ready()


async def test_every_process_is_killed_at_once(site: Site) -> None:
    async with site.load():
        site.kill_all()
        await site.start_server(site.postgres)
        await site.start_server(site.valkey)
        site.start()
        await site.wait_ready()


async def test_lost_image_is_noticed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The invariants can fail."""
    monkeypatch.setattr("tests.chaos.site._SETTLING_S", 3)
    storage = LocalOriginals(site.settings.storage_folder)

    async def lose_images() -> None:
        async with site.load() as clients:
            for image_id in [name for client in clients for name in client.memory.stored]:
                await storage.remove(ImageId(image_id))

    with pytest.raises(AssertionError, match="its file is missing"):
        await lose_images()
