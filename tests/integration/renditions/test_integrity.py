"""A file that is not of the size that was stored is never shown; what was made of it before is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from service.accounts.policies import set_policy
from service.config.settings import Settings
from service.ids import ImageId
from service.renditions.integrity import is_complete
from service.renditions.jobs import RenderOrder
from service.renditions.transformation import Format, Transformation
from service.storage.files import read_file
from service.storage.interface import StoredFile
from service.telemetry.metrics import metrics
from tests.conftest import Client, Tenant, resources_of, run_worker
from tests.support import pictures
from tests.support.api import upload_image
from tests.support.disks import on_disk
from tests.support.scrapes import Scrape

pytestmark = pytest.mark.slow

SMALL, LARGE = (96, 64), (700, 500)
FORMATS: Sequence[Format] = ["jpeg", "png", "webp", "avif", "gif"]


async def upload(api: Client, tenant: Tenant, size: tuple[int, int] = SMALL) -> ImageId:
    data = pictures.encode("png", pictures.landscape(*size))
    return await upload_image(api, tenant, data)


def damage(path: Path, how: str) -> None:
    size = path.stat().st_size
    os.truncate(path, {"empty": 0, "short": size // 2, "a byte short": size - 1, "long": size + 1}[how])


def forget(api: Client) -> None:
    delivery = resources_of(api).delivery
    delivery.memory_cache.invalidate_all()
    delivery.image_cache.invalidate_all()
    delivery.image_cache._policies.clear()


async def assert_damaged(answer: Any) -> None:
    assert (answer.status, answer.headers["Cache-Control"]) == (500, "no-store")
    assert "ETag" not in answer.headers
    assert (await answer.json())["error"]["code"] == "image-damaged"


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
async def test_damaged_original_is_not_served(
    api: Client, tenant: Tenant, settings: Settings, size: tuple[int, int]
) -> None:
    async with run_worker(settings):
        image_id = await upload(api, tenant, size)
        kept = await api.get(f"/i/{image_id}?width=20")
        assert kept.status == 200
        path = on_disk(resources_of(api).storage).path(image_id)
        whole = path.read_bytes()
        for how in ("empty", "short", "a byte short", "long"):
            damage(path, how)
            forget(api)
            await assert_nothing_is_shown(api, image_id)
            again = await api.get(f"/i/{image_id}?width=20")
            assert (again.status, again.headers["ETag"]) == (200, kept.headers["ETag"])
            path.write_bytes(whole)
            assert (await api.get(f"/i/{image_id}")).status == 200


async def assert_nothing_is_shown(api: Client, image_id: ImageId) -> None:
    before = Scrape(metrics.render(None).decode())
    await assert_damaged(await api.get(f"/i/{image_id}"))
    await assert_damaged(await api.get(f"/i/{image_id}", headers={"Range": "bytes=0-9"}))
    await assert_damaged(await api.get(f"/i/{image_id}", headers={"If-None-Match": "*"}))
    assert (await api.head(f"/i/{image_id}")).status == 500
    await assert_damaged(await api.get(f"/i/{image_id}?width=10"))
    after = Scrape(metrics.render(None).decode())
    assert after.rise(before, "daguerre_errors_total", code="image-damaged") == 5
    assert after.rise(before, "daguerre_render_failures_total", code="image-damaged") == 1


@pytest.mark.settings(x_accel_redirect="/protected")
async def test_damaged_original_is_not_left_to_the_proxy(api: Client, tenant: Tenant, settings: Settings) -> None:
    async with run_worker(settings):
        image_id = await upload(api, tenant, LARGE)
    assert "X-Accel-Redirect" in (await api.get(f"/i/{image_id}")).headers
    damage(on_disk(resources_of(api).storage).path(image_id), "short")
    await assert_damaged(await api.get(f"/i/{image_id}"))


async def test_damaged_original_is_not_copied(api: Client, tenant: Tenant, settings: Settings, connection: Any) -> None:
    async with run_worker(settings):
        image_id = await upload(api, tenant)
        await set_policy(connection, tenant.name, require_signature=None, strip_location=True)
        damage(on_disk(resources_of(api).storage).path(image_id), "a byte short")
        await assert_damaged(await api.get(f"/i/{image_id}"))
    assert list(settings.renditions_folder.glob("??/*")) == []


async def test_damaged_watermark_is_not_used(api: Client, tenant: Tenant, settings: Settings) -> None:
    async with run_worker(settings):
        image_id, mark = await upload(api, tenant), await upload(api, tenant)
        damage(on_disk(resources_of(api).storage).path(mark), "a byte short")
        await assert_damaged(await api.get(f"/i/{image_id}?width=50&watermark={mark}"))


@pytest.mark.parametrize("width", [40, 500])
async def test_damaged_rendition_is_made_again(api: Client, tenant: Tenant, settings: Settings, width: int) -> None:
    async with run_worker(settings):
        image_id = await upload(api, tenant, LARGE)
        path = f"/i/{image_id}?width={width}&format=png"
        whole = await (await api.get(path)).read()
        [file] = settings.renditions_folder.glob("??/*")
        for how in ("empty", "short", "a byte short"):
            forget(api)
            before = Scrape(metrics.render(None).decode())
            damage(file, how)
            answer = await api.get(path)
            assert (answer.status, await answer.read()) == (200, whole)
            assert Scrape(metrics.render(None).decode()).rise(before, "daguerre_renditions_damaged_total") == 1


async def test_damaged_copy_is_made_again(api: Client, tenant: Tenant, settings: Settings, connection: Any) -> None:
    async with run_worker(settings):
        image_id = await upload(api, tenant)
        await set_policy(connection, tenant.name, require_signature=None, strip_location=True)
        whole = await (await api.get(f"/i/{image_id}")).read()
        forget(api)
        [file] = settings.renditions_folder.glob("??/*")
        damage(file, "short")
        answer = await api.get(f"/i/{image_id}")
        assert (answer.status, await answer.read()) == (200, whole)


async def test_truncated_renditions_are_incomplete(
    api: Client, tenant: Tenant, settings: Settings, tmp_path: Path
) -> None:
    """Of every format as it is really encoded, from one pixel on."""
    async with run_worker(settings):
        image_id = await upload(api, tenant)
        for form in FORMATS:
            for query in ("width=1", "width=90&quality=1&ellipse=1", "width=400&enlarge=1&quality=100"):
                answer = await api.get(f"/i/{image_id}?{query}&format={form}")
                assert answer.status == 200, await answer.text()
                order = RenderOrder.rendition(image_id, Transformation(form, 80))
                assert_only_whole_file_is_complete(order, await answer.read(), tmp_path / "file")


def assert_only_whole_file_is_complete(order: RenderOrder, data: bytes, path: Path) -> None:
    path.write_bytes(data)
    assert is_complete(order, read_file(path))
    assert is_complete(order, StoredFile(path, len(data), 0))  # as a large one, which is not in memory
    assert not is_complete(order, StoredFile(path, len(data), 0, bytes(len(data))))
    for size in {0, 1, 15, 16, 30, 4096, *range(0, len(data), max(1, len(data) // 50))}:
        cut = data[:size]
        if size < len(data) and not cut.endswith(data[-2:]):
            assert not is_complete(order, StoredFile(path, size, 0, cut)), size
