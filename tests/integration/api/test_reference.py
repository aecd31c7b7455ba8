"""`/docs`: the files of the reference, as HTTP sends them."""

from __future__ import annotations

import gzip

import pytest

from tests.conftest import Client


async def test_page_has_a_strict_policy(api: Client) -> None:
    response = await api.get("/docs")
    policy = response.headers["Content-Security-Policy"]
    assert (response.status, response.content_type) == (200, "text/html")
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "http" not in policy
    assert "<script>" not in await response.text()


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("reference.js", "text/javascript"),
        ("reference.css", "text/css"),
        ("openapi-explorer.min.js", "text/javascript"),
        ("openapi-explorer.LICENSE.txt", "text/plain"),
    ],
)
async def test_assets_are_served_and_revalidated(api: Client, name: str, media_type: str) -> None:
    response = await api.get(f"/docs/{name}")
    assert (response.status, response.content_type) == (200, media_type)
    again = await api.get(f"/docs/{name}", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")


@pytest.mark.parametrize("other", ["identity", "gzip;q=0", "br, gzip; Q=0.000, *"])
async def test_assets_are_compressed_for_clients_that_take_gzip(api: Client, other: str) -> None:
    plain = await api.get("/docs/reference.js", headers={"Accept-Encoding": other})
    packed = await api.get("/docs/reference.js", headers={"Accept-Encoding": "br, gzip;q=0.5"}, auto_decompress=False)
    assert (plain.headers.get("Content-Encoding"), packed.headers["Content-Encoding"]) == (None, "gzip")
    body = await packed.read()
    assert await plain.read() == (body if body.startswith(b"//") else gzip.decompress(body))


@pytest.mark.parametrize("name", ["page.py", "..%2Fpage.py", "LICENSE", "nothing.js"])
async def test_other_files_are_not_served(api: Client, name: str) -> None:
    response = await api.get(f"/docs/{name}")
    assert (response.status, (await response.json())["error"]["code"]) == (404, "not-found")
