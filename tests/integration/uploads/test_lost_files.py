"""A committed row whose file is nowhere: the upload is not acknowledged, and the row says why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from service.config.settings import Settings
from service.database import Database
from service.ids import ImageId
from service.images.models import NewImage
from service.images.pending import insert_pending
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client, RunBurst, Tenant, resources_of, run_worker
from tests.support.disks import on_disk, unmounted
from tests.support.samples import jpeg, stored_files

IMAGE = {"Content-Type": "image/jpeg"}
KEY = {"Idempotency-Key": "9f1c-4e07"}


async def upload(api: Client, tenant: Tenant, **headers: str) -> tuple[int, str]:
    """The status, and the error's code or the image's id."""
    answer = await api.post("/v1/images", data=jpeg(), headers=tenant.headers | IMAGE | headers)
    shown = await answer.json()
    return answer.status, shown["response"]["id"] if shown["success"] else shown["error"]["code"]


async def wait_pending(connection: Any) -> ImageId:
    async with asyncio.timeout(10):
        while not (image_id := await connection.fetchval("select id from images where state = 'pending'")):
            await asyncio.sleep(0.01)
    return ImageId(image_id)


async def wait_kept(storage: LocalOriginals, image_id: ImageId) -> None:
    async with asyncio.timeout(10):
        while not storage.path(image_id).exists():
            await asyncio.sleep(0.01)


async def test_file_lost_at_the_commit_is_an_error(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a sweep whose clock is wrong."""

    async def insert_and_lose(database: Database, images: Sequence[NewImage]) -> Sequence[Exception | None]:
        outcomes = await insert_pending(database, images)
        for image in images:
            LocalOriginals(settings.storage_folder).incoming_path(image.id).unlink()
        return outcomes

    monkeypatch.setattr("service.uploads.ingest.insert_pending", insert_and_lose)
    assert await upload(api, tenant) == (503, "storage-unavailable")
    assert tuple(await connection.fetchrow("select state, error from images")) == ("failed", "image-lost")
    assert await connection.fetchval("select num_images from accounts") == 0


@pytest.mark.settings(wait_s=1)
async def test_file_lost_before_its_probe_is_an_error(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    storage = on_disk(resources_of(api).storage)
    posted = asyncio.create_task(upload(api, tenant))
    image_id = await wait_pending(connection)
    await wait_kept(storage, image_id)
    storage.path(image_id).unlink()
    async with run_worker(settings):  # which sees it as well, and does not know for how long
        assert await posted == (503, "storage-unavailable")
    assert tuple(await connection.fetchrow("select state, error from images")) == ("failed", "image-lost")
    shown = await api.get(f"/v1/images/{image_id}", headers=tenant.headers)
    assert (shown.status, (await shown.json())["error"]["code"]) == (410, "image-lost")


@pytest.mark.settings(wait_s=1)
async def test_upload_waits_no_longer_than_before(api: Client, tenant: Tenant, connection: Any) -> None:
    status, _ = await upload(api, tenant)
    assert status == 202
    assert await connection.fetchval("select state from images") == "pending"


@pytest.mark.slow
@pytest.mark.settings(wait_s=1)
@pytest.mark.parametrize("instead", ["nothing", "folders"])
async def test_storage_that_leaves_loses_no_row(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, burst: RunBurst, instead: str
) -> None:
    posted = asyncio.create_task(upload(api, tenant))
    await wait_kept(on_disk(resources_of(api).storage), await wait_pending(connection))
    with unmounted(settings.storage_folder, instead):
        assert await posted == (503, "storage-unavailable")
        assert await connection.fetchval("select state from images") == "pending"
    assert (await burst()).complete == 1
    assert await connection.fetchval("select state from images") == "ready"


@pytest.mark.parametrize("state", ["ready", "pending"])
async def test_repeat_of_a_lost_image_is_stored(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, state: str
) -> None:
    storage = on_disk(resources_of(api).storage)
    async with run_worker(settings):
        _, first = await upload(api, tenant, **KEY)
        await connection.execute("update images set state = $1", state)
        storage.path(ImageId(first)).unlink()
        status, second = await upload(api, tenant, **KEY)
    assert status == 200
    assert second != first
    assert [path.name for path in stored_files(settings)] == [second]
    assert await upload(api, tenant, **KEY) == (200, second)
    assert await connection.fetchval("select count(*) from images where state <> 'failed'") == 2


@pytest.mark.settings(fetch_allow="127.0.0.0/8")
async def test_repeat_of_a_lost_url_is_downloaded(
    api: Client, tenant: Tenant, settings: Settings, picture_url: str
) -> None:
    async def copy() -> str:
        answer = await api.post("/v1/images", json={"url": picture_url}, headers=tenant.headers | KEY)
        assert answer.status == 200
        return str((await answer.json())["response"]["id"])

    async with run_worker(settings):
        first = await copy()
        on_disk(resources_of(api).storage).path(ImageId(first)).unlink()
        second = await copy()
    assert second != first
    assert [path.name for path in stored_files(settings)] == [second]


async def test_repeat_is_refused_while_storage_is_away(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    async with run_worker(settings):
        status, first = await upload(api, tenant, **KEY)
        assert status == 200
    with unmounted(settings.storage_folder, "folders"):
        assert await upload(api, tenant, **KEY) == (503, "storage-unavailable")
    assert await upload(api, tenant, **KEY) == (200, first)
    assert await connection.fetchval("select count(*) from images") == 1


async def test_file_that_was_not_moved_is_not_lost(api: Client, tenant: Tenant, settings: Settings) -> None:
    """A file in the way of a folder: it stays in `incoming`, where readers look as well."""
    storage = on_disk(resources_of(api).storage)
    hidden = settings.storage_folder / "hidden"
    hidden.mkdir()
    for shard in range(256):
        (settings.storage_folder / f"{shard:02x}").rename(hidden / f"{shard:02x}")
    async with run_worker(settings):
        status, image_id = await upload(api, tenant)
    for shard in range(256):
        (hidden / f"{shard:02x}").rename(settings.storage_folder / f"{shard:02x}")
    hidden.rmdir()
    assert status == 200
    assert [path.parent.name for path in stored_files(settings)] == ["incoming"]
    assert (await api.get(f"/i/{image_id}")).status == 200
    assert await storage.find_missing([ImageId(image_id)]) == frozenset()
