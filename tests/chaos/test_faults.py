"""One fault per test. `Site.load` waits for the recovery and checks the invariants."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from bench import burst
from bench.rows.connections import MIX, Account, Mix
from service.ids import ImageId
from service.launcher.embedded.server import Server
from service.queue import jobs
from service.storage.local.originals import LocalOriginals
from tests.chaos.load import ChaosClient, send, unique_picture
from tests.chaos.site import Site, run_site
from tests.support.disks import mounted, unmounted
from tests.support.processes import processes
from tests.support.raw_http import upload_head
from tests.support.samples import jpeg
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
async def site(
    request: pytest.FixtureRequest, tmp_path: Path, record_property: Callable[[str, object], None]
) -> AsyncIterator[Site]:
    """On the disk, or in an object store with `--chaos-storage s3`, except for tests of the disk."""
    on_s3 = request.config.getoption("--chaos-storage") == "s3"
    if on_s3 and request.node.get_closest_marker("of_disk"):
        pytest.skip("it is about the disk")
    async with run_site(tmp_path, record_property, on_s3=on_s3) as running:
        yield running


async def test_workers_are_killed_during_jobs(site: Site) -> None:
    async with site.load():
        for _ in range(3):
            killed = site.workers.pop(0)
            await until(killed.decoders)
            killed.send(signal.SIGKILL)
            site.start_worker()
            await asyncio.sleep(2)


async def test_decoders_are_killed_during_probes(site: Site) -> None:
    async with site.load():
        for number in range(4):
            os.kill((await until(site.workers[number % 2].decoders))[0], signal.SIGKILL)
            await asyncio.sleep(3)  # a picture during which two decoders die is refused


async def test_api_processes_are_killed_during_uploads(site: Site) -> None:
    async with site.load() as clients:
        for _ in range(3):
            killed = site.serve.child_pids("serve --fd")[0]
            os.kill(killed, signal.SIGKILL)
            await until(lambda killed=killed: killed not in site.serve.child_pids("serve --fd"))  # type: ignore[misc]
            await asyncio.sleep(2)
    assert sum(client.history.responses["none"] for client in clients) > 0


async def test_clients_disconnect(site: Site) -> None:
    async def disconnect(share: float, after_s: float) -> None:
        body = unique_picture(jpeg(800, 600))
        _, writer = await asyncio.open_connection("127.0.0.1", site.daguerre.port)
        writer.write(upload_head(site.keys[0], len(body)) + body[: int(len(body) * share)])
        await asyncio.sleep(after_s)
        writer.transport.abort()

    async with site.load():
        for number in range(100):
            await disconnect((0.0, 0.5, 1.0, 1.0)[number % 4], number % 7 * 0.01)


@pytest.mark.parametrize("server", ["valkey", "postgres"])
@pytest.mark.parametrize("how", ["restarted", "killed", "stopped for 20 seconds"])
async def test_server_outage(site: Site, server: str, how: str) -> None:
    target: Server = {"valkey": site.valkey, "postgres": site.postgres}[server]
    async with site.load():
        if how == "killed":
            site.kill_server(target)
        else:
            await site.stop_server(target)
        if how == "stopped for 20 seconds":
            await asyncio.sleep(20)
        await site.start_server(target)


@pytest.mark.parametrize("server", ["valkey", "postgres"])
async def test_server_hangs(site: Site, server: str) -> None:
    """Its connections stay open, and the kernel accepts new ones, also those that should cancel statements."""
    process = {"valkey": site.valkey, "postgres": site.postgres}[server].process
    assert process is not None
    async with site.load():
        hanging = [process.pid, *(pid for pid, (parent, *_) in processes().items() if parent == process.pid)]
        try:
            for pid in hanging:
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(14)
        finally:
            for pid in hanging:
                os.kill(pid, signal.SIGCONT)


async def test_valkey_is_flushed(site: Site) -> None:
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
        async with run_site(tmp_path, record_property, storage=storage) as site, site.load() as clients:
            await until(lambda: count(clients, "503 storage-unavailable") >= 20, timeout_s=60)
            enlarge(storage, "1g")


@pytest.mark.of_disk
async def test_storage_is_unmounted(site: Site) -> None:
    """The disk is unmounted and mounted again. Its mount point has the folders of a storage."""
    storage = site.settings.storage_folder
    async with site.load() as clients:
        with unmounted(storage, "folders"):
            await until(lambda: count(clients, "503 storage-unavailable") >= 20, timeout_s=60)
            await asyncio.sleep(3)


def enlarge(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def count(clients: list[ChaosClient], response: str) -> int:
    return sum(client.history.responses[response] for client in clients)


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


async def test_2000_connections_at_once(site: Site) -> None:
    mix = Mix([Account(key, []) for key in site.keys[:2]], jpeg())
    burst.raise_descriptor_limit(2 * 2000 + 512)
    async with site.load():
        for account in mix.accounts:
            uploaded = await upload_all(site, account.key, 8 + mix.count_deletes(2000))
            account.images[:], account.deletable[:] = uploaded[:8], uploaded[8:]
        responses = await burst.send_all(site.daguerre.port, mix.make_all(2000), timeout_s=60)
    wrong = [response for response in responses if not response.is_success and not response.is_refusal]
    assert wrong == []
    assert {response.kind for response in responses if response.is_success} == set(MIX)


async def upload_all(site: Site, key: str, count: int) -> list[str]:
    async with aiohttp.ClientSession(site.base_url, headers={"X-Api-Key": key}) as session:
        headers = {"Content-Type": "image/jpeg"}
        responses = [await send(session.post("/v1/images", data=jpeg(), headers=headers)) for _ in range(count)]
    return [response.body["response"]["id"] for response in responses]


async def test_everything_is_restarted(site: Site) -> None:
    async with site.load():
        for worker in site.workers:  # SIGTERM would end it immediately before that
            await worker.wait_logged("worker.started")
        stopping = [site.serve, *site.workers]
        for part in stopping:
            part.send(signal.SIGTERM)
        assert [await part.exit_code() for part in stopping] == [0, 0, 0]
        site.start()
        await site.wait_ready()


async def test_every_process_is_killed_at_once(site: Site) -> None:
    async with site.load():
        site.kill_all()
        for server in filter(None, (site.postgres, site.valkey, site.object_store)):
            await site.start_server(server)
        site.start()
        await site.wait_ready()


@pytest.mark.of_disk
async def test_lost_image_is_detected(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the invariants can fail."""
    monkeypatch.setattr("tests.chaos.site._CONSISTENCY_TIMEOUT_S", 3)
    storage = LocalOriginals(site.settings.storage_folder)

    async def lose_images() -> None:
        async with site.load() as clients:
            for image_id in [name for client in clients for name in client.history.stored]:
                await storage.remove([ImageId(image_id)])

    with pytest.raises(AssertionError, match="its file is missing"):
        await lose_images()
