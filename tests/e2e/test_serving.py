"""`daguerre serve`: several API processes on one port, and the health checks."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from service.config.public_url import is_misleading
from service.config.settings import Settings
from service.queue import jobs
from service.queue.heartbeats import Heartbeats
from tests.support.commands import daguerre as run_command
from tests.support.daguerre_processes import Client, Daguerre, Part, stop_process
from tests.support.processes import is_alive
from tests.support.samples import jpeg
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture
async def serve(daguerre: Daguerre) -> Part:
    """Starts two API processes. Both listen."""
    return await start_two(daguerre)


async def start_two(daguerre: Daguerre) -> Part:
    serve = daguerre.start_serve(2)
    await serve.wait_logged("api.listening", 2)
    return serve


def api_processes(serve: Part) -> list[int]:
    return serve.child_pids("serve --fd")


async def test_all_processes_share_the_port(daguerre: Daguerre, serve: Part) -> None:
    one, other = api_processes(serve)
    for stopped, running in ((one, other), (other, one)):
        stop_process(stopped)
        assert (await daguerre.get("/v1/account")).status == 200
        await serve.wait_requests(1, pid=running, path="/v1/account")
        os.kill(stopped, signal.SIGCONT)


async def test_folders_are_private(daguerre: Daguerre, settings: Settings, tmp_path: Path) -> None:
    values = settings.model_dump(exclude_unset=True, exclude={"storage", "renditions_dir"})
    values |= {"data": tmp_path / "new" / "data", "metrics_dir": tmp_path / "counts" / "metrics"}
    daguerre.settings = Settings(**values)
    await start_two(daguerre)
    daguerre.start_worker()
    await daguerre.wait_ready()
    image = await daguerre.upload(jpeg())
    assert (await daguerre.session.get(f"/i/{image.result['id']}?width=8")).status == 200
    folders = [folder for top in (tmp_path / "new", tmp_path / "counts") for folder in (top, *top.rglob("*/"))]
    assert {folder.name for folder in folders} >= {"new", "data", "storage", "incoming", "renditions", "00", "counts"}
    assert [folder for folder in folders if folder.is_dir() and folder.stat().st_mode & 0o777 != 0o700] == []


async def test_public_url_with_another_port_is_logged(daguerre: Daguerre, settings: Settings) -> None:
    daguerre.settings = settings.model_copy(update={"public_url": "http://localhost:9"})
    serve = await start_two(daguerre)
    await serve.wait_logged("public_url.other_port")


@pytest.mark.parametrize(
    ("public_url", "host", "port", "misleading"),
    [
        (None, "127.0.0.1", 8080, False),
        (None, "127.0.0.1", 9000, True),
        (None, "0.0.0.0", 9000, True),
        ("http://localhost:9000", "127.0.0.1", 8080, True),
        ("http://127.0.0.1:9000/", "127.0.0.1", 8080, True),
        ("http://[::1]:9000", "::1", 8080, True),
        ("http://192.0.2.7:9000", "192.0.2.7", 8080, True),
        ("http://localhost:8080", "127.0.0.1", 8080, False),
        ("http://localhost", "127.0.0.1", 8080, False),  # a proxy's
        ("https://localhost:9000", "127.0.0.1", 8080, False),
        ("https://img.example.com", "127.0.0.1", 8080, False),
        ("http://img.example.com:9000", "127.0.0.1", 8080, False),
        ("http://localhost:9000", "0.0.0.0", 8080, False),  # a container's published port
        ("http://localhost:99999", "127.0.0.1", 8080, False),
    ],
)
def test_only_misleading_public_urls_are_logged(
    public_url: str | None, host: str, port: int, *, misleading: bool
) -> None:
    settings = Settings() if public_url is None else Settings(public_url=public_url)
    assert is_misleading(settings, host, port) is misleading


async def test_burst_of_connections_is_balanced(daguerre: Daguerre) -> None:
    pids = api_processes(await start_two(daguerre))
    before = [count_sockets(pid) for pid in pids]
    for _ in range(2):  # closed connections free their slots
        opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", daguerre.port) for _ in range(40)))

        def opened_per_process() -> list[int]:
            return [count_sockets(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]

        await until(lambda: sum(opened_per_process()) == 40)
        assert min(opened_per_process()) >= 15, opened_per_process()
        for _, writer in opened:
            writer.close()
        await until(lambda: sum(opened_per_process()) == 0)


def count_sockets(pid: int) -> int:
    return sum("socket:" in link for link in map(read_link, Path(f"/proc/{pid}/fd").iterdir()))


def read_link(path: Path) -> str:
    try:
        return str(path.readlink())
    except FileNotFoundError:  # it was closed meanwhile
        return ""


async def test_killed_process_is_replaced(daguerre: Daguerre, serve: Part) -> None:
    killed, other = api_processes(serve)
    os.kill(killed, signal.SIGKILL)
    assert (await daguerre.get("/v1/account")).status == 200
    await serve.wait_logged("api.listening", 3)
    pids = api_processes(serve)
    assert len(pids) == 2
    assert other in pids
    assert killed not in pids
    assert f"(process {killed}) was killed by signal 9: starting it again" in serve.log.read_text()


async def test_sigterm_finishes_the_upload_in_flight(daguerre: Daguerre, serve: Part, settings: Settings) -> None:
    await daguerre.start_worker().wait_logged("worker.started")
    picture, draining = jpeg(300, 200) + bytes(600_000), asyncio.Event()  # enough that its file is opened early

    async def body() -> AsyncIterator[bytes]:
        yield picture[:500_000]
        await draining.wait()
        yield picture[500_000:]

    uploading = asyncio.create_task(send(daguerre, body()))
    incoming = settings.storage_folder / "incoming"
    await until(lambda: list(incoming.iterdir()))
    serve.send(signal.SIGTERM)
    await serve.wait_logged("api.draining", 2)
    with pytest.raises(aiohttp.ClientConnectorError):
        await daguerre.get("/healthz")
    assert serve.is_alive()
    draining.set()
    assert await uploading == 200
    assert await serve.exit_code() == 0


@pytest.mark.settings(drain_s=0.2)
async def test_endless_body_does_not_block_shutdown(daguerre: Daguerre, serve: Part, settings: Settings) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield bytes(500_000)
        await asyncio.Event().wait()

    uploading = asyncio.create_task(send(daguerre, body()))
    incoming = settings.storage_folder / "incoming"
    await until(lambda: list(incoming.iterdir()))
    started = time.monotonic()
    serve.send(signal.SIGTERM)
    assert await serve.exit_code() == 0
    assert time.monotonic() - started < settings.drain_s + 4  # after that the supervisor would kill it
    assert serve.log.read_text().count('"api.stopped"') == 2
    assert list(incoming.iterdir()) == []
    with pytest.raises(aiohttp.ClientError):
        await uploading


async def send(daguerre: Daguerre, body: AsyncIterator[bytes]) -> int:
    headers = {"Content-Type": "application/octet-stream", "X-Api-Key": daguerre.key}
    async with daguerre.session.post("/v1/images", data=body, headers=headers) as response:
        return response.status


async def test_processes_end_with_a_killed_parent(serve: Part) -> None:
    pids = api_processes(serve)
    serve.send(signal.SIGKILL)
    await serve.exit_code()
    await until(lambda: not any(is_alive(pid) for pid in pids))
    assert serve.log.read_text().count('"api.stopped"') == 2


async def test_single_process_has_no_supervisor(daguerre: Daguerre) -> None:
    serve = daguerre.start_serve(1)
    await serve.wait_logged("api.listening")
    assert (await daguerre.get("/v1/account")).status == 200
    assert api_processes(serve) == []
    await serve.wait_requests(1, pid=serve.pid, path="/v1/account")


async def test_health_of_the_api(daguerre: Daguerre) -> None:
    port = str(daguerre.listener.getsockname()[1])
    serve = await start_two(daguerre)
    address = {"DAGUERRE_HOST": "0.0.0.0", "DAGUERRE_PORT": port}
    assert (await asyncio.to_thread(run_command, "health", "api", **address)).returncode == 0
    serve.send(signal.SIGTERM)
    await serve.exit_code()
    result = await asyncio.to_thread(run_command, "health", "api", **address)
    assert (result.returncode, result.stderr) == (1, f"Error: The API on 0.0.0.0, port {port}, does not answer\n")


async def test_health_of_the_worker(daguerre: Daguerre, serve: Part, settings: Settings) -> None:
    queue = {"DAGUERRE_REDIS_URL": settings.redis_url}
    result = await asyncio.to_thread(run_command, "health", "worker", **queue)
    assert result.returncode == 1
    assert "has sent a heartbeat" in result.stderr
    worker = daguerre.start_worker()
    await daguerre.wait_ready()
    assert (await asyncio.to_thread(run_command, "health", "worker", **queue)).returncode == 0
    worker.send(signal.SIGTERM)
    await worker.exit_code()
    assert (await asyncio.to_thread(run_command, "health", "worker", **queue)).returncode == 1


async def test_workers_are_counted_by_host(settings: Settings) -> None:
    redis = jobs.open_redis(settings.redis_url)
    queue = jobs.JobQueue(redis)
    for name in ("a:1", "b:1", "b:2"):
        await Heartbeats(redis).record(name)
    assert await queue.count_workers() == 3
    assert [await queue.count_workers(host=host) for host in ("a", "b", "")] == [1, 2, 0]
    await redis.aclose(close_connection_pool=True)


async def test_process_without_descriptors_recovers(daguerre: Daguerre, settings: Settings) -> None:
    serve = daguerre.start_api()
    await serve.wait_logged("api.listening")
    async with daguerre.connect(keep_alive=True) as early:
        assert (await early.get("/v1/account")).status == 200
        descriptors = count_descriptors(serve.pid)
        resource.prlimit(serve.pid, resource.RLIMIT_NOFILE, (descriptors + 2, descriptors + 2))
        connections = [await asyncio.open_connection("127.0.0.1", daguerre.port) for _ in range(6)]
        await serve.wait_logged("api.accept_failed")

        before = cpu_s(serve.pid)
        await assert_storage_unavailable(early, jpeg())
        assert (await early.get("/v1/account")).result["num_images"] == 0
        await asyncio.sleep(1.2)
        assert cpu_s(serve.pid) - before < 0.5
        assert serve.log.read_text().count("api.accept_failed") == 1  # although it has retried
        await assert_storage_unavailable(early, jpeg() + bytes(600_000))  # its file is opened early
        assert list((settings.storage_folder / "incoming").iterdir()) == []

        for _, writer in connections[:2]:
            writer.close()
        for reader, writer in connections[2:]:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            async with asyncio.timeout(5):
                assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
    assert "Traceback" not in serve.log.read_text()
    serve.send(signal.SIGTERM)
    assert await serve.exit_code() == 0


async def assert_storage_unavailable(client: Client, body: bytes) -> None:
    response = await client.upload(body)
    assert (response.status, response.code) == (503, "storage-unavailable")
    assert response.headers["Retry-After"]
    assert response.seconds < 4  # it does not wait for a descriptor


def count_descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
