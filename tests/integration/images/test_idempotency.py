"""Idempotency-Key: a repeated request makes no second image, whatever happened to the first request."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import redis as sync_redis
from aiohttp import web
from aiohttp.test_utils import TestServer

from service.accounts.accounts import create_key
from service.api.app import create_app
from service.api.resources import Resources
from service.batcher import Batcher, running
from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.images import pending
from service.images.idempotency import find_by_key, release_expired_keys
from service.images.models import IdempotencyKey, Image, NewImage
from service.images.pending import IdTaken, KeyTaken, insert_pending, mark_failed, new_image_id
from service.queue.jobs import open_redis
from service.uploads import receiving
from tests.conftest import Client, NewTenant, RunBurst, Tenant, resources_of, run_worker
from tests.support.daguerre_processes import processes_of
from tests.support.samples import jpeg, stored_files
from tests.support.verify import verify
from tests.support.waiting import until
from worker.cron.sweep import sweep
from worker.resources import open_resources

LOCAL = pytest.mark.settings(fetch_allow="127.0.0.1")
PICTURE = jpeg(64, 48)
OTHER = jpeg(30, 40)
KEY = "9f1c-4e07"


class Answer(tuple[int, Any]):
    """The status and the JSON body of a response."""

    __slots__ = ()

    @property
    def status(self) -> int:
        return self[0]

    @property
    def shown(self) -> Any:
        return self[1]["response"]

    @property
    def id(self) -> str:
        return str(self.shown["id"])

    @property
    def refusal(self) -> tuple[int, str]:
        return self[0], self[1]["error"]["code"]


async def answer(request: Awaitable[Any]) -> Answer:
    response = await request
    return Answer((response.status, await response.json()))


async def post(api: Client, tenant: Tenant, body: Any = PICTURE, *, key: str | None = KEY, **query: str) -> Answer:
    headers = tenant.headers | {"Content-Type": "image/jpeg"} | ({"Idempotency-Key": key} if key else {})
    return await answer(api.post("/v1/images", params=query, data=body, headers=headers))


async def post_form(api: Client, tenant: Tenant, body: bytes = PICTURE, *, key: str = KEY) -> Answer:
    form = aiohttp.FormData()
    form.add_field("file", body, filename="a.jpg", content_type="image/jpeg")
    return await answer(api.post("/v1/images", data=form, headers=tenant.headers | {"Idempotency-Key": key}))


async def post_url(api: Client, tenant: Tenant, url: object, *, key: str = KEY) -> Answer:
    headers = tenant.headers | {"Idempotency-Key": key}
    return await answer(api.post("/v1/images", json={"url": str(url)}, headers=headers))


async def get_url(api: Client, tenant: Tenant, url: object, *, key: str = KEY) -> Answer:
    headers = tenant.headers | {"Idempotency-Key": key}
    return await answer(api.get("/v1/images", params={"url": str(url)}, headers=headers))


class Origin:
    """Serves a picture at every path, and counts how often."""

    def __init__(self) -> None:
        self.requests = 0
        self.body = PICTURE
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, _: web.Request) -> web.Response:
        self.requests += 1
        await self.gate.wait()
        return web.Response(body=self.body, content_type="image/jpeg")


@pytest.fixture
async def origin() -> Origin:
    return Origin()


@pytest.fixture
async def url(origin: Origin) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", origin.answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/a.jpg"))


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.open(settings.database_url, connections=4) as database:
        yield database


@pytest.fixture
async def other_api(aiohttp_client: Callable[..., Awaitable[Client]], settings: Settings) -> Client:
    """A second process: it shares the database, the queue and the storage with `api`."""
    return await aiohttp_client(create_app(settings))


async def assert_one_image(settings: Settings, connection: Any, image_id: str, body: bytes = PICTURE) -> None:
    """Asserts one row and one file, counted once."""
    rows = await connection.fetch("select id, size from images where state <> 'failed'")
    assert [tuple(row) for row in rows] == [(image_id, len(body))]
    counters = await connection.fetchrow("select sum(num_images), sum(used_bytes) from accounts")
    assert tuple(counters) == (1, len(body))
    assert [(path.name, path.read_bytes()) for path in stored_files(settings)] == [(image_id, body)]
    result = await verify(settings)
    assert result.is_well, result.problems


async def assert_nothing_stored(settings: Settings, connection: Any) -> None:
    counters = await connection.fetchrow("select sum(num_images), sum(used_bytes) from accounts")
    assert tuple(counters) == (0, 0)
    assert stored_files(settings) == []
    assert (await verify(settings)).is_well


# The header


@pytest.mark.parametrize("key", ["", "two words", "é", "x" * 256, "tab\there"])
async def test_key_must_be_visible_ascii(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, key: str
) -> None:
    refused = (400, "invalid-idempotency-key")
    headers = tenant.headers | {"Content-Type": "image/jpeg", "Idempotency-Key": key}
    assert (await answer(api.post("/v1/images", data=PICTURE, headers=headers))).refusal == refused
    assert (await post_url(api, tenant, "http://127.0.0.1/a", key=key)).refusal == refused
    assert (await get_url(api, tenant, "http://127.0.0.1/a", key=key)).refusal == refused
    assert await connection.fetchval("select count(*) from images") == 0
    assert stored_files(settings) == []


async def test_two_keys_are_refused(api: Client, tenant: Tenant) -> None:
    headers = [
        *tenant.headers.items(),
        ("Content-Type", "image/jpeg"),
        ("Idempotency-Key", "a"),
        ("Idempotency-Key", "b"),
    ]
    assert (await answer(api.post("/v1/images", data=PICTURE, headers=headers))).refusal == (
        400,
        "invalid-idempotency-key",
    )


@pytest.mark.usefixtures("worker")
async def test_longest_key_is_accepted(api: Client, tenant: Tenant) -> None:
    visible = "".join(map(chr, range(0x21, 0x7F)))
    for key in ("x" * 255, visible, "k"):
        first, again = [await post(api, tenant, key=key) for _ in range(2)]
        assert first == again
        assert first.status == 200


# The same again


@pytest.mark.usefixtures("worker")
async def test_repeated_upload_returns_the_same_image(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    first = await post(api, tenant, tags="lake", verbose="1", with_exif="1", with_mini_preview="1")
    assert first.status == 200
    again = await post(api, tenant, tags="lake", verbose="1", with_exif="1", with_mini_preview="1")
    assert again == first
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_repetition_may_use_another_body_form(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield PICTURE[:100]
        yield PICTURE[100:]

    first = await post_form(api, tenant)
    assert first.status == 200
    assert await post(api, tenant) == await post(api, tenant, pieces()) == await post_form(api, tenant) == first
    await assert_one_image(settings, connection, first.id)


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_repeated_url_is_downloaded_once(
    api: Client, tenant: Tenant, origin: Origin, url: str, settings: Settings, connection: Any
) -> None:
    first = await get_url(api, tenant, url)
    assert first.status == 200
    origin.body = OTHER  # a later download would get this
    assert await get_url(api, tenant, url) == await post_url(api, tenant, url) == first
    assert origin.requests == 1
    await assert_one_image(settings, connection, first.id)


@LOCAL
@pytest.mark.usefixtures("worker", "origin")
async def test_key_with_another_body_or_url_is_refused(
    api: Client, tenant: Tenant, url: str, settings: Settings, connection: Any
) -> None:
    first = await post(api, tenant)
    reused = (422, "idempotency-key-reused")
    assert (await post(api, tenant, OTHER)).refusal == reused
    assert (await post_form(api, tenant, OTHER)).refusal == reused
    assert (await get_url(api, tenant, url)).refusal == reused
    assert (await post_url(api, tenant, url)).refusal == reused
    await assert_one_image(settings, connection, first.id)


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_key_of_a_url_is_bound_to_it(
    api: Client, tenant: Tenant, origin: Origin, url: str, settings: Settings, connection: Any
) -> None:
    first = await get_url(api, tenant, url)
    reused = (422, "idempotency-key-reused")
    assert (await get_url(api, tenant, f"{url}?other")).refusal == reused
    assert (await post_url(api, tenant, f"{url}?other")).refusal == reused
    assert (await post(api, tenant)).refusal == reused
    assert origin.requests == 1
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_tenants_do_not_share_keys(api: Client, tenant: Tenant, new_tenant: NewTenant) -> None:
    stranger = await new_tenant()
    mine, theirs = await post(api, tenant), await post(api, stranger, OTHER)
    assert (mine.status, theirs.status) == (200, 200)
    assert mine.id != theirs.id
    assert await post(api, tenant) == mine
    assert await post(api, stranger, OTHER) == theirs


@pytest.mark.usefixtures("worker")
async def test_uploads_without_a_key_are_separate_images(api: Client, tenant: Tenant) -> None:
    image_ids = {(await post(api, tenant, key=key)).id for key in (None, None, "a", "b")}
    assert len(image_ids) == 4


@pytest.mark.settings(wait_s=0.2)
async def test_repetition_without_a_worker_is_a_202(
    api: Client, tenant: Tenant, burst: RunBurst, settings: Settings, connection: Any
) -> None:
    first, again = await post(api, tenant), await post(api, tenant)
    assert first == again
    assert (first.status, first.shown["status"]) == (202, "processing")
    assert (await burst()).complete == 1
    later = await post(api, tenant)
    assert (later.status, later.id, later.shown["width"]) == (200, first.id, 64)
    await assert_one_image(settings, connection, first.id)


# Together


@pytest.mark.usefixtures("worker")
async def test_concurrent_repetitions_make_one_image(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    first, *others = await asyncio.gather(*(post(api, tenant, verbose="1") for _ in range(40)))
    assert first.status == 200
    assert others == [first] * 39
    await assert_one_image(settings, connection, first.id)


@pytest.mark.settings(wait_s=0.2)
async def test_concurrent_repetitions_without_a_worker(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, burst: RunBurst
) -> None:
    first, *others = await asyncio.gather(*(post(api, tenant) for _ in range(20)))
    assert first.status == 202
    assert others == [first] * 19
    assert (await burst()).complete == 1
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_one_of_two_racing_pictures_gets_the_key(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    answers = await asyncio.gather(*(post(api, tenant, (PICTURE, OTHER)[number % 2]) for number in range(20)))
    won = 0 if answers[0].status == 200 else 1
    assert {each.id for each in answers[won::2]} == {answers[won].id}
    assert {each.refusal for each in answers[1 - won :: 2]} == {(422, "idempotency-key-reused")}
    await assert_one_image(settings, connection, answers[won].id, (PICTURE, OTHER)[won])


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_concurrent_downloads_make_one_image(
    api: Client, tenant: Tenant, origin: Origin, url: str, settings: Settings, connection: Any
) -> None:
    origin.gate.clear()
    requests = asyncio.gather(*(get_url(api, tenant, url) for _ in range(8)))
    await until(lambda: origin.requests == 8)
    origin.gate.set()
    first, *others = await requests
    assert first.status == 200
    assert others == [first] * 7
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_many_keys_sent_twice_make_an_image_each(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    bodies = [jpeg(40 + number, 30) for number in range(12)]
    answers = await asyncio.gather(
        *(post(api, tenant, body, key=f"key-{number}") for _ in range(3) for number, body in enumerate(bodies))
    )
    assert answers[:12] == answers[12:24] == answers[24:]
    assert [each.shown["width"] for each in answers[:12]] == [40 + number for number in range(12)]
    assert len(stored_files(settings)) == await connection.fetchval("select num_images from accounts") == 12
    assert (await verify(settings)).is_well


@pytest.mark.usefixtures("worker")
async def test_two_services_make_one_image(
    api: Client, other_api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    for _ in range(3):
        first, *others = await asyncio.gather(*(post((api, other_api)[number % 2], tenant) for number in range(40)))
        assert first.status == 200
        assert others == [first] * 39
        await assert_one_image(settings, connection, first.id)
        await answer(other_api.delete(f"/v1/images/{first.id}", headers=tenant.headers))


# The first one died


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


async def receive(service: Resources, body: bytes = PICTURE) -> receiving.Upload:
    async def chunks() -> AsyncIterator[bytes]:
        yield body

    return await receiving.receive(chunks(), service.storage, service.upload_limits)


async def store(service: Resources, tenant: Tenant) -> tuple[NewImage, Image | None]:
    upload = await receive(service)
    return await service.ingest.store(upload, tenant.id, [], IdempotencyKey(KEY), request_id="r")


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
    accepting.gather_s = 0.1
    accepting.crowded = lambda: True
    answers = await asyncio.gather(*(post(api, tenant) for _ in range(3)))
    assert {each.refusal for each in answers} == {(503, "database-unavailable")}
    image_id = await connection.fetchval("select id from images")
    async with run_worker(settings):
        again = await post(api, tenant)
    assert (again.status, again.id) == (200, image_id)
    assert image_id in {path.name for path in stored_files(settings)}


# Keys that are released


async def both_wait(
    api: Client, other: Client, tenant: Tenant, connection: Any
) -> tuple[asyncio.Task[Answer], asyncio.Task[Answer], ImageId]:
    """Two requests under one key that wait for one image, and its id."""
    for each in (api, other):
        resources_of(each).ingest.waiter.poll_interval_s = 0.05
    first = asyncio.create_task(post(api, tenant))
    image_id = ImageId(await until(lambda: connection.fetchval("select id from images")))
    second = asyncio.create_task(post(other, tenant))
    await until(lambda: all(resources_of(each).ingest.waiter.count(image_id) for each in (api, other)))
    return first, second, image_id


@pytest.mark.usefixtures("worker")
async def test_refused_picture_releases_its_key(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    for _ in range(2):
        assert (await post(api, tenant, b"not a picture")).refusal == (415, "unsupported-image")
    await assert_nothing_stored(settings, connection)
    first = await post(api, tenant)
    assert first.status == 200
    assert await post(api, tenant) == first
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_concurrent_refusals_have_the_same_error(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    for _ in range(3):
        answers = await asyncio.gather(*(post(api, tenant, b"not a picture") for _ in range(20)))
        assert {each.refusal for each in answers} == {(415, "unsupported-image")}
    await assert_nothing_stored(settings, connection)
    assert await connection.fetchval("select count(idempotency_key) from images") == 0


@pytest.mark.usefixtures("worker")
async def test_row_of_a_refused_picture_lasts_a_minute(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    for _ in range(2):
        await post(api, tenant, b"not a picture")
    redis = open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await sweep({"resources": resources}, batch_size=2)
        assert await connection.fetchval("select count(*) from images where state = 'failed'") == 2
        await connection.execute("update images set failed_at = failed_at - interval '61 s'")
        await sweep({"resources": resources}, batch_size=2)
        assert await connection.fetchval("select count(*) from images") == 0
    await redis.aclose(close_connection_pool=True)


async def test_waiting_repetition_gets_the_refusal(
    api: Client, other_api: Client, tenant: Tenant, connection: Any, database: Database
) -> None:
    """Also in another process, which gets no reply and polls the row."""
    first, second, image_id = await both_wait(api, other_api, tenant, connection)
    async with database.connection() as own:
        await mark_failed(own, image_id, "probe-failed")
    assert (await first).refusal == (await second).refusal == (422, "probe-failed")
    assert await connection.fetchval("select count(idempotency_key) from images") == 0


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_url_without_a_picture_is_fetched_again(
    api: Client, tenant: Tenant, origin: Origin, url: str, settings: Settings, connection: Any
) -> None:
    origin.body = b"<html>"
    for _ in range(2):
        assert (await get_url(api, tenant, url)).refusal == (415, "not-an-image")
    origin.body = PICTURE
    first = await get_url(api, tenant, url)
    assert first.status == 200
    assert origin.requests == 3
    await assert_one_image(settings, connection, first.id)


@LOCAL
async def test_waiting_download_gets_the_refusal(
    api: Client, tenant: Tenant, origin: Origin, url: str, connection: Any, settings: Settings
) -> None:
    origin.body = b"<html>"
    first = asyncio.create_task(get_url(api, tenant, url))
    image_id = await until(lambda: connection.fetchval("select id from images"))
    second = asyncio.create_task(get_url(api, tenant, url))
    await until(lambda: resources_of(api).ingest.waiter.count(image_id) == 2)
    async with run_worker(settings):
        assert (await first).refusal == (await second).refusal == (415, "not-an-image")
    assert origin.requests == 1


@pytest.mark.settings(wait_s=0.2)
async def test_failure_after_a_202_releases_the_key(
    api: Client, tenant: Tenant, settings: Settings, burst: RunBurst
) -> None:
    first = await post(api, tenant, b"not a picture")
    assert first.status == 202
    await burst()
    assert (await answer(api.get(f"/v1/images/{first.id}", headers=tenant.headers))).refusal[0] == 415
    again = await post(api, tenant)
    assert again.status == 202
    assert again.id != first.id


@pytest.mark.usefixtures("worker")
async def test_truncated_body_does_not_use_the_key(api: Client, tenant: Tenant, settings: Settings) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 900000\r\n"
        + f"Idempotency-Key: {KEY}\r\nX-Api-Key: {tenant.key}\r\n\r\n".encode()
        + b"x" * 600_000
    )
    await writer.drain()
    await until(lambda: stored_files(settings))
    assert (await post(api, tenant)).status == 200  # while the other is still on its way
    writer.close()
    await until(lambda: len(stored_files(settings)) == 1)


@pytest.mark.usefixtures("worker")
async def test_deleted_image_releases_its_key(api: Client, tenant: Tenant, settings: Settings, connection: Any) -> None:
    first = await post(api, tenant)
    await answer(api.delete(f"/v1/images/{first.id}", headers=tenant.headers))
    second = await post(api, tenant, OTHER)
    assert second.status == 200
    assert second.id != first.id
    await assert_one_image(settings, connection, second.id, OTHER)


async def test_waiting_repetition_learns_of_the_deletion(
    api: Client, other_api: Client, tenant: Tenant, connection: Any
) -> None:
    first, second, image_id = await both_wait(api, other_api, tenant, connection)
    await answer(api.delete(f"/v1/images/{image_id}", headers=tenant.headers))
    assert (await first).refusal == (await second).refusal == (404, "image-deleted")


async def test_key_of_a_deleted_image_goes_to_the_next(
    api: Client, tenant: Tenant, connection: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = resources_of(api)
    first = asyncio.create_task(store(service, tenant))
    image_id = await until(lambda: connection.fetchval("select id from images"))

    async def find_after_delete(own: Any, account_id: AccountId, key: str) -> Any:
        await answer(api.delete(f"/v1/images/{image_id}", headers=tenant.headers))
        return await find_by_key(own, account_id, key)

    monkeypatch.setattr("service.uploads.ingest.find_by_key", find_after_delete)
    async with run_worker(settings):
        new, image = await store(service, tenant)
    assert image is not None
    assert new.id == image.id != image_id
    await asyncio.wait([first])
    await assert_one_image(settings, connection, new.id)


# After 24 hours


async def age(connection: Any, hours: float) -> None:
    await connection.execute("update images set created_at = now() - $1::float8 * interval '1 hour'", hours)


@LOCAL
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("by_url", [False, True])
async def test_key_expires_after_24_hours(
    api: Client, tenant: Tenant, origin: Origin, url: str, connection: Any, settings: Settings, by_url: bool
) -> None:
    send = partial(get_url, api, tenant, url) if by_url else partial(post, api, tenant)
    first = await send()
    await age(connection, 23.99)
    assert await send() == first
    await age(connection, 24)
    second = await send()
    assert second.status == 200
    assert second.id != first.id
    assert await send() == second
    keys = dict(await connection.fetch("select id, idempotency_key from images"))
    assert keys == {first.id: None, second.id: KEY}
    assert (await verify(settings)).is_well


@pytest.mark.usefixtures("worker")
async def test_concurrent_use_of_an_expired_key(
    api: Client, tenant: Tenant, connection: Any, settings: Settings
) -> None:
    first = await post(api, tenant)
    await age(connection, 25)
    second, *others = await asyncio.gather(*(post(api, tenant) for _ in range(10)))
    assert second.id != first.id
    assert others == [second] * 9
    assert len(stored_files(settings)) == 2


async def test_the_sweep_forgets_old_keys_step_by_step_and_no_others(
    settings: Settings, tenant: Tenant, database: Database, connection: Any
) -> None:
    await insert_pending(database, [new_image(tenant.id, key=f"old-{number}", url=b"u") for number in range(7)])
    await connection.execute("update images set state = 'ready'")
    await age(connection, 24.1)
    young = new_image(tenant.id, key="young", url=b"u")
    await insert_pending(database, [young, new_image(tenant.id)])
    async with database.connection() as own:
        assert await release_expired_keys(own, 2) == 2
    redis = open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await sweep({"resources": resources}, batch_size=2)
    await redis.aclose(close_connection_pool=True)
    rows = await connection.fetch(
        "select id, idempotency_key from images where num_nonnulls(idempotency_key, idempotency_url) > 0"
    )
    assert [tuple(row) for row in rows] == [(young.id, "young")]
    assert await connection.fetchval("select count(*) from images") == 9


# Quota


@LOCAL
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("by_url", [False, True])
async def test_retry_finds_an_image_that_filled_quota(
    api: Client, new_tenant: NewTenant, url: str, settings: Settings, connection: Any, by_url: bool
) -> None:
    tenant = await new_tenant(max_bytes=len(PICTURE))
    send = partial(get_url, api, tenant, url) if by_url else partial(post, api, tenant)
    first = await send()
    assert first.status == 200
    # With another API key, for which no account with space is cached: the first look-up finds it full.
    tenant = replace(tenant, key=await create_key(connection, tenant.name))
    send = partial(get_url, api, tenant, url) if by_url else partial(post, api, tenant)
    assert await send() == first
    assert (await send(key="another")).refusal == (403, "quota-exceeded")
    assert (await post(api, tenant, OTHER)).refusal == (422, "idempotency-key-reused")
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_concurrent_repetitions_in_a_full_quota(
    api: Client, new_tenant: NewTenant, settings: Settings, connection: Any
) -> None:
    tenant = await new_tenant(max_bytes=len(PICTURE) + 10)
    first, *others = await asyncio.gather(*(post(api, tenant) for _ in range(20)))
    assert first.status == 200
    assert others == [first] * 19
    await assert_one_image(settings, connection, first.id)


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_download_before_the_quota_was_full(
    api: Client, new_tenant: NewTenant, origin: Origin, url: str, settings: Settings, connection: Any
) -> None:
    tenant = await new_tenant(max_bytes=len(PICTURE))
    origin.gate.clear()
    slow = asyncio.create_task(get_url(api, tenant, url))
    await until(lambda: origin.requests == 1)
    quick = asyncio.create_task(get_url(api, tenant, url))
    await until(lambda: origin.requests == 2)
    origin.gate.set()
    first = await quick
    assert first.status == 200
    assert await slow == first
    await assert_one_image(settings, connection, first.id)


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_stored_url_needs_no_download_slot(
    api: Client, tenant: Tenant, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await get_url(api, tenant, url)

    def refuse(*_: object) -> None:
        raise ServiceError("busy")

    monkeypatch.setattr(receiving.Admission, "download", refuse)
    assert await get_url(api, tenant, url) == first
    assert (await get_url(api, tenant, url, key="another")).refusal == (503, "busy")


# Rows


def new_image(
    account_id: AccountId,
    size: int = 10,
    *,
    key: str | None = None,
    url: bytes | None = None,
    id: str = "",  # noqa: A002
) -> NewImage:
    image_id = ImageId(id) if id else new_image_id()
    return NewImage(image_id, account_id, size, bytes(32), [], IdempotencyKey(key, url) if key else None)


def kinds(outcomes: Sequence[Exception | None]) -> list[object]:
    return [outcome.code if isinstance(outcome, ServiceError) else outcome and type(outcome) for outcome in outcomes]


async def counted(connection: Any, tenant: Tenant) -> int:
    """How many images there are; the counters agree."""
    stored = await connection.fetchrow("select count(*), coalesce(sum(size), 0) from images where state <> 'failed'")
    counters = await connection.fetchrow("select num_images, used_bytes from accounts where id = $1", tenant.id)
    assert tuple(stored) == tuple(counters)
    return int(stored[0])


async def test_key_twice_in_a_batch_inserts_the_first(
    database: Database, tenant: Tenant, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def insert_alone(*_: object) -> None:
        pytest.fail("the batch fell apart")

    monkeypatch.setattr(pending, "_insert_alone", insert_alone)
    batch = [new_image(tenant.id, key="a"), new_image(tenant.id, key="a"), new_image(tenant.id), new_image(tenant.id)]
    assert kinds(await insert_pending(database, batch)) == [None, KeyTaken, None, None]
    batch = [new_image(tenant.id), new_image(tenant.id, key="a"), new_image(tenant.id, key="b")]
    assert kinds(await insert_pending(database, batch)) == [None, KeyTaken, None]
    assert kinds(await insert_pending(database, [new_image(tenant.id, key="a")])) == [KeyTaken]
    assert await counted(connection, tenant) == 5


async def test_key_of_an_oversized_first_goes_to_the_next(
    database: Database, new_tenant: NewTenant, connection: Any
) -> None:
    tenant = await new_tenant(max_bytes=100)
    batch = [new_image(tenant.id, size, key="a") for size in (200, 60, 60)]
    assert kinds(await insert_pending(database, batch)) == ["quota-exceeded", None, KeyTaken]
    assert await counted(connection, tenant) == 1


async def test_taken_id_is_not_mistaken_for_a_taken_key(database: Database, tenant: Tenant, connection: Any) -> None:
    first = new_image(tenant.id, key="a")
    await insert_pending(database, [first])
    batch = [new_image(tenant.id, key="b", id=first.id), new_image(tenant.id, key="a"), new_image(tenant.id, key="c")]
    assert kinds(await insert_pending(database, batch)) == [IdTaken, KeyTaken, None]
    assert await counted(connection, tenant) == 2


@pytest.mark.usefixtures("worker")
async def test_upload_under_a_key_gets_another_id(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await post(api, tenant, OTHER, key="first")
    monkeypatch.setattr(receiving, "new_image_id", lambda: ImageId(first.id))
    second = await post(api, tenant)
    assert second.status == 200
    assert second.id != first.id
    assert await post(api, tenant) == second
    assert await counted(connection, tenant) == len(stored_files(settings)) == 2
    assert (await verify(settings)).is_well


async def test_racing_inserts_make_one_image_per_key(
    settings: Settings, database: Database, tenant: Tenant, connection: Any
) -> None:
    async def write() -> list[object]:
        async with Database.open(settings.database_url, connections=2) as own:
            batcher = Batcher(partial(insert_pending, own), limit=7)
            async with running(batcher.run()):
                images = [new_image(tenant.id, key=f"key-{number % 30}") for number in range(60)]
                return kinds(await asyncio.gather(*map(batcher.submit, images), return_exceptions=True))  # type: ignore[arg-type]

    outcomes = [outcome for group in await asyncio.gather(*(write() for _ in range(4))) for outcome in group]
    assert set(outcomes) == {None, KeyTaken}
    assert outcomes.count(None) == await counted(connection, tenant) == 30


async def test_race_for_the_last_space_reports_the_key(
    settings: Settings, database: Database, new_tenant: NewTenant, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await new_tenant(max_bytes=10)
    rival = await asyncpg.connect(settings.database_url)
    try:
        transaction = rival.transaction()
        await transaction.start()
        await pending._insert(rival, [new_image(tenant.id, key="a")])
        second = asyncio.create_task(insert_pending(database, [new_image(tenant.id, key="a")]))
        await until(lambda: connection.fetchval("select count(*) from pg_locks where not granted"))
        await transaction.commit()
        assert kinds(await second) == [KeyTaken]
    finally:
        await rival.close()
    assert await counted(connection, tenant) == 1


async def test_insert_survives_the_end_of_its_keys_image(
    settings: Settings, database: Database, tenant: Tenant, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The insert holds the account and waits for the image; the delete holds the image and waits for the account."""
    await insert_pending(database, [new_image(tenant.id, key="a", id="AAAAAAA")])

    async def find_none(*_: object) -> set[object]:
        return set()

    monkeypatch.setattr(pending, "find_used_keys", find_none)  # as if it had been inserted after the look-up
    rival = await asyncpg.connect(settings.database_url)
    try:
        transaction = rival.transaction()
        await transaction.start()
        await rival.execute("set local deadlock_timeout = '10s'")  # the insert is to be the one that gives way
        await rival.execute("delete from images where id = 'AAAAAAA'")
        batch = [new_image(tenant.id, key="a"), new_image(tenant.id)]
        inserting = asyncio.create_task(insert_pending(database, batch))
        await until(lambda: connection.fetchval("select count(*) from pg_locks where not granted"))
        await rival.execute(
            "update accounts set used_bytes = used_bytes - 10, num_images = num_images - 1 where id = $1", tenant.id
        )
        await transaction.commit()
        assert kinds(await inserting) == [None, None]
    finally:
        await rival.close()
    assert await counted(connection, tenant) == 2


def test_url_is_stored_as_its_sha256() -> None:
    key = IdempotencyKey.parse("a", "http://e.example/")
    assert key.url_sha256 == hashlib.sha256(b"http://e.example/").digest()
