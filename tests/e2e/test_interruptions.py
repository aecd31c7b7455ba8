"""Uploads while PostgreSQL or Valkey is unavailable, and while processes shut down."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import asyncpg
import pytest

from service.launcher.embedded.postgres import Postgres
from service.launcher.embedded.valkey import Valkey
from service.queue.connection import Redis
from service.queue.heartbeats import WORKERS_KEY
from service.queue.jobs import PROBE_QUEUE
from tests.conftest import Servers, empty
from tests.support.daguerre_processes import Daguerre, Response, stop_process, suspend_decoder
from tests.support.processes import is_alive
from tests.support.raw_http import upload_head
from tests.support.samples import jpeg, slow_svg
from tests.support.stored_state import StoredState
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

# Takes a decoder half a second, so that a test can suspend it meanwhile.
SLOW = slow_svg(10)


@pytest.fixture
def redis_url(own_valkey: Valkey) -> str:
    return empty(own_valkey)


@pytest.mark.settings(wait_s=20)
async def test_lost_job_is_enqueued_again_while_client_waits(
    daguerre: Daguerre, stored: StoredState, redis: Redis, own_valkey: Valkey
) -> None:
    _, worker = await daguerre.start()
    stop_process(worker.pid)
    uploading = asyncio.create_task(daguerre.upload(jpeg()))
    image_id = await stored.wait_row()
    await until(lambda: redis.zscore(PROBE_QUEUE, image_id))

    restart_empty(own_valkey)
    await redis.connection_pool.disconnect()
    assert await redis.keys() == []
    worker.send(signal.SIGCONT)
    response = await uploading
    assert response.status == 200
    assert response.seconds < 8  # the sweep only retries after ten seconds
    assert response.result["id"] == image_id
    assert response.result["width"] == 64
    await stored.assert_holds({image_id: jpeg()})


def restart_empty(valkey: Valkey) -> None:
    valkey.stop()
    shutil.rmtree(valkey.folder)
    valkey.start()


async def test_uploads_recover_from_a_valkey_outage(
    daguerre: Daguerre, stored: StoredState, own_valkey: Valkey
) -> None:
    await daguerre.start()
    first = (await daguerre.upload(jpeg())).result["id"]
    own_valkey.stop()
    await daguerre.wait_unavailable("queue", "worker")
    large = jpeg(2400, 1600, quality=95)
    for refused in await asyncio.gather(*(daguerre.upload(body) for body in [jpeg(), large] * 4)):
        assert (refused.status, refused.code) == (503, "queue-unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.seconds < 1
    assert (await daguerre.show(first, verbose="1")).result["width"] == 64
    assert (await daguerre.get("/v1/account")).result["num_images"] == 1
    await stored.assert_holds({first: jpeg()})

    own_valkey.start()
    again = await wait_accepted(daguerre, within_s=3)
    await stored.assert_holds({first: jpeg(), again: jpeg()})
    assert all(part.is_alive() for part in daguerre.parts)


async def wait_accepted(daguerre: Daguerre, *, within_s: float) -> str:
    """Uploads until a response is 200 and returns its id. The responses before must be 503."""

    async def accepted() -> str | None:
        response = await daguerre.upload(jpeg())
        assert response.status in (200, 503), response
        return str(response.result["id"]) if response.status == 200 else None

    return str(await until(accepted, within_s))


@dataclass
class Load:
    """Clients that upload one picture after the other, with their responses and connection errors."""

    body: bytes
    responses: list[Response] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    stopping: bool = False

    def count(self, *statuses: int) -> int:
        return sum(response.status in statuses for response in self.responses)

    def ids(self) -> set[str]:
        return {response.result["id"] for response in self.responses if response.status in (200, 202)}

    async def run_client(self, daguerre: Daguerre, *, keep_alive: bool) -> None:
        async with daguerre.connect(keep_alive=keep_alive) as client:
            while not self.stopping:
                try:
                    response = await client.upload(self.body)
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.errors.append(error)
                    return
                self.responses.append(response)
                if response.status == 503:
                    await asyncio.sleep(0.05)


@asynccontextmanager
async def load(daguerre: Daguerre, body: bytes, *, keep_alive: int, one_shot: int = 0) -> AsyncIterator[Load]:
    """Runs clients within the block, some on persistent connections and some with a new connection per upload.

    It ends when they have the responses to their last uploads.
    """
    running = Load(body)
    async with asyncio.TaskGroup() as clients:
        for number in range(keep_alive + one_shot):
            clients.create_task(running.run_client(daguerre, keep_alive=number < keep_alive))
        try:
            yield running
        finally:
            running.stopping = True


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGQUIT], ids=["restarted", "crashed"])
async def test_uploads_survive_a_postgres_outage(
    daguerre: Daguerre, stored: StoredState, servers: Servers, end: signal.Signals
) -> None:
    await daguerre.start()
    async with load(daguerre, jpeg(), keep_alive=4) as clients:
        await until(lambda: clients.count(200) >= 8)
        async with without_postgres(servers.postgres, end):
            await until(lambda: clients.count(503) >= 20)
        before = clients.count(200)
        await until(lambda: clients.count(200) >= before + 8, timeout_s=5)
    assert clients.errors == []
    assert {response.status for response in clients.responses} <= {200, 202, 503}
    for refused in (response for response in clients.responses if response.status == 503):
        assert refused.code == "database-unavailable"
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.seconds < 2.5

    connection = await asyncpg.connect(stored.settings.database_url)
    stored = StoredState(connection, stored.settings)
    await stored.sweep_after(4000)
    await until(lambda: connection.fetchval("select count(*) = 0 from images where state = 'pending'"))
    # An image whose commit was interrupted may exist although its client got a 503.
    rows = {row["id"] for row in await connection.fetch("select id from images")}
    assert clients.ids() <= rows
    assert len(rows) <= len(clients.ids()) + 4
    await stored.assert_holds(dict.fromkeys(rows, jpeg()))
    await connection.close()
    assert all(part.is_alive() for part in daguerre.parts)


@asynccontextmanager
async def without_postgres(postgres: Postgres, end: signal.Signals) -> AsyncIterator[None]:
    """Stops PostgreSQL with this signal, e.g. SIGQUIT for a crash. Starts it again at the end of the block."""
    assert postgres.process is not None
    postgres.process.send_signal(end)
    try:
        await asyncio.to_thread(postgres.process.wait, 20)
        yield
    finally:
        postgres.start()


async def test_sigterm_under_load_aborts_no_request(daguerre: Daguerre, stored: StoredState) -> None:
    await daguerre.start()
    apis = [daguerre.parts[0], daguerre.start_api()]
    body = jpeg(320, 240)
    async with load(daguerre, body, keep_alive=12, one_shot=4) as first:
        await until(lambda: all(part.count_requests(method="POST", status=200) for part in apis))
    reader, writer = await asyncio.open_connection(*daguerre.listener.getsockname())
    slow = body + bytes(600_000)  # enough that its file is opened before the body is complete
    writer.write(upload_head(daguerre.key, len(slow)) + slow[:500_000])
    incoming = stored.settings.storage_folder / "incoming"
    [received] = await until(lambda: list(incoming.iterdir()))
    [stopped] = [part for part in apis if part.has_open(received)]

    async with load(daguerre, body, keep_alive=12, one_shot=4) as clients:
        served = stopped.count_requests(method="POST", status=200)
        await until(lambda: stopped.count_requests(method="POST", status=200) > served + 16)
        stopped.send(signal.SIGTERM)
        await stopped.wait_logged("api.draining")
        await asyncio.sleep(1)  # longer than an idle connection would stay open
        writer.write(slow[500_000:])
        response = await reader.read()
        assert response.startswith(b"HTTP/1.1 200 "), response
        assert await stopped.exit_code() == 0
        before = clients.count(200)
        await until(lambda: clients.count(200) > before + 32)
    writer.close()
    assert clients.errors == []
    assert clients.count(200) == len(clients.responses)
    ids = first.ids() | clients.ids() | {received.name}
    assert await stored.connection.fetchval("select count(*) from images") == len(ids)
    await stored.assert_holds(dict.fromkeys(ids, body) | {received.name: slow})


async def test_request_in_flight_at_sigterm_is_answered(daguerre: Daguerre, stored: StoredState) -> None:
    api, _ = await daguerre.start()
    reader, writer = await asyncio.open_connection(*daguerre.listener.getsockname())
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"}")
    api.send(signal.SIGTERM)
    await api.wait_logged("api.draining")
    writer.write(upload_head(daguerre.key, len(jpeg())) + jpeg())
    response = await reader.read()
    writer.close()
    assert response.startswith(b"HTTP/1.1 200 "), response
    assert b"\r\nConnection: close\r\n" in response
    assert await api.exit_code() == 0
    [image] = await stored.connection.fetch("select id from images")
    await stored.assert_holds({image["id"]: jpeg()})


async def test_worker_finishes_its_job_at_sigterm(daguerre: Daguerre, stored: StoredState, redis: Redis) -> None:
    _, worker = await daguerre.start()
    uploading = asyncio.create_task(daguerre.upload(SLOW))
    decoder = await suspend_decoder(worker, await stored.wait_stored())
    worker.send(signal.SIGTERM)
    signalled_at = time.time()
    await until(lambda: redis.zcount(WORKERS_KEY, signalled_at + 0.5, "+inf"))  # it still sends heartbeats
    os.kill(decoder, signal.SIGCONT)
    response = await uploading
    assert response.status == 200
    assert await worker.exit_code() == 0
    assert not is_alive(decoder)
    assert await redis.zcard(WORKERS_KEY) == 0
    await stored.assert_holds({response.result["id"]: SLOW})


async def test_readyz_names_failures_and_healthz_is_200(
    daguerre: Daguerre, servers: Servers, own_valkey: Valkey
) -> None:
    await daguerre.start_api().wait_logged("api.listening")
    await daguerre.wait_unavailable("worker")
    worker = daguerre.start_worker()
    await daguerre.wait_ready()
    worker.send(signal.SIGTERM)
    assert await worker.exit_code() == 0
    assert await daguerre.list_unavailable() == {"worker"}
    daguerre.start_worker()
    await daguerre.wait_ready()

    own_valkey.stop()
    await daguerre.wait_unavailable("queue", "worker", timeout_s=10)
    own_valkey.start()
    await daguerre.wait_ready(timeout_s=10)
    async with without_postgres(servers.postgres, signal.SIGINT):
        await daguerre.wait_unavailable("database", timeout_s=10)
    await daguerre.wait_ready(timeout_s=10)
