"""No location in what is delivered: raw files by policy, renditions by default."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest
from PIL import Image

from service.accounts.policies import set_policy
from tests.conftest import Client, Tenant, resources_of
from tests.support import pictures
from tests.support.delivery import Upload

pytestmark = pytest.mark.usefixtures("worker")


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


@pytest.mark.slow
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
