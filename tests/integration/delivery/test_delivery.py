"""`/i/{id}`: what a page embeds, raw and as renditions."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import hashlib
import io
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from PIL import Image

from service.accounts.policies import set_policy
from service.accounts.presets import set_preset
from service.accounts.signing_keys import create_signing_key
from service.api.app import create_app
from service.config.settings import Settings
from service.delivery import image_cache
from service.delivery.memory_cache import MemoryCache
from service.ids import ImageId
from service.queue import jobs
from service.renditions.parsing import check_preset
from service.renditions.service import Renditions
from service.renditions.signatures import sign
from service.storage.files import SMALL_BYTES
from service.storage.interface import RenditionKey, StoredFile
from service.storage.local.originals import LocalOriginals
from service.storage.local.renditions import LocalRenditions
from tests.conftest import Client, NewTenant, Tenant, resources_of
from tests.support import pictures
from tests.support.api import upload_image
from tests.support.disks import on_disk
from worker.cron.eviction import evict_renditions
from worker.resources import open_resources

pytestmark = pytest.mark.usefixtures("worker")

MODERN = "image/avif,image/webp,image/*,*/*;q=0.8"

Upload = Callable[..., Awaitable[str]]


def stored_files(settings: Settings) -> list[Path]:
    return [path for path in settings.renditions_folder.rglob("*") if path.is_file()]


@pytest.fixture
def upload(api: Client, tenant: Tenant) -> Upload:
    async def post(data: bytes | None = None, owner: Tenant = tenant) -> str:
        data = data or pictures.encode("jpeg", pictures.landscape(400, 300))
        return await upload_image(api, owner, data)

    return post


@pytest.fixture
async def image_id(upload: Upload) -> str:
    return await upload()


async def opened(answer: ClientResponse) -> Image.Image:
    assert answer.status == 200, await answer.text()
    return Image.open(io.BytesIO(await answer.read()))


async def code(answer: ClientResponse) -> str:
    assert answer.headers["Cache-Control"] == "no-store"
    return str((await answer.json())["error"]["code"])


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


async def test_conditional_requests_are_answered_304(api: Client, image_id: str) -> None:
    for path in (f"/i/{image_id}", f"/i/{image_id}?width=40"):
        answer = await api.get(path)
        etag, modified = answer.headers["ETag"], answer.headers["Last-Modified"]
        assert etag.startswith('"')
        for headers in (
            {"If-None-Match": etag},
            {"If-None-Match": f'"other", W/{etag}'},
            {"If-None-Match": "*"},
            {"If-Modified-Since": modified},
        ):
            again = await api.get(path, headers=headers)
            assert (again.status, await again.read()) == (304, b""), headers
            assert again.headers["ETag"] == etag
            assert again.headers["Cache-Control"] == answer.headers["Cache-Control"]
            assert again.headers.get("Vary") == answer.headers.get("Vary")
        for headers in (
            {"If-None-Match": '"other"'},
            {"If-None-Match": '"other"', "If-Modified-Since": modified},
            {"If-Modified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"},
            {"If-Modified-Since": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
        ):
            assert (await api.get(path, headers=headers)).status == 200, headers


def large_png() -> bytes:
    """Noise, which does not get smaller: more than what is kept in memory."""
    data = pictures.encode("png", Image.effect_noise((900, 900), 200))
    assert len(data) > 2 * SMALL_BYTES
    return data


@pytest.mark.parametrize("large", [False, True])
async def test_range_of_the_original_is_sent(api: Client, upload: Upload, large: bool) -> None:
    data = large_png() if large else pictures.encode("png")
    image_id, size = await upload(data), len(data)
    etag = (await api.get(f"/i/{image_id}")).headers["ETag"]
    for byte_range, start, stop in [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=100-", 100, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=-{2 * size}", 0, size),
        (f"bytes=5-{2 * size}", 5, size),
    ]:
        answer = await api.get(f"/i/{image_id}", headers={"Range": byte_range})
        assert answer.status == 206, byte_range
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert await answer.read() == data[start:stop]
    for byte_range in (f"bytes={size}-", f"bytes={10**18}-", "bytes=-0"):
        answer = await api.get(f"/i/{image_id}", headers={"Range": byte_range})
        assert (answer.status, await code(answer)) == (416, "range-not-satisfiable"), byte_range
        assert answer.headers["Content-Range"] == f"bytes */{size}"
    for headers in (
        {"Range": "bytes=0-0,2-3"},
        {"Range": "lines=1-2"},
        {"Range": "bytes=9-3"},
        {"Range": "bytes=-"},
        {"Range": f"bytes=-{'9' * 5000}"},
        {"Range": "bytes=0-3", "If-Range": f"W/{etag}"},
        {"Range": "bytes=0-3", "If-Range": '"other"'},
    ):
        answer = await api.get(f"/i/{image_id}", headers=headers)
        assert (answer.status, await answer.read()) == (200, data), headers
    answer = await api.get(f"/i/{image_id}", headers={"Range": "bytes=0-3", "If-Range": etag})
    assert answer.status == 206


@pytest.mark.parametrize("query", ["", "?width=40", "?format=png"])
async def test_head_has_the_headers_of_get(api: Client, upload: Upload, query: str) -> None:
    image_id = await upload(large_png())
    got = await api.get(f"/i/{image_id}{query}")
    body = await got.read()
    answer = await api.head(f"/i/{image_id}{query}")
    assert (answer.status, await answer.read()) == (200, b"")
    assert int(answer.headers["Content-Length"]) == len(body)
    assert answer.headers["ETag"] == got.headers["ETag"]
    assert (await api.get("/healthz")).status == 200  # the connection is in good order


async def test_large_pictures_are_sent_concurrently(api: Client, upload: Upload) -> None:
    data = large_png()
    image_id = await upload(data)
    answers = await asyncio.gather(*(api.get(f"/i/{image_id}") for _ in range(20)))
    assert [await answer.read() == data for answer in answers] == [True] * 20


async def test_disconnect_disturbs_no_other_client(api: Client, upload: Upload) -> None:
    data = large_png()
    image_id = await upload(data)
    for _ in range(5):
        answer = await api.get(f"/i/{image_id}")
        await answer.content.read(1000)
        answer.close()
    assert await (await api.get(f"/i/{image_id}")).read() == data


async def test_pending_image_is_processing(api: Client, connection: Any, tenant: Tenant) -> None:
    await connection.execute(
        "insert into images (id, account_id, size, sha256) values ('PENDING', $1, 1, '')", tenant.id
    )
    answer = await api.get("/i/PENDING")
    assert (answer.status, await code(answer)) == (404, "image-processing")
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize("query", ["", "?width=40"])
async def test_deleted_image_is_gone_at_once(
    api: Client, image_id: str, settings: Settings, tenant: Tenant, connection: Any, query: str
) -> None:
    assert (await api.get(f"/i/{image_id}{query}")).status == 200
    await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)
    assert (await api.get(f"/i/{image_id}{query}")).status == 404
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from renditions") == 0


async def test_deletion_invalidates_other_processes(
    api: Client, image_id: str, settings: Settings, tenant: Tenant, aiohttp_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "TRUST_S", 60)
    other = await aiohttp_client(create_app(settings))
    paths = [f"/i/{image_id}", f"/i/{image_id}?width=40"]
    for path in paths:
        assert (await other.get(path)).status == 200
    await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)
    async with asyncio.timeout(2):
        for path in paths:
            while (await other.get(path)).status != 404:
                await asyncio.sleep(0.01)


async def test_rendition_is_made_once_by_all_processes(
    api: Client, image_id: str, settings: Settings, aiohttp_client: Any
) -> None:
    other = await aiohttp_client(create_app(settings))
    answers = await asyncio.gather(*(client.get(f"/i/{image_id}?width=77") for client in [api, other] * 50))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.headers["ETag"] for answer in answers}) == 1
    assert len(stored_files(settings)) == 1


async def test_equal_requests_share_one_rendition(api: Client, image_id: str, settings: Settings) -> None:
    for query in (
        "width=100&fit=contain",
        "fit=scale-down&width=100",
        "width=50&dpr=2",
        "width=100&blur=0",
        "width=100&metadata=none&brightness=1&rotate=0",
    ):
        assert (await api.get(f"/i/{image_id}?{query}")).status == 200, query
    assert len(stored_files(settings)) == 1


async def test_removed_rendition_is_made_again(api: Client, image_id: str, settings: Settings) -> None:
    await api.get(f"/i/{image_id}?width=40")
    resources_of(api).delivery.memory_cache.invalidate_all()
    [path] = stored_files(settings)
    path.unlink()
    assert (await opened(await api.get(f"/i/{image_id}?width=40"))).size == (40, 30)


@pytest.mark.parametrize("change", ["evicted", "made anew"])
async def test_changed_file_is_found_again(
    api: Client, upload: Upload, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = f"/i/{await upload(large_png())}?format=png"
    whole = await (await api.get(path)).read()
    longer = whole[:-12] + b"longer" + whole[-12:]
    find, changes = LocalRenditions.find, iter([change])

    async def find_and_change(
        self: LocalRenditions, key: RenditionKey, is_whole: Callable[[StoredFile], bool]
    ) -> StoredFile | None:
        stored = await find(self, key, is_whole)
        match next(changes, None):
            case "evicted":
                self.remove([key])
            case "made anew":
                self.write(key, longer)
        return stored

    monkeypatch.setattr(LocalRenditions, "find", find_and_change)
    answer = await api.get(path)
    assert answer.status == 200
    assert await answer.read() == (whole if change == "evicted" else longer)


async def test_original_moved_before_sending_is_found(
    api: Client, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = large_png()
    image_id = ImageId(await upload(data))
    find, places = LocalOriginals.find, iter(["incoming"])

    async def find_where_it_was(self: LocalOriginals, image_id: ImageId) -> StoredFile | None:
        stored = await find(self, image_id)
        if stored is not None and next(places, None):
            return dataclasses.replace(stored, path=self.incoming_path(image_id))
        return stored

    monkeypatch.setattr(LocalOriginals, "find", find_where_it_was)
    assert await (await api.get(f"/i/{image_id}")).read() == data


async def test_deleted_image_is_not_reported_lost(
    api: Client, image_id: str, settings: Settings, tenant: Tenant, aiohttp_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the process has not heard of the deletion."""
    monkeypatch.setattr(image_cache, "TRUST_S", 60)
    monkeypatch.setattr(Renditions, "_on_event", lambda *_: None)
    other = await aiohttp_client(create_app(settings))
    await resources_of(other).delivery.renditions.events.wait_connected(5)
    assert (await other.get(f"/i/{image_id}")).status == 200
    await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)
    answer = await other.get(f"/i/{image_id}/name")
    assert (answer.status, await code(answer)) == (404, "image-not-found")


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
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from renditions") == 0
    assert (await api.get(f"/i/{image_id}?width=40")).status == 200


async def test_preset_stands_for_parameters(api: Client, image_id: str, connection: Any, tenant: Tenant) -> None:
    await set_preset(connection, tenant.name, "card", check_preset("width=80&height=80&fit=cover&format=png"))
    assert (await opened(await api.get(f"/i/{image_id}?preset=card"))).size == (80, 80)
    other = await opened(await api.get(f"/i/{image_id}?preset=card&height=40"))
    assert (other.size, other.format) == ((80, 40), "PNG")


async def test_signature_can_be_required(api: Client, image_id: str, connection: Any, tenant: Tenant) -> None:
    secret = await create_signing_key(connection, tenant.name)
    await set_policy(connection, tenant.name, require_signature=True, strip_location=None)
    path = f"/i/{image_id}/car.jpg?width=40"
    assert await code(await api.get(path)) == "signature-required"
    assert (await opened(await api.get(sign(path, secret)))).size == (40, 30)
    assert await code(await api.get(sign(path, "wrong"))) == "signature-invalid"
    assert await code(await api.get(sign(path, secret).replace("width=40", "width=41"))) == "signature-invalid"
    assert await code(await api.get(sign(path, secret, expires=int(time.time()) - 1))) == "signature-expired"
    answer = await api.get(sign(path, secret, expires=int(time.time()) + 100))
    seconds = int(answer.headers["Cache-Control"].removeprefix("public, max-age="))
    assert 90 <= seconds <= 100


async def test_signed_picture_expires_in_caches(api: Client, image_id: str, connection: Any, tenant: Tenant) -> None:
    path = sign(f"/i/{image_id}", await create_signing_key(connection, tenant.name), expires=int(time.time()) + 2)
    answer = await api.get(path)
    assert int(answer.headers["Cache-Control"].removeprefix("public, max-age=").removesuffix(", immutable")) <= 2
    async with asyncio.timeout(5):
        while (answer := await api.get(path)).status == 200:
            await asyncio.sleep(0.1)
    assert await code(answer) == "signature-expired"


async def test_cached_picture_expires_with_its_policy(
    api: Client, image_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that was found by a cached policy is not trusted longer than the policy."""
    monkeypatch.setattr(image_cache, "TRUST_S", 60)
    expiries: list[float] = []

    def record(_: MemoryCache, __: Any, ___: Any, *, until: float, generation: int) -> None:
        expiries.append(until)

    monkeypatch.setattr(MemoryCache, "put", record)
    for path in (f"/i/{image_id}", f"/i/{image_id}/name"):
        assert (await api.get(path)).status == 200
    assert expiries[0] == expiries[1]


async def test_changed_policy_holds_after_the_cache(
    api: Client, image_id: str, connection: Any, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "TRUST_S", 0.5)
    assert (await api.get(f"/i/{image_id}")).status == 200
    await set_policy(connection, tenant.name, require_signature=True, strip_location=None)
    async with asyncio.timeout(10):
        while (answer := await api.get(f"/i/{image_id}")).status == 200:
            await asyncio.sleep(0.05)
    assert await code(answer) == "signature-required"


@pytest.mark.settings(rendition_widths="64,128")
async def test_unsigned_widths_snap_to_allowed_ones(
    api: Client, image_id: str, connection: Any, tenant: Tenant
) -> None:
    assert (await opened(await api.get(f"/i/{image_id}?width=50"))).size == (64, 48)
    assert (await opened(await api.get(f"/i/{image_id}?width=500"))).size == (128, 96)
    assert (await opened(await api.get(f"/i/{image_id}?size=100x100&fit=cover"))).size == (128, 128)
    assert (await opened(await api.get(f"/i/{image_id}?height=30"))).size == (64, 48)
    assert (await opened(await api.get(f"/i/{image_id}?size=20%25"))).size == (128, 96)
    signed = sign(f"/i/{image_id}?width=50", await create_signing_key(connection, tenant.name))
    await asyncio.sleep(0)
    resources_of(api).delivery.image_cache._policies.clear()
    assert (await opened(await api.get(signed))).size == (50, 38)


@pytest.mark.settings(rendition_rate_limit="2/h")
async def test_new_unsigned_renditions_are_limited(api: Client, image_id: str, connection: Any, tenant: Tenant) -> None:
    secret = await create_signing_key(connection, tenant.name)
    for width in (10, 20, 10):
        assert (await api.get(f"/i/{image_id}?width={width}")).status == 200
    answer = await api.get(f"/i/{image_id}?width=30")
    assert (answer.status, await code(answer)) == (429, "too-many-renditions")
    assert int(answer.headers["Retry-After"]) > 0
    assert (await api.get(f"/i/{image_id}?width=10")).status == 200
    assert (await api.get(sign(f"/i/{image_id}?width=30", secret))).status == 200


@pytest.mark.settings(rendition_rate_limit="4/h", wait_s=30)
async def test_large_rendition_costs_several_tokens(api: Client, image_id: str) -> None:
    path = f"/i/{image_id}?enlarge&format=avif&height=1500&width="
    assert (await api.get(f"{path}2000")).status == 200
    assert await code(await api.get(f"{path}700")) == "too-many-renditions"


@pytest.mark.settings(rendition_rate_limit="2/h", wait_s=30)
async def test_rendition_beyond_the_burst_takes_all_of_it(api: Client, image_id: str) -> None:
    assert (await api.get(f"/i/{image_id}?enlarge&format=gif&width=1000")).status == 200
    assert await code(await api.get(f"/i/{image_id}?width=10")) == "too-many-renditions"


@pytest.mark.settings(not_found_rate_limit="3/h", trusted_proxies="127.0.0.0/8")
async def test_ids_cannot_be_guessed_from_one_address(api: Client, image_id: str) -> None:
    guesser, other = {"X-Forwarded-For": "198.51.100.7"}, {"X-Forwarded-For": "198.51.100.8"}
    for number in range(3):
        assert (await api.get(f"/i/AAAAAA{number}", headers=guesser)).status == 404
    answer = await api.get("/i/AAAAAA9", headers=guesser)
    assert (answer.status, await code(answer)) == (429, "too-many-misses")
    assert (await api.get(f"/i/{image_id}", headers=guesser)).status == 429  # a right guess is not confirmed either
    assert (await api.get(f"/i/{image_id}", headers=other)).status == 200


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


def with_location() -> bytes:
    gps = {1: "N", 2: (48.0, 51.0, 29.25), 3: "E", 4: (2.0, 17.0, 40.5)}
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x8825] = gps
    return pictures.encode("jpeg", pictures.landscape(400, 300), exif=exif)


def location_of(data: bytes) -> dict[int, Any]:
    exif = Image.open(io.BytesIO(data)).getexif()
    return {tag: value for tag, value in exif.get_ifd(0x8825).items() if value}


async def test_location_can_be_stripped_from_raw_files(
    api: Client, upload: Upload, connection: Any, tenant: Tenant
) -> None:
    data = with_location()
    image_id = await upload(data)
    assert location_of(await (await api.get(f"/i/{image_id}")).read())
    await set_policy(connection, tenant.name, require_signature=None, strip_location=True)
    resources_of(api).delivery.image_cache._policies.clear()
    resources_of(api).delivery.memory_cache.invalidate_all()
    answer = await api.get(f"/i/{image_id}")
    stripped = await answer.read()
    assert answer.headers["Cache-Control"].endswith("immutable")
    assert location_of(stripped) == {}
    before, after = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(stripped))
    assert after.getexif()[0x010F] == "Maker"
    assert after.tobytes() == before.tobytes()
    kept = await api.get(f"/i/{image_id}?metadata=keep&keep-location&format=jpeg")
    assert location_of(await kept.read()) == {}


async def test_headers_of_a_stripped_file_confirm_no_guess(
    api: Client, upload: Upload, connection: Any, tenant: Tenant
) -> None:
    """An attacker who guesses a location can write it into the copy, and compare its hash with each header."""
    data = with_location()
    digest = hashlib.sha256(data).hexdigest()
    image_id = await upload(data)
    open_etag = (await api.get(f"/i/{image_id}")).headers["ETag"]
    assert open_etag == f'"{digest}"'
    await set_policy(connection, tenant.name, require_signature=None, strip_location=True)
    resources_of(api).delivery.image_cache._policies.clear()
    resources_of(api).delivery.memory_cache.invalidate_all()
    for method in ("GET", "HEAD", "GET"):
        answer = await api.request(method, f"/i/{image_id}")
        for size in (8, 16, 32):
            assert digest[:size] not in str(answer.headers).lower()
        again = await api.request(method, f"/i/{image_id}", headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status == 304
    for guess in (open_etag, f"W/{open_etag}", f'"{digest}-1"'):
        assert (await api.get(f"/i/{image_id}", headers={"If-None-Match": guess})).status == 200


async def test_rendition_has_no_location_by_default(api: Client, upload: Upload) -> None:
    image_id = await upload(with_location())
    for query, has_location in [("", False), ("&metadata=keep", False), ("&metadata=keep&keep-location", True)]:
        data = await (await api.get(f"/i/{image_id}?width=40&format=jpeg{query}")).read()
        assert bool(location_of(data)) == has_location, query


async def test_svg_is_served_without_scripts(api: Client, upload: Upload) -> None:
    image_id = await upload(pictures.every_format()["svg"])
    answer = await api.get(f"/i/{image_id}")
    assert answer.headers["Content-Type"] == "image/svg+xml"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert (await opened(await api.get(f"/i/{image_id}?width=40"))).format == "PNG"


async def test_compressed_svg_is_sent_with_its_encoding(api: Client, upload: Upload) -> None:
    packed = gzip.compress(pictures.SVG)
    image_id = await upload(packed)
    answer = await api.get(f"/i/{image_id}")
    assert (answer.headers["Content-Type"], answer.headers["Content-Encoding"]) == ("image/svg+xml", "gzip")
    assert answer.headers["Content-Length"] == str(len(packed))
    assert await answer.read() == pictures.SVG  # the client unpacked it
    part = await api.get(f"/i/{image_id}", headers={"Range": "bytes=0-1"}, auto_decompress=False)
    assert (part.status, part.headers["Content-Encoding"], await part.read()) == (206, "gzip", b"\x1f\x8b")
    assert "Content-Encoding" not in (await api.get(f"/i/{await upload(pictures.SVG)}")).headers
    assert (await opened(await api.get(f"/i/{image_id}?width=40"))).size == (40, 27)


@pytest.mark.settings(x_accel_redirect="/protected")
async def test_compressed_svg_is_not_left_to_the_proxy(api: Client, upload: Upload) -> None:
    noise = random.Random(1).randbytes(300_000).hex()
    packed = gzip.compress(pictures.SVG + f"<!-- {noise} -->".encode())
    answer = await api.get(f"/i/{await upload(packed)}")
    assert "X-Accel-Redirect" not in answer.headers
    assert answer.headers["Content-Encoding"] == "gzip"
    assert (await answer.read()).startswith(pictures.SVG)


@pytest.mark.settings(x_accel_redirect="/protected")
async def test_large_files_are_left_to_the_proxy(api: Client, upload: Upload, settings: Settings) -> None:
    image_id = await upload(large_png())
    raw = await api.get(f"/i/{image_id}")
    assert await raw.read() == b""
    shard = on_disk(resources_of(api).storage).path(ImageId(image_id)).parent.name
    assert raw.headers["X-Accel-Redirect"] == f"/protected/images/{shard}/{image_id}"
    assert raw.headers["Content-Type"] == "image/png"
    rendition = await api.get(f"/i/{image_id}?format=png")
    place = rendition.headers["X-Accel-Redirect"].removeprefix("/protected/renditions/")
    assert (settings.renditions_folder / place).is_file()
    behind = await api.get(f"/i/{image_id}", headers={"Range": "bytes=99999999-"})
    assert (behind.status, await code(behind)) == (416, "range-not-satisfiable")
    small = await api.get(f"/i/{image_id}?width=10")
    assert "X-Accel-Redirect" not in small.headers


async def test_rendition_without_workers_is_not_ready(aiohttp_client: Any, settings: Settings, image_id: str) -> None:
    changed = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0", "wait_s": 0.3})
    app = create_app(changed)
    other = await aiohttp_client(app)
    answer = await other.get(f"/i/{image_id}?width=33")
    assert (answer.status, await code(answer)) == (503, "rendition-not-ready")
    assert answer.headers["Retry-After"] == "1"
    assert (await other.get(f"/i/{image_id}")).status == 200


async def test_every_format_can_be_rendered(api: Client, upload: Upload) -> None:
    for form, data in pictures.every_format().items():
        image_id = await upload(data)
        answer = await api.get(f"/i/{image_id}?width=20&format=webp")
        assert (await opened(answer)).width == 20, form
