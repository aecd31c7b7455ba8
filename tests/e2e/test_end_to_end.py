"""Uploads through real processes, some of which are killed, stopped or cut off from their servers half-way.

Each time the image ends ready, or the client got a clear error and nothing is left of it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from arq.connections import ArqRedis
from PIL import Image

from service.config.settings import Settings
from service.ids import ImageId
from service.launcher.embedded.data_folder import scratch
from service.launcher.embedded.postgres import Postgres
from service.launcher.embedded.valkey import Valkey
from service.queue import jobs
from service.queue.heartbeats import WORKERS_KEY
from service.queue.jobs import PROBE_QUEUE
from service.storage.disk import DiskStorage
from tests.conftest import Servers, Tenant
from tests.support.daguerre_processes import Answer, Daguerre, catch_child, processes_of, stop_process, until
from tests.support.processes import is_alive
from tests.support.samples import jpeg, slow_svg, stored_files
from worker.cron.sweep import sweep
from worker.resources import open_resources

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# Half a second of work for a child, so that it can be caught at it.
SLOW = slow_svg(10)
# More work than any time limit here.
ENDLESS = slow_svg(1000)


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """The test's own, so that it can be ended and emptied."""
    with scratch() as folder, Valkey(folder / "valkey") as server:
        yield server


@pytest.fixture
def redis_url(valkey: Valkey) -> str:
    return valkey.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[ArqRedis]:
    client = jobs.open_redis(redis_url)
    yield client
    await client.aclose(close_connection_pool=True)


@pytest.fixture
async def daguerre(settings: Settings, tenant: Tenant, tmp_path: Path) -> AsyncIterator[Daguerre]:
    """Its end also makes sure that no process has logged the key."""
    async with processes_of(settings, tenant.key, tmp_path / "logs") as started:
        yield started


@dataclass(frozen=True)
class Kept:
    """What PostgreSQL and the storage hold; the account is the test's only one."""

    connection: Any
    settings: Settings

    def path(self, image_id: str) -> Path:
        return DiskStorage(self.settings.storage_folder).path(ImageId(image_id))

    async def wait_row(self) -> str:
        """The id of the one image, as soon as its row is committed."""
        return str(await until(lambda: self.connection.fetchval("select id from images")))

    async def wait_stored(self) -> Path:
        """Where the one image lies, as soon as it lies there."""
        path = self.path(await self.wait_row())
        await until(path.exists)
        return path

    async def assert_holds(self, bodies: dict[str, bytes]) -> None:
        """These images and nothing else: all of them ready, and each counted once."""
        rows = await self.connection.fetch(
            "select id, size from images where state = 'ready' and width is not null and mini_preview is not null"
        )
        assert await self.connection.fetchval("select count(*) from images") == len(rows)
        assert {row["id"]: row["size"] for row in rows} == {name: len(body) for name, body in bodies.items()}
        counters = await self.connection.fetchrow("select num_images, used_bytes from accounts")
        assert tuple(counters) == (len(bodies), sum(map(len, bodies.values())))
        assert {path.name: path.read_bytes() for path in stored_files(self.settings)} == bodies

    async def sweep_after(self, seconds: float) -> None:
        """Let some time pass for all that is unfinished, then sweep once."""
        for table, column in (("images", "created_at"), ("removals", "removed_at")):
            await self.connection.execute(
                f"update {table} set {column} = {column} - $1::float8 * interval '1 s'", seconds
            )
        for path in (self.settings.storage_folder / "incoming").iterdir():
            os.utime(path, (path.stat().st_mtime - seconds,) * 2)
        redis = jobs.open_redis(self.settings.redis_url)
        async with open_resources(self.settings, redis) as resources:
            await sweep({"resources": resources})
        await redis.aclose(close_connection_pool=True)


@pytest.fixture
def kept(connection: Any, settings: Settings) -> Kept:
    return Kept(connection, settings)


async def test_an_upload_is_answered_with_what_the_worker_found(daguerre: Daguerre, kept: Kept) -> None:
    await daguerre.start()
    body = jpeg(300, 200, exif={0x010F: "Daguerre", 0x0112: 6})
    asked = {"with_exif": "1", "verbose": "1", "with_mini_preview": "1", "with_account": "1"}
    answer = await daguerre.upload(body, tags="dog,pet", **asked)
    assert answer.status == 200
    image_id = answer.shown["id"]
    assert (answer.shown["width"], answer.shown["height"]) == (200, 300)
    assert answer.shown["exif"] == {"Make": "Daguerre", "Orientation": 6}
    assert answer.shown["tags"] == ["dog", "pet"]
    preview = Image.open(io.BytesIO(base64.b64decode(answer.shown["mini_preview"])))
    assert preview.format == "JPEG"
    assert preview.height > preview.width
    assert answer.shown["account"]["num_images"] == 1
    assert answer.shown["account"]["storage"]["used"] == len(body)

    assert (await daguerre.show(image_id, **asked)).body == answer.body
    await kept.assert_holds({image_id: body})
    assert kept.path(image_id).read_bytes() == body


async def test_the_reply_of_a_job_wakes_the_request_at_once(daguerre: Daguerre) -> None:
    await daguerre.start()
    answers = [await daguerre.upload(jpeg()) for _ in range(5)]
    assert {answer.status for answer in answers} == {200}
    # The queue and the row are looked at once a second where a bell or a reply was lost.
    assert min(answer.seconds for answer in answers) < 0.25


@pytest.mark.settings(wait_s=15)
async def test_the_job_of_a_killed_worker_is_finished_by_another_one_that_runs(daguerre: Daguerre, kept: Kept) -> None:
    _, worker = await daguerre.start()
    uploading = asyncio.create_task(daguerre.upload(SLOW))
    child = await catch_child(worker, await kept.wait_stored())
    await daguerre.start_worker().told("worker.started")

    worker.send(signal.SIGKILL)
    killed_at = time.monotonic()
    await until(lambda: not is_alive(child), timeout_s=2)
    answer = await uploading
    assert time.monotonic() - killed_at < 10
    assert answer.status == 200
    assert (answer.shown["width"], answer.shown["height"]) == (380, 290)
    await kept.assert_holds({answer.shown["id"]: SLOW})
    assert await kept.connection.fetchval("select crashes from images") == 0


@pytest.mark.settings(wait_s=1)
async def test_the_job_of_a_killed_worker_is_finished_by_one_that_is_started_afterwards(
    daguerre: Daguerre, kept: Kept
) -> None:
    _, worker = await daguerre.start()
    uploading = asyncio.create_task(daguerre.upload(SLOW))
    child = await catch_child(worker, await kept.wait_stored())

    worker.send(signal.SIGKILL)
    await until(lambda: not is_alive(child), timeout_s=2)
    daguerre.start_worker()
    answer = await uploading
    assert answer.status == 202
    assert answer.shown["status"] == "processing"
    shown = await daguerre.wait_shown(answer.shown["id"], timeout_s=10)
    assert (shown["width"], shown["height"]) == (380, 290)
    await kept.assert_holds({answer.shown["id"]: SLOW})


@pytest.mark.settings(wait_s=15)
async def test_a_picture_whose_child_is_killed_is_looked_at_again(daguerre: Daguerre, kept: Kept) -> None:
    _, worker = await daguerre.start()
    uploading = asyncio.create_task(daguerre.upload(SLOW))
    os.kill(await catch_child(worker, await kept.wait_stored()), signal.SIGKILL)
    answer = await uploading
    assert answer.status == 200
    assert answer.shown["width"] == 380
    await kept.assert_holds({answer.shown["id"]: SLOW})
    assert await kept.connection.fetchval("select crashes from images") == 1


@pytest.mark.settings(wait_s=15)
async def test_a_picture_that_takes_two_children_along_is_refused(daguerre: Daguerre, kept: Kept) -> None:
    _, worker = await daguerre.start()
    uploading = asyncio.create_task(daguerre.upload(SLOW))
    picture = await kept.wait_stored()
    for _ in range(2):
        os.kill(await catch_child(worker, picture), signal.SIGKILL)
    await assert_refused(await uploading, daguerre, kept)


@pytest.mark.settings(probe_processes=1, probe_timeout_s=1, wait_s=15)
async def test_a_picture_whose_probe_hangs_once_is_looked_at_again(
    daguerre: Daguerre, kept: Kept, tmp_path: Path
) -> None:
    _, worker = await daguerre.start()
    children = worker.children()
    stop_process(worker.pid)
    uploading = asyncio.create_task(daguerre.upload(jpeg()))
    picture = await kept.wait_stored()
    good = picture.rename(tmp_path / "good")
    picture.write_bytes(ENDLESS)
    os.kill(worker.pid, signal.SIGCONT)
    await until(lambda: not all(is_alive(child) for child in children))
    good.replace(picture)
    answer = await uploading
    assert answer.status == 200
    assert answer.shown["width"] == 64
    await kept.assert_holds({answer.shown["id"]: jpeg()})
    assert await kept.connection.fetchval("select crashes from images") == 1


@pytest.mark.settings(probe_processes=1, probe_timeout_s=1, wait_s=15)
async def test_a_picture_whose_probe_hangs_twice_is_refused(daguerre: Daguerre, kept: Kept) -> None:
    _, worker = await daguerre.start()
    children = worker.children()
    uploading = asyncio.create_task(daguerre.upload(ENDLESS))
    picture = await kept.wait_stored()
    await until(lambda: not all(is_alive(child) for child in children))
    hanging = await catch_child(worker, picture)
    os.kill(hanging, signal.SIGCONT)
    await assert_refused(await uploading, daguerre, kept)
    assert not is_alive(hanging)


@pytest.mark.settings(probe_processes=1, probe_timeout_s=1, wait_s=20)
async def test_a_storage_that_hangs_never_counts_against_the_picture(
    daguerre: Daguerre, kept: Kept, tmp_path: Path
) -> None:
    _, worker = await daguerre.start()
    stop_process(worker.pid)
    uploading = asyncio.create_task(daguerre.upload(jpeg()))
    picture = await kept.wait_stored()
    good = picture.rename(tmp_path / "good")
    os.mkfifo(picture)  # it is there, and to open it hangs
    os.kill(worker.pid, signal.SIGCONT)
    await until(lambda: worker.log.read_text().count("its file does not open") >= 3)
    good.replace(picture)
    answer = await uploading
    assert answer.status == 200
    await kept.assert_holds({answer.shown["id"]: jpeg()})
    assert await kept.connection.fetchval("select crashes from images") == 0


def upload_head(daguerre: Daguerre, body: bytes) -> bytes:
    """An upload as it goes over the wire, up to its body."""
    return (
        f"POST /v1/images?key={daguerre.key} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()


async def assert_refused(answer: Answer, daguerre: Daguerre, kept: Kept) -> None:
    """Refused for good, with nothing left once the file's removal is due; and the worker still works."""
    assert (answer.status, answer.code) == (422, "probe-failed")
    await kept.sweep_after(31)
    await kept.assert_holds({})
    next_one = await daguerre.upload(jpeg())
    assert next_one.status == 200
    await kept.assert_holds({next_one.shown["id"]: jpeg()})


async def test_a_service_killed_inside_a_body_leaves_a_file_for_the_sweep_and_nothing_else(
    daguerre: Daguerre, kept: Kept
) -> None:
    api, _ = await daguerre.start()
    first = await daguerre.upload(jpeg(65, 48))  # beside a database without images the sweep removes none
    stored = {first.shown["id"]: jpeg(65, 48)}
    reader, writer = await asyncio.open_connection(*daguerre.listener.getsockname())
    body = jpeg(2400, 1600, quality=95)
    writer.write(upload_head(daguerre, body) + body[:600_000])
    incoming = kept.settings.storage_folder / "incoming"
    await until(lambda: any(path.stat().st_size for path in incoming.iterdir()))

    api.send(signal.SIGKILL)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await reader.readexactly(1)
    writer.close()
    await kept.sweep_after(3500)
    assert len(stored_files(kept.settings)) == 2
    await kept.sweep_after(101)
    await kept.assert_holds(stored)

    daguerre.start_api()
    await daguerre.wait_away()
    again = await daguerre.upload(jpeg())
    assert again.status == 200
    await kept.assert_holds(stored | {again.shown["id"]: jpeg()})


@pytest.mark.parametrize("job", ["is queued", "is lost"])
async def test_a_service_killed_after_the_commit_loses_no_image(
    daguerre: Daguerre, kept: Kept, redis: ArqRedis, job: str
) -> None:
    api = daguerre.start_api()
    await api.told("api.listening")
    await daguerre.wait_away("worker")
    uploading = asyncio.create_task(daguerre.upload(jpeg()))
    image_id = await kept.wait_row()
    if job == "is queued":
        await until(lambda: redis.zscore(PROBE_QUEUE, image_id))
    api.send(signal.SIGKILL)
    with pytest.raises(aiohttp.ClientConnectionError):
        await uploading
    if job == "is lost":
        await redis.flushall()
        await kept.sweep_after(11)

    await daguerre.start()
    assert (await daguerre.wait_shown(image_id))["width"] == 64
    await kept.assert_holds({image_id: jpeg()})


@pytest.mark.settings(wait_s=20)
async def test_a_job_that_an_empty_valkey_forgot_is_enqueued_again_while_its_client_waits(
    daguerre: Daguerre, kept: Kept, redis: ArqRedis, valkey: Valkey
) -> None:
    _, worker = await daguerre.start()
    stop_process(worker.pid)
    uploading = asyncio.create_task(daguerre.upload(jpeg()))
    image_id = await kept.wait_row()
    await until(lambda: redis.zscore(PROBE_QUEUE, image_id))

    restart_empty(valkey)
    await redis.connection_pool.disconnect()
    assert await redis.keys() == []
    worker.send(signal.SIGCONT)
    answer = await uploading
    assert answer.status == 200
    assert answer.seconds < 8  # the sweep would not have come before ten seconds
    assert answer.shown["id"] == image_id
    assert answer.shown["width"] == 64
    await kept.assert_holds({image_id: jpeg()})


def restart_empty(valkey: Valkey) -> None:
    valkey.stop()
    shutil.rmtree(valkey.folder)
    valkey.start()


async def test_without_valkey_uploads_are_refused_at_once_and_come_back_by_themselves(
    daguerre: Daguerre, kept: Kept, valkey: Valkey
) -> None:
    await daguerre.start()
    first = (await daguerre.upload(jpeg())).shown["id"]
    valkey.stop()
    await daguerre.wait_away("queue", "worker")
    large = jpeg(2400, 1600, quality=95)
    for refused in await asyncio.gather(*(daguerre.upload(body) for body in [jpeg(), large] * 4)):
        assert (refused.status, refused.code) == (503, "queue-unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.seconds < 1
    assert (await daguerre.show(first, verbose="1")).shown["width"] == 64
    assert (await daguerre.get("/v1/account")).shown["num_images"] == 1
    await kept.assert_holds({first: jpeg()})

    valkey.start()
    again = await wait_accepted(daguerre, within_s=3)
    await kept.assert_holds({first: jpeg(), again: jpeg()})
    assert all(part.is_alive() for part in daguerre.parts)


async def wait_accepted(daguerre: Daguerre, *, within_s: float) -> str:
    """The id of the first upload that is answered 200; until then they are 503."""

    async def accepted() -> str | None:
        answer = await daguerre.upload(jpeg())
        assert answer.status in (200, 503), answer
        return str(answer.shown["id"]) if answer.status == 200 else None

    return str(await until(accepted, within_s))


@dataclass
class Load:
    """Clients who upload one picture after the other. `answers` is what they got, `failures` where they got none."""

    body: bytes
    answers: list[Answer] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    stopping: bool = False

    def count(self, *statuses: int) -> int:
        return sum(answer.status in statuses for answer in self.answers)

    def ids(self) -> set[str]:
        return {answer.shown["id"] for answer in self.answers if answer.status in (200, 202)}

    async def run_client(self, daguerre: Daguerre, *, keep_alive: bool) -> None:
        async with daguerre.connect(keep_alive=keep_alive) as client:
            while not self.stopping:
                try:
                    answer = await client.upload(self.body)
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.failures.append(error)
                    return
                self.answers.append(answer)
                if answer.status == 503:
                    await asyncio.sleep(0.05)


@asynccontextmanager
async def load(daguerre: Daguerre, body: bytes, *, keep_alive: int, one_shot: int = 0) -> AsyncIterator[Load]:
    """Some clients on connections that they keep, and some on a new one for each upload; their last ones end."""
    running = Load(body)
    async with asyncio.TaskGroup() as clients:
        for number in range(keep_alive + one_shot):
            clients.create_task(running.run_client(daguerre, keep_alive=number < keep_alive))
        try:
            yield running
        finally:
            running.stopping = True


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGQUIT], ids=["restarted", "crashed"])
async def test_uploads_outlive_a_postgres_that_goes_away_and_comes_back(
    daguerre: Daguerre, kept: Kept, servers: Servers, end: signal.Signals
) -> None:
    await daguerre.start()
    async with load(daguerre, jpeg(), keep_alive=4) as clients:
        await until(lambda: clients.count(200) >= 8)
        async with cut_off(servers.postgres, end):
            await until(lambda: clients.count(503) >= 20)
        before = clients.count(200)
        await until(lambda: clients.count(200) >= before + 8, timeout_s=5)
    assert clients.failures == []
    assert {answer.status for answer in clients.answers} <= {200, 202, 503}
    for refused in (answer for answer in clients.answers if answer.status == 503):
        assert refused.code == "database-unavailable"
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.seconds < 2.5

    connection = await asyncpg.connect(kept.settings.database_url)
    kept = Kept(connection, kept.settings)
    await kept.sweep_after(4000)
    await until(lambda: connection.fetchval("select count(*) = 0 from images where state = 'pending'"))
    # One whose commit was cut off may be there although its client was told to try again.
    rows = {row["id"] for row in await connection.fetch("select id from images")}
    assert clients.ids() <= rows
    assert len(rows) <= len(clients.ids()) + 4
    await kept.assert_holds(dict.fromkeys(rows, jpeg()))
    await connection.close()
    assert all(part.is_alive() for part in daguerre.parts)


@asynccontextmanager
async def cut_off(postgres: Postgres, end: signal.Signals) -> AsyncIterator[None]:
    """Without PostgreSQL for the length of a block: it is told to stop, or dies with no time to write."""
    assert postgres.process is not None
    postgres.process.send_signal(end)
    try:
        await asyncio.to_thread(postgres.process.wait, 20)
        yield
    finally:
        postgres.start()


async def test_a_service_that_is_told_to_end_under_load_cuts_no_request(daguerre: Daguerre, kept: Kept) -> None:
    await daguerre.start()
    apis = [daguerre.parts[0], daguerre.start_api()]
    body = jpeg(320, 240)
    async with load(daguerre, body, keep_alive=12, one_shot=4) as first:
        await until(lambda: all(part.count_requests(method="POST", status=200) for part in apis))
    reader, writer = await asyncio.open_connection(*daguerre.listener.getsockname())
    slow = body + bytes(600_000)  # enough for its file to be opened before all of it is there
    writer.write(upload_head(daguerre, slow) + slow[:500_000])
    incoming = kept.settings.storage_folder / "incoming"
    [arriving] = await until(lambda: list(incoming.iterdir()))
    [ending] = [part for part in apis if part.has_open(arriving)]

    async with load(daguerre, body, keep_alive=12, one_shot=4) as clients:
        served = ending.count_requests(method="POST", status=200)
        await until(lambda: ending.count_requests(method="POST", status=200) > served + 16)
        ending.send(signal.SIGTERM)
        await ending.told("api.draining")
        await asyncio.sleep(1)  # a slow client: longer than an idle connection would be kept open
        writer.write(slow[500_000:])
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert await ending.exit_code() == 0
        before = clients.count(200)
        await until(lambda: clients.count(200) > before + 32)
    writer.close()
    assert clients.failures == []
    assert clients.count(200) == len(clients.answers)
    ids = first.ids() | clients.ids() | {arriving.name}
    assert await kept.connection.fetchval("select count(*) from images") == len(ids)
    await kept.assert_holds(dict.fromkeys(ids, body) | {arriving.name: slow})


async def test_a_request_on_its_way_when_the_service_is_told_to_end_is_answered(daguerre: Daguerre, kept: Kept) -> None:
    api, _ = await daguerre.start()
    reader, writer = await asyncio.open_connection(*daguerre.listener.getsockname())
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"}")
    api.send(signal.SIGTERM)
    await api.told("api.draining")
    writer.write(upload_head(daguerre, jpeg()) + jpeg())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert b"\r\nConnection: close\r\n" in answer
    assert await api.exit_code() == 0
    [image] = await kept.connection.fetch("select id from images")
    await kept.assert_holds({image["id"]: jpeg()})


async def test_a_worker_that_is_told_to_end_finishes_its_job(daguerre: Daguerre, kept: Kept, redis: ArqRedis) -> None:
    _, worker = await daguerre.start()
    uploading = asyncio.create_task(daguerre.upload(SLOW))
    child = await catch_child(worker, await kept.wait_stored())
    worker.send(signal.SIGTERM)
    told_at = time.time()
    await until(lambda: redis.zcount(WORKERS_KEY, told_at + 0.5, "+inf"))  # it lives on
    os.kill(child, signal.SIGCONT)
    answer = await uploading
    assert answer.status == 200
    assert await worker.exit_code() == 0
    assert not is_alive(child)
    assert await redis.zcard(WORKERS_KEY) == 0
    await kept.assert_holds({answer.shown["id"]: SLOW})


async def test_readyz_names_what_is_away_and_healthz_stays_well(
    daguerre: Daguerre, servers: Servers, valkey: Valkey
) -> None:
    await daguerre.start_api().told("api.listening")
    await daguerre.wait_away("worker")
    worker = daguerre.start_worker()
    await daguerre.wait_away()
    worker.send(signal.SIGTERM)
    assert await worker.exit_code() == 0
    assert await daguerre.find_away() == {"worker"}
    daguerre.start_worker()
    await daguerre.wait_away()

    valkey.stop()
    await daguerre.wait_away("queue", "worker", timeout_s=3)
    valkey.start()
    await daguerre.wait_away(timeout_s=3)
    async with cut_off(servers.postgres, signal.SIGINT):
        await daguerre.wait_away("database", timeout_s=3)
    await daguerre.wait_away(timeout_s=3)
