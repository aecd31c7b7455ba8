"""Deleting images: all or nothing, counted at once, and no file outlives its row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from service.accounts.accounts import load_account
from service.accounts.counters import refresh_counters
from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.images.models import NewImage
from service.images.pending import insert_pending, mark_failed, mark_ready, new_image_id
from service.images.probe import Probe
from service.images.updates import change_tags, delete_images
from service.queue import jobs
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client, NewTenant, RunBurst, Tenant
from tests.support.samples import insert_image, jpeg, stored_files
from worker.cron.sweep import sweep
from worker.resources import open_resources

IMAGE = {"Content-Type": "image/jpeg"}
BOTH = pytest.mark.parametrize(("method", "suffix"), [("GET", "/delete"), ("DELETE", "")])
PROBE = Probe("jpeg", 4, 3, 1, 1, False, {}, b"x")


async def delete(api: Client, tenant: Tenant, ids: str, **parameters: str) -> tuple[int, Any]:
    response = await api.delete(f"/v1/images/{ids}", params=parameters, headers=tenant.headers)
    return response.status, await response.json()


async def upload(api: Client, tenant: Tenant, body: bytes = jpeg(), **parameters: str) -> Any:
    response = await api.post("/v1/images", params=parameters, data=body, headers=tenant.headers | IMAGE)
    return (await response.json())["response"]


async def counted(connection: Any, tenant: Tenant) -> tuple[int, int]:
    """The account's counters, which must be what is stored."""
    assert not await refresh_counters(connection, tenant.id)
    account = await load_account(connection, tenant.id)
    return account.num_images, account.used_bytes


@pytest.mark.slow
@BOTH
@pytest.mark.usefixtures("worker")
async def test_delete_returns_the_deleted_image(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, method: str, suffix: str
) -> None:
    image = await upload(api, tenant, tags="a,b")
    response = await api.request(method, f"/v1/images/{image['id']}{suffix}", headers=tenant.headers)
    assert response.status == 200
    assert await response.json() == {"success": True, "response": image}
    assert response.headers["Cache-Control"] == "no-store"
    assert (await api.get(f"/v1/images/{image['id']}", headers=tenant.headers)).status == 404
    assert stored_files(settings) == []
    for table in ("images", "image_tags", "removals"):
        assert await connection.fetchval(f"select count(*) from {table}") == 0
    assert await counted(connection, tenant) == (0, 0)


async def test_head_never_deletes(api: Client, tenant: Tenant, connection: Any) -> None:
    await insert_image(connection, tenant, "AAAAAAA")
    response = await api.head("/v1/images/AAAAAAA/delete", headers=tenant.headers)
    assert response.status == 405
    assert "HEAD" not in response.headers["Allow"]
    assert await counted(connection, tenant) == (1, 10)


async def test_delete_keeps_order_and_drops_duplicates(api: Client, tenant: Tenant, connection: Any) -> None:
    for number, image_id in enumerate(("AAAAAAA", "BBBBBBB", "CCCCCCC")):
        await insert_image(connection, tenant, image_id, size=100 + number)
    status, answer = await delete(api, tenant, "CCCCCCC,AAAAAAA,%20CCCCCCC")
    assert status == 200, answer
    assert [(image["id"], image["filesize"]) for image in answer["response"]] == [("CCCCCCC", 102), ("AAAAAAA", 100)]
    assert await counted(connection, tenant) == (1, 101)


async def test_delete_of_one_id_returns_a_list(api: Client, tenant: Tenant, connection: Any) -> None:
    await insert_image(connection, tenant, "AAAAAAA")
    _, answer = await delete(api, tenant, "AAAAAAA,AAAAAAA")
    assert [image["id"] for image in answer["response"]] == ["AAAAAAA"]


async def test_delete_takes_up_to_twenty_ids(api: Client, tenant: Tenant, connection: Any) -> None:
    ids = [f"IMAGE{number:02}" for number in range(21)]
    for image_id in ids:
        await insert_image(connection, tenant, image_id)
    status, answer = await delete(api, tenant, ",".join(ids))
    assert (status, answer["error"]["code"]) == (400, "invalid-id")
    assert await counted(connection, tenant) == (21, 210)
    status, answer = await delete(api, tenant, ",".join(ids[:20]))
    assert (status, len(answer["response"])) == (200, 20)
    assert await counted(connection, tenant) == (1, 10)


@pytest.mark.parametrize(
    "ids",
    ["AAAAAAA,short", "AAAAAAA,", ",AAAAAAA", "AAAAAAA,,BBBBBBB", "AAAAAAA,%00BBBBBB", "search", "AAAAAAA;BBBBBBB"],
)
async def test_malformed_id_deletes_nothing(api: Client, tenant: Tenant, connection: Any, ids: str) -> None:
    for image_id in ("AAAAAAA", "BBBBBBB"):
        await insert_image(connection, tenant, image_id)
    status, answer = await delete(api, tenant, ids)
    assert (status, answer["error"]["code"]) == (400, "invalid-id")
    assert await counted(connection, tenant) == (2, 20)


async def test_unknown_id_deletes_nothing(api: Client, tenant: Tenant, new_tenant: NewTenant, connection: Any) -> None:
    other = await new_tenant()
    await insert_image(connection, tenant, "AAAAAAA")
    await insert_image(connection, tenant, "FAILED1", state="failed")
    await insert_image(connection, other, "FOREIGN")
    for ids in ("AAAAAAA,FOREIGN", "UNKNOWN,AAAAAAA", "FAILED1,AAAAAAA"):
        [missing] = set(ids.split(",")) - {"AAAAAAA"}
        status, answer = await delete(api, tenant, ids)
        assert (status, answer["error"]) == (
            400,
            {
                "code": "invalid-id",
                "message": f"There is no image {missing} in your account; nothing was changed.",
            },
        )
    assert await counted(connection, tenant) == (1, 10)
    assert await counted(connection, other) == (1, 10)


async def test_delete_can_return_all_details(api: Client, tenant: Tenant, connection: Any) -> None:
    await insert_image(connection, tenant, "AAAAAAA")
    _, answer = await delete(
        api, tenant, "AAAAAAA", verbose="1", with_exif="1", with_mini_preview="1", with_account="1"
    )
    image = answer["response"]
    assert (image["exif"], image["mini_preview"], image["format"]) == ({"Make": "Daguerre"}, "eA==", "jpeg")
    assert image["account"]["num_images"] == 0


@pytest.mark.settings(wait_s=30)
async def test_waiting_upload_learns_of_the_deletion(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, burst: RunBurst, capfd: Any
) -> None:
    posted = asyncio.create_task(api.post("/v1/images", data=jpeg(), headers=tenant.headers | IMAGE))
    async with asyncio.timeout(5):
        while not (image_id := await connection.fetchval("select id from images")):
            await asyncio.sleep(0.01)
    status, answer = await delete(api, tenant, image_id)
    deleted = time.perf_counter()
    assert status == 200
    assert answer["response"] == {
        "id": image_id,
        "status": "processing",
        "filesize": len(jpeg()),
        "tags": [],
    }
    response = await posted
    assert time.perf_counter() - deleted < 2
    assert response.status == 404
    assert (await response.json())["error"]["code"] == "image-deleted"
    result = await burst()
    assert (result.complete, result.failed, result.retried) == (1, 0, 0)
    said = capfd.readouterr().out
    assert "probe." not in said
    assert stored_files(settings) == []
    assert await counted(connection, tenant) == (0, 0)


async def test_sweep_removes_the_file_after_a_crash(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    await insert_image(connection, tenant, "AAAAAAA")
    storage = LocalOriginals(settings.storage_folder)
    storage.path(ImageId("AAAAAAA")).write_bytes(b"x")
    await delete_images(connection, [ImageId("AAAAAAA")], tenant.id)
    assert len(stored_files(settings)) == 1
    await connection.execute("update removals set removed_at = now() - interval '31 s'")
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await sweep({"resources": resources})
    await redis.aclose(close_connection_pool=True)
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from removals") == 0


async def test_sweep_retries_a_failed_file_removal(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    await insert_image(connection, tenant, "AAAAAAA")
    LocalOriginals(settings.storage_folder).path(ImageId("AAAAAAA")).mkdir()
    status, _ = await delete(api, tenant, "AAAAAAA")
    assert status == 200
    assert await connection.fetchval("select image_id from removals") == "AAAAAAA"


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.open(settings.database_url, connections=12) as database:
        yield database


@contextmanager
def missing_is(code: str) -> Iterator[None]:
    try:
        yield
    except ServiceError as error:
        if error.code != code:
            raise


async def try_delete(database: Database, account_id: AccountId, ids: list[ImageId]) -> int:
    """How many images this call deleted."""
    with missing_is("invalid-id"):
        async with database.connection() as connection:
            return len(await delete_images(connection, ids, account_id))
    return 0


async def test_overlapping_deletes_count_each_image_once(database: Database, connection: Any, tenant: Tenant) -> None:
    for _ in range(10):
        ids = sorted(new_image_id() for _ in range(20))
        for image_id in ids:
            await insert_image(connection, tenant, image_id)
        lists = [ids, ids[::-1], ids[5:15], ids[::-2], ids[:12], ids[10:][::-1]] * 2
        numbers = await asyncio.gather(*(try_delete(database, tenant.id, chosen) for chosen in lists))
        remaining = await connection.fetchval("select count(*) from images")
        assert sum(numbers) == 20 - remaining
        assert sum(numbers) > 0
        assert await counted(connection, tenant) == (remaining, remaining * 10)
        await connection.execute("delete from images")
        await connection.execute("update accounts set used_bytes = 0, num_images = 0")


async def test_deletes_race_with_other_changes(database: Database, connection: Any, tenant: Tenant) -> None:
    async def tag(image_id: ImageId) -> None:
        with missing_is("image-not-found"):
            async with database.connection() as own:
                await change_tags(own, [image_id], tenant.id, add=["tag", "other"])

    async def fail(image_id: ImageId) -> None:
        async with database.connection() as own:
            await mark_failed(own, image_id, "damaged-image")

    deleted = 0
    for number in range(30):
        ids = [new_image_id() for _ in range(6)]
        await insert_pending(database, [NewImage(image_id, tenant.id, 10, bytes(32), ["first"]) for image_id in ids])
        more = [NewImage(new_image_id(), tenant.id, 10, bytes(32), []) for _ in range(5)]
        outcomes = await asyncio.gather(
            mark_ready(database, [(image_id, PROBE) for image_id in ids[number % 3 :]]),
            *(fail(image_id) for image_id in ids[: number % 3]),
            try_delete(database, tenant.id, ids[3:][::-1]),
            *(tag(image_id) for image_id in ids),
            try_delete(database, tenant.id, ids[2:5]),
            insert_pending(database, more),
        )
        deleted += sum(outcome for outcome in outcomes if isinstance(outcome, int))
    assert deleted > 30
    await counted(connection, tenant)
    indexed_tags = await connection.fetch("select created_at, id, unnest(tags) from images where state = 'ready'")
    indexed = await connection.fetch("select created_at, image_id, tag from image_tags")
    assert sorted(tuple(row) for row in indexed_tags) == sorted(tuple(row) for row in indexed)
