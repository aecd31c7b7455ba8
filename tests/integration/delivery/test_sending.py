"""How files are sent: 304, ranges, HEAD, compressed SVG, and files that a proxy sends."""

from __future__ import annotations

import asyncio
import gzip
import random

import pytest

from service.config.settings import Settings
from service.ids import ImageId
from tests.conftest import Client, resources_of
from tests.support import pictures
from tests.support.delivery import Upload, code, large_png, opened
from tests.support.disks import on_disk

pytestmark = pytest.mark.usefixtures("worker")


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


@pytest.mark.slow
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


@pytest.mark.slow
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
