"""What was deleted, moved, changed or evicted while a process remembers it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from service.api.app import create_app
from service.config.settings import Settings
from service.delivery import image_cache
from service.ids import ImageId
from service.queue import jobs
from service.renditions.service import Renditions
from service.storage.interface import RenditionKey, StoredFile
from service.storage.local.originals import LocalOriginals
from service.storage.local.renditions import LocalRenditions
from tests.conftest import Client, NewTenant, Tenant, resources_of
from tests.support import pictures
from tests.support.delivery import Upload, code, large_png, opened, rendition_files
from worker.cron.eviction import evict_renditions
from worker.resources import open_resources

pytestmark = pytest.mark.usefixtures("worker")


@pytest.mark.parametrize("query", ["", "?width=40"])
async def test_deleted_image_is_gone_at_once(
    api: Client, image_id: str, settings: Settings, tenant: Tenant, connection: Any, query: str
) -> None:
    assert (await api.get(f"/i/{image_id}{query}")).status == 200
    await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)
    assert (await api.get(f"/i/{image_id}{query}")).status == 404
    assert rendition_files(settings) == []
    assert await connection.fetchval("select count(*) from renditions") == 0


async def test_deletion_invalidates_other_processes(
    api: Client, image_id: str, settings: Settings, tenant: Tenant, aiohttp_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "LOOKUP_TTL_S", 60)
    other = await aiohttp_client(create_app(settings))
    paths = [f"/i/{image_id}", f"/i/{image_id}?width=40"]
    for path in paths:
        assert (await other.get(path)).status == 200
    await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)
    async with asyncio.timeout(2):
        for path in paths:
            while (await other.get(path)).status != 404:
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_deleted_image_is_not_reported_lost(
    api: Client, image_id: str, settings: Settings, tenant: Tenant, aiohttp_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the process has not heard of the deletion."""
    monkeypatch.setattr(image_cache, "LOOKUP_TTL_S", 60)
    monkeypatch.setattr(Renditions, "_on_event", lambda *_: None)
    other = await aiohttp_client(create_app(settings))
    await resources_of(other).delivery.renditions.events.wait_connected(5)
    assert (await other.get(f"/i/{image_id}")).status == 200
    await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)
    answer = await other.get(f"/i/{image_id}/name")
    assert (answer.status, await code(answer)) == (404, "image-not-found")


@pytest.mark.slow
async def test_deleted_watermark_ends_its_renditions(
    api: Client, image_id: str, upload: Upload, new_tenant: NewTenant, tenant: Tenant
) -> None:
    logo = await upload(pictures.encode("png", Image.new("RGB", (50, 50), "red")))
    strange = await upload(pictures.encode("png"), await new_tenant())
    path = f"/i/{image_id}?width=200&format=png&watermark={logo}&watermark-position=centre"
    answer = await api.get(path)
    assert (await opened(answer)).convert("RGB").getpixel((100, 75)) == (255, 0, 0)
    assert answer.headers["Surrogate-Key"] == f"{image_id} {logo}"
    assert answer.headers["Cache-Tag"] == f"{image_id},{logo}"
    assert (await api.get(f"/i/{image_id}?watermark={strange}")).status == 400
    await api.delete(f"/v1/images/{logo}", headers=tenant.headers)
    assert (await api.get(path)).status == 400


async def test_original_moved_before_sending_is_found(
    api: Client, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = large_png()
    image_id = ImageId(await upload(data))
    find, places = LocalOriginals.find, iter(["incoming"])

    async def find_where_it_was(self: LocalOriginals, image_id: ImageId, size: int) -> StoredFile | None:
        stored = await find(self, image_id, size)
        if stored is not None and next(places, None):
            return dataclasses.replace(stored, path=self.incoming_path(image_id))
        return stored

    monkeypatch.setattr(LocalOriginals, "find", find_where_it_was)
    assert await (await api.get(f"/i/{image_id}")).read() == data


async def test_removed_rendition_is_made_again(api: Client, image_id: str, settings: Settings) -> None:
    await api.get(f"/i/{image_id}?width=40")
    resources_of(api).delivery.memory_cache.invalidate_all()
    [path] = rendition_files(settings)
    path.unlink()
    assert (await opened(await api.get(f"/i/{image_id}?width=40"))).size == (40, 30)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["evicted", "made anew"])
async def test_changed_file_is_found_again(
    api: Client, upload: Upload, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = f"/i/{await upload(large_png())}?format=png"
    whole = await (await api.get(path)).read()
    longer = whole[:-12] + b"longer" + whole[-12:]
    find, changes = LocalRenditions.find, iter([change])

    async def find_and_change(
        self: LocalRenditions, key: RenditionKey, is_complete: Callable[[StoredFile], bool]
    ) -> StoredFile | None:
        stored = await find(self, key, is_complete)
        match next(changes, None):
            case "evicted":
                await self.remove([key])
            case "made anew":
                await self.write(key, longer)
        return stored

    monkeypatch.setattr(LocalRenditions, "find", find_and_change)
    answer = await api.get(path)
    assert answer.status == 200
    assert await answer.read() == (whole if change == "evicted" else longer)


@pytest.mark.slow
@pytest.mark.settings(renditions_size=1)
async def test_renditions_are_evicted_to_their_size(
    api: Client, image_id: str, settings: Settings, connection: Any
) -> None:
    await api.get(f"/i/{image_id}?width=40")
    async with asyncio.timeout(5):
        while not await connection.fetchval("select count(*) from renditions"):
            await asyncio.sleep(0.01)
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await evict_renditions({"resources": resources})
    await redis.aclose(close_connection_pool=True)
    assert rendition_files(settings) == []
    assert await connection.fetchval("select count(*) from renditions") == 0
    assert (await api.get(f"/i/{image_id}?width=40")).status == 200
