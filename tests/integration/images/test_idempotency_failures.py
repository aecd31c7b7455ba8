"""Idempotency-Key: a retry gets the image of a request that died, was cancelled or lost its answer."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import redis as sync_redis

from service.config.settings import Settings
from service.database import Database
from service.images import pending
from service.images.models import IdempotencyKey, NewImage
from service.images.pending import insert_pending
from tests.conftest import Client, Tenant, resources_of, run_worker
from tests.support.daguerre_processes import processes_of
from tests.support.idempotency import KEY, PICTURE, Answer, answer, assert_one_image, post, receive, store
from tests.support.samples import stored_files
from tests.support.waiting import until


@pytest.mark.slow
@pytest.mark.settings(wait_s=8)  # before the sweep would enqueue what was lost
async def test_retry_after_a_crash_gets_the_image(
    settings: Settings, tenant: Tenant, connection: Any, tmp_path: Path
) -> None:
    async with processes_of(settings, tenant.key, tmp_path / "logs") as daguerre:
        api = daguerre.start_api()
        await api.wait_logged("api.listening")
        await daguerre.wait_unavailable("worker")

        async def send() -> Answer:
            headers = tenant.headers | {"Content-Type": "image/jpeg", "Idempotency-Key": KEY}
            return await answer(daguerre.session.post("/v1/images", data=PICTURE, headers=headers))

        lost = asyncio.create_task(send())
        image_id = await until(lambda: connection.fetchval("select id from images"))
        api.send(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await lost
        await api.exit_code()
        with sync_redis.Redis.from_url(settings.redis_url) as client:
            client.flushall()  # as if it had died before it enqueued the job
        await daguerre.start()
        again = await send()
        assert (again.status, again.id, again.shown["width"]) == (200, image_id, 64)
        assert await send() == again
    assert await connection.fetchval("select count(*) from images") == 1
    assert await connection.fetchval("select num_images from accounts") == 1
    assert len(stored_files(settings)) == 1


@pytest.mark.parametrize("cancelled", [0, 1], ids=["the first", "the second"])
async def test_cancelled_wait_keeps_the_image(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, cancelled: int
) -> None:
    service = resources_of(api)
    tasks = [asyncio.create_task(store(service, tenant))]
    image_id = await until(lambda: connection.fetchval("select id from images"))
    tasks.append(asyncio.create_task(store(service, tenant)))
    await until(lambda: service.ingest.waiter.count(image_id) == 2)
    tasks[cancelled].cancel()
    async with run_worker(settings):
        new, image = await tasks[1 - cancelled]
    assert tasks[cancelled].cancelled() or await asyncio.wait([tasks[cancelled]])
    assert image is not None
    assert (new.id, image.id, image.width) == (image_id, image_id, 64)
    assert service.ingest.waiter.count(image_id) == 0
    await assert_one_image(settings, connection, image_id)


async def test_cancelled_key_lookup_leaves_no_file(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = resources_of(api)
    first = asyncio.create_task(store(service, tenant))
    await until(lambda: connection.fetchval("select id from images"))
    looking = asyncio.Event()

    async def hang(*_: object) -> None:
        looking.set()
        await asyncio.sleep(30)

    monkeypatch.setattr("service.uploads.ingest.find_by_key", hang)
    second = asyncio.create_task(store(service, tenant))
    await looking.wait()
    assert len(stored_files(settings)) == 2
    second.cancel()
    await asyncio.wait([second])
    assert len(stored_files(settings)) == 1
    first.cancel()
    await asyncio.wait([first])


@pytest.mark.usefixtures("worker")
async def test_committed_upload_keeps_its_file(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, database: Database
) -> None:
    """As when a group is written again after an error that came behind its commit."""
    service = resources_of(api)
    upload = await receive(service)
    key = IdempotencyKey(KEY)
    assert await service.storage.sync_batch([upload.file]) == [None]
    await insert_pending(database, [NewImage(upload.id, tenant.id, upload.size, upload.sha256, [], key)])
    new, image = await service.ingest.store(upload, tenant.id, [], key, request_id="r")
    assert image is not None
    assert new.id == image.id == upload.id
    await assert_one_image(settings, connection, upload.id)


async def test_retry_after_a_lost_commit_gets_the_image(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_rows = pending._insert
    lost = [asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")]

    async def insert_and_lose(own: Any, images: Sequence[NewImage]) -> set[str]:
        inserted = await insert_rows(own, images)
        if lost:
            raise lost.pop()
        return inserted

    monkeypatch.setattr(pending, "_insert", insert_and_lose)
    accepting = resources_of(api).ingest.ingest_batcher
    accepting.wait_s = lambda: 0.1
    answers = await asyncio.gather(*(post(api, tenant) for _ in range(3)))
    assert {each.refusal for each in answers} == {(503, "database-unavailable")}
    image_id = await connection.fetchval("select id from images")
    async with run_worker(settings):
        again = await post(api, tenant)
    assert (again.status, again.id) == (200, image_id)
    assert image_id in {path.name for path in stored_files(settings)}
