"""`/i/{id}`: what a page embeds, raw and as renditions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.accounts.presets import set_preset
from service.api.app import create_app
from service.config.settings import Settings
from service.renditions.parsing import check_preset
from tests.conftest import Client, Tenant
from tests.support import pictures
from tests.support.delivery import MODERN, Upload, code, opened, rendition_files

pytestmark = pytest.mark.usefixtures("worker")


async def test_original_is_sent_unchanged(api: Client, upload: Upload) -> None:
    data = pictures.encode("jpeg", pictures.landscape(400, 300))
    image_id = await upload(data)
    answer = await api.get(f"/i/{image_id}")
    assert await answer.read() == data
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.headers["Cache-Control"] == "public, max-age=2592000, immutable"
    assert answer.headers["Surrogate-Key"] == answer.headers["Cache-Tag"] == image_id
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Vary" not in answer.headers


async def test_name_in_the_path_changes_no_bytes(api: Client, image_id: str) -> None:
    raw = await api.get(f"/i/{image_id}")
    named = await api.get(f"/i/{image_id}/red%20car%22")
    assert await named.read() == await raw.read()
    assert named.headers["Content-Disposition"] == "inline; filename*=UTF-8''red%20car%22"


async def test_extension_sets_the_format(api: Client, image_id: str) -> None:
    answer = await api.get(f"/i/{image_id}/red-car.png?width=40", headers={"Accept": MODERN})
    assert (await opened(answer)).format == "PNG"
    assert answer.headers["Content-Type"] == "image/png"
    assert "Vary" not in answer.headers
    assert (await api.get(f"/i/{image_id}/red-car.png?format=webp")).status == 400


async def test_rendition_has_the_requested_size(api: Client, image_id: str) -> None:
    assert (await opened(await api.get(f"/i/{image_id}?width=100"))).size == (100, 75)
    assert (await opened(await api.get(f"/i/{image_id}?width=50&dpr=2"))).size == (100, 75)
    assert (await opened(await api.get(f"/i/{image_id}?size=60x60&fit=cover"))).size == (60, 60)
    assert (await opened(await api.get(f"/i/{image_id}?size=50%25"))).size == (200, 150)
    assert (await opened(await api.get(f"/i/{image_id}?width=1000"))).size == (400, 300)
    assert (await opened(await api.get(f"/i/{image_id}?width=1000&enlarge"))).size == (1000, 750)


async def test_format_is_negotiated_by_accept(api: Client, image_id: str) -> None:
    for accept, form in [
        (MODERN, "AVIF"),
        ("image/webp,*/*", "WEBP"),
        ("image/avif;q=0,image/webp", "WEBP"),
        ("image/*,*/*", "JPEG"),
        ("", "JPEG"),
    ]:
        answer = await api.get(f"/i/{image_id}?width=40", headers={"Accept": accept})
        assert (await opened(answer)).format == form
        assert answer.headers["Content-Type"] == f"image/{form.lower()}"
        assert answer.headers["Vary"] == "Accept"


async def test_errors_vary_by_accept(api: Client, image_id: str) -> None:
    answer = await api.get(f"/i/{image_id}?width=8192&height=8192&fit=pad")
    assert await code(answer) == "rendition-too-large"
    assert answer.headers["Vary"] == "Accept"
    for _ in range(2):  # the second time from memory
        answer = await api.get(f"/i/{image_id}?width=40", headers={"Range": "bytes=1000000-"})
        assert await code(answer) == "range-not-satisfiable"
        assert answer.headers["Vary"] == "Accept"


async def test_invalid_parameter_is_named(api: Client, image_id: str) -> None:
    for query, named in [
        ("foo=1", "foo"),
        ("width=0", "width"),
        ("width=8193", "width"),
        ("width=1e2", "width"),
        ("width=10&width=20", "width"),
        ("fit=crop", "fit"),
        ("fit=cover", "fit=cover"),
        ("size=10", "size"),
        ("size=10x10&width=10", "size"),
        ("gravity=up&width=10&height=10&fit=cover", "gravity"),
        ("gravity=north&width=10", "gravity"),
        ("frame=2", "frame"),
        ("watermark=AAAAAAA", "watermark"),
        ("watermark-opacity=1", "watermark"),
        ("preset=none", "preset"),
        ("keep-location", "keep-location"),
        ("rotate=45", "rotate"),
        ("expires=1", "expires"),
    ]:
        answer = await api.get(f"/i/{image_id}?{query}")
        assert answer.status == 400, query
        error = (await answer.json())["error"]
        assert error["code"] == "invalid-parameter"
        assert named in error["message"]


async def test_invalid_and_unknown_ids_differ(api: Client) -> None:
    assert await code(await api.get("/i/short")) == "invalid-id"
    answer = await api.get("/i/AAAAAAA?width=10")
    assert (answer.status, await code(answer)) == (404, "image-not-found")


async def test_pending_image_is_processing(api: Client, connection: Any, tenant: Tenant) -> None:
    await connection.execute(
        "insert into images (id, account_id, size, sha256) values ('PENDING', $1, 1, '')", tenant.id
    )
    answer = await api.get("/i/PENDING")
    assert (answer.status, await code(answer)) == (404, "image-processing")
    assert answer.headers["Retry-After"] == "1"


async def test_preset_stands_for_parameters(api: Client, image_id: str, connection: Any, tenant: Tenant) -> None:
    await set_preset(connection, tenant.name, "card", check_preset("width=80&height=80&fit=cover&format=png"))
    assert (await opened(await api.get(f"/i/{image_id}?preset=card"))).size == (80, 80)
    other = await opened(await api.get(f"/i/{image_id}?preset=card&height=40"))
    assert (other.size, other.format) == ((80, 40), "PNG")


@pytest.mark.slow
async def test_rendition_is_made_once_by_all_processes(
    api: Client, image_id: str, settings: Settings, aiohttp_client: Any
) -> None:
    other = await aiohttp_client(create_app(settings))
    answers = await asyncio.gather(*(client.get(f"/i/{image_id}?width=77") for client in [api, other] * 50))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.headers["ETag"] for answer in answers}) == 1
    assert len(rendition_files(settings)) == 1


async def test_equal_requests_share_one_rendition(api: Client, image_id: str, settings: Settings) -> None:
    for query in (
        "width=100&fit=contain",
        "fit=scale-down&width=100",
        "width=50&dpr=2",
        "width=100&blur=0",
        "width=100&metadata=none&brightness=1&rotate=0",
    ):
        assert (await api.get(f"/i/{image_id}?{query}")).status == 200, query
    assert len(rendition_files(settings)) == 1


async def test_rendition_without_workers_is_not_ready(aiohttp_client: Any, settings: Settings, image_id: str) -> None:
    changed = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0", "wait_s": 0.3})
    app = create_app(changed)
    other = await aiohttp_client(app)
    answer = await other.get(f"/i/{image_id}?width=33")
    assert (answer.status, await code(answer)) == (503, "rendition-not-ready")
    assert answer.headers["Retry-After"] == "1"
    assert (await other.get(f"/i/{image_id}")).status == 200


@pytest.mark.slow
async def test_every_format_can_be_rendered(api: Client, upload: Upload) -> None:
    for form, data in pictures.every_format().items():
        image_id = await upload(data)
        answer = await api.get(f"/i/{image_id}?width=20&format=webp")
        assert (await opened(answer)).width == 20, form
