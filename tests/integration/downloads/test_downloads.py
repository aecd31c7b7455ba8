"""Downloads through the API: what is stored, the faults of origins, limits and logs."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest
from aiohttp import ClientSession, web

from service.config.settings import Settings
from service.errors import ServiceError
from service.uploads.ingest import Ingest
from tests.conftest import Client, NewTenant, Tenant
from tests.integration.downloads.origins import (
    LOCAL,
    Serve,
    get,
    picture,
    raw_origin,
    refusal,
)
from tests.support.api import error_of
from tests.support.samples import jpeg, stored_files
from tests.support.waiting import until


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_picture_from_a_url_is_stored(api: Client, tenant: Tenant, serve: Serve, settings: Settings) -> None:
    origin = await serve(picture)
    response = await get(api, tenant, origin / "a.png", tags="lake, evening", verbose="true", with_exif="true")
    assert response.status == 200
    assert response.headers["Cache-Control"] == "no-store"
    image = (await response.json())["response"]
    assert list(image)[:5] == ["id", "width", "height", "filesize", "tags"]
    assert (image["width"], image["height"], image["filesize"]) == (64, 48, len(jpeg()))
    assert (image["tags"], image["format"], image["exif"]) == (["lake", "evening"], "jpeg", {})
    [file] = stored_files(settings)
    assert file.read_bytes() == jpeg()


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_url_can_be_posted_as_json(api: Client, tenant: Tenant, serve: Serve) -> None:
    origin = await serve(picture)
    body = {"url": str(origin), "tags": ["lake", " evening "]}
    response = await api.post("/v1/images?verbose", json=body, headers=tenant.headers)
    image = (await response.json())["response"]
    assert (response.status, image["tags"], image["format"]) == (200, ["lake", "evening"], "jpeg")


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        ("{", "invalid-body", "JSON"),
        ("[]", "invalid-body", "object"),
        ("{}", "invalid-body", "url"),
        ('{"url": 5}', "invalid-body", "url"),
        ('{"url": "http://e.example/", "tag": []}', "invalid-body", "tag"),
        ('{"url": "http://e.example/", "tags": "a"}', "invalid-body", "tags"),
        ('{"url": "http://e.example/", "tags": ["a,b"]}', "invalid-parameter", "comma"),
        ('{"url": ""}', "invalid-url", "URL"),
    ],
)
async def test_json_without_a_valid_url_is_refused(
    api: Client, tenant: Tenant, body: str, code: str, named: str
) -> None:
    headers = tenant.headers | {"Content-Type": "application/json"}
    status, actual_code, message = await error_of(await api.post("/v1/images", data=body, headers=headers))
    assert (status, actual_code) == (400, code)
    assert named in message


async def test_tags_in_query_and_json_are_refused(api: Client, tenant: Tenant) -> None:
    body = {"url": "http://e.example/", "tags": ["a"]}
    response = await api.post("/v1/images?tags=b", json=body, headers=tenant.headers)
    assert (await error_of(response))[:2] == (400, "invalid-parameter")


@pytest.mark.parametrize("query", ["", "?url=", "?tags=a", "?url"])
async def test_missing_url_names_the_parameter(api: Client, tenant: Tenant, query: str) -> None:
    status, code, message = await error_of(await api.get(f"/v1/images{query}", headers=tenant.headers))
    assert (status, code) == (400, "invalid-parameter")
    assert message.startswith("url is required")


async def test_download_needs_an_api_key(api: Client) -> None:
    assert (await error_of(await api.get("/v1/images?url=http://e.example/")))[:2] == (401, "unauthorized")


@LOCAL
async def test_head_downloads_nothing(api: Client, tenant: Tenant, serve: Serve, settings: Settings) -> None:
    requests = []

    async def accept_one(request: web.Request) -> web.Response:
        requests.append(request)
        return await picture(request)

    url = str(await serve(accept_one))
    response = await api.head("/v1/images", params={"url": url}, headers=tenant.headers)
    assert response.status == 405
    assert (requests, stored_files(settings)) == ([], [])


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_origin_sees_nothing_of_the_client(api: Client, tenant: Tenant, serve: Serve) -> None:
    heard: list[web.Request] = []

    async def listen(request: web.Request) -> web.Response:
        heard.append(request)
        response = (
            web.Response(status=302, headers={"Location": "/again"}) if len(heard) == 1 else await picture(request)
        )
        response.set_cookie("tracker", "1")
        return response

    origin = await serve(listen)
    secrets = {
        "Authorization": f"Bearer {tenant.key}",
        "X-Api-Key": tenant.key,
        "Cookie": "a=b",
        "Referer": "http://me/",
    }
    response = await api.get("/v1/images", params={"url": str(origin), "key": tenant.key}, headers=secrets)
    assert response.status == 200
    assert [request.path_qs for request in heard] == ["/", "/again"]
    for request in heard:
        assert set(request.headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}
        assert request.headers["User-Agent"].startswith("Daguerre/")
        assert tenant.key not in str(request.headers)


@LOCAL
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(("redirects", "status"), [(5, 200), (6, 422)])
async def test_at_most_five_redirects_are_followed(
    api: Client, tenant: Tenant, serve: Serve, redirects: int, status: int
) -> None:
    async def pass_on(request: web.Request) -> web.Response:
        remaining = int(request.query["left"])
        if remaining == 0:
            return await picture(request)
        return web.Response(status=301 if remaining % 2 else 307, headers={"Location": f"/?left={remaining - 1}"})

    origin = await serve(pass_on)
    assert (await get(api, tenant, origin % {"left": redirects})).status == status


@LOCAL
@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.com/", "javascript:1", "http://", "http:///x"])
async def test_redirect_to_another_scheme_is_refused(api: Client, tenant: Tenant, serve: Serve, target: str) -> None:
    async def pass_on(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": target})

    assert await refusal(api, tenant, await serve(pass_on)) == (422, "origin-refused")


@LOCAL
@pytest.mark.parametrize("userinfo", ["user:secret@", "user@"])
@pytest.mark.parametrize("hops", [1, 2])
async def test_redirect_with_credentials_is_refused(
    api: Client, tenant: Tenant, serve: Serve, userinfo: str, hops: int
) -> None:
    heard = []

    async def pass_on(request: web.Request) -> web.Response:
        heard.append(request.headers.get("Authorization"))
        holder = userinfo if len(heard) == hops else ""
        return web.Response(status=302, headers={"Location": f"http://{holder}{request.host}/again"})

    status, code, message = await error_of(await get(api, tenant, await serve(pass_on)))
    assert (status, code) == (422, "origin-refused")
    assert "user name or a password" in message
    assert "secret" not in message
    assert heard == [None] * hops


@LOCAL
@pytest.mark.parametrize(
    ("status", "code"),
    [
        *[(404, "origin-not-found"), (410, "origin-not-found"), (401, "origin-refused"), (403, "origin-refused")],
        *[(500, "origin-refused"), (204, "origin-refused"), (206, "origin-refused"), (304, "origin-refused")],
    ],
)
async def test_error_contains_the_status_of_the_origin(
    api: Client, tenant: Tenant, serve: Serve, settings: Settings, status: int, code: str
) -> None:
    async def fail(_: web.Request) -> web.Response:
        return web.Response(status=status)

    answer, actual_code, message = await error_of(await get(api, tenant, await serve(fail)))
    assert (answer, actual_code) == (422, code)
    assert code == "origin-not-found" or str(status) in message
    assert stored_files(settings) == []


@LOCAL
@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbut not so many", 422, "origin-refused"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 422, "origin-refused"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 422, "origin-refused"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", 422, "origin-refused"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 422, "origin-refused"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 422, "origin-refused"),
        (b"", 422, "origin-refused"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 415, "not-an-image"),
    ],
)
async def test_origin_that_disconnects_is_refused(
    api: Client, tenant: Tenant, settings: Settings, answer: bytes, status: int, code: str
) -> None:
    async with raw_origin(answer) as url:
        assert await refusal(api, tenant, url) == (status, code)
    assert stored_files(settings) == []


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_url_without_a_picture_is_refused(
    api: Client, tenant: Tenant, serve: Serve, settings: Settings, connection: Any
) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><p>No picture here", content_type="text/html")

    assert await refusal(api, tenant, await serve(page)) == (415, "not-an-image")
    await until(lambda: stored_files(settings) == [])  # the worker may still remove it
    assert await connection.fetchval("select count(*) from images") == 0


@pytest.mark.settings(fetch_allow="127.0.0.1", max_upload=10_000)
async def test_declared_length_over_the_limit_is_refused(api: Client, tenant: Tenant) -> None:
    async with raw_origin(b"HTTP/1.1 200 OK\r\nContent-Length: 10001\r\n\r\n", then_close=False) as url:
        assert await refusal(api, tenant, url) == (413, "upload-too-large")


@pytest.mark.settings(fetch_allow="127.0.0.1", max_upload=200_000)
@pytest.mark.parametrize("compressed", [None, "gzip", "x-gzip"])
async def test_body_over_the_limit_is_aborted(
    api: Client, tenant: Tenant, serve: Serve, settings: Settings, compressed: str | None
) -> None:
    async def flood(request: web.Request) -> web.StreamResponse:
        if compressed:
            return web.Response(body=gzip.compress(bytes(50_000_000)), headers={"Content-Encoding": compressed})
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(10_000):
            await response.write(bytes(10_000))
        return response

    assert await refusal(api, tenant, await serve(flood)) == (413, "upload-too-large")
    assert stored_files(settings) == []


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_compressed_body_is_stored_decoded(api: Client, tenant: Tenant, serve: Serve, settings: Settings) -> None:
    async def compress(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(jpeg()), headers={"Content-Encoding": "gzip"})

    assert (await get(api, tenant, await serve(compress))).status == 200
    [file] = stored_files(settings)
    assert file.read_bytes() == jpeg()


@LOCAL
async def test_picture_from_a_url_counts_to_the_quota(api: Client, new_tenant: NewTenant, serve: Serve) -> None:
    tenant = await new_tenant(max_bytes=len(jpeg()) - 1)
    assert await refusal(api, tenant, await serve(picture)) == (403, "quota-exceeded")


@pytest.mark.settings(fetch_allow="127.0.0.1", wait_s=0)
async def test_download_with_a_slow_worker_is_a_202(api: Client, tenant: Tenant, serve: Serve) -> None:
    response = await get(api, tenant, await serve(picture), tags="a")
    assert (response.status, response.headers["Cache-Control"]) == (202, "no-store")
    assert (await response.json())["response"]["status"] == "processing"


@pytest.mark.usefixtures("worker")
@pytest.mark.settings(fetch_allow="127.0.0.1", downloads_in_flight=2, uploads_in_flight=1)
async def test_slow_origins_use_no_upload_slot(api: Client, tenant: Tenant, serve: Serve) -> None:
    go_on, waiting = asyncio.Event(), asyncio.Semaphore(0)

    async def dawdle(request: web.Request) -> web.Response:
        waiting.release()
        await go_on.wait()
        return await picture(request)

    origin = await serve(dawdle)
    under_way = [asyncio.create_task(get(api, tenant, origin)) for _ in range(2)]
    for _ in under_way:
        await waiting.acquire()
    response = await get(api, tenant, origin)
    assert (await error_of(response))[:2] == (503, "busy")
    assert response.headers["Retry-After"] == "1"
    upload = await api.post("/v1/images", data=jpeg(), headers=tenant.headers | {"Content-Type": "image/jpeg"})
    assert upload.status == 200
    go_on.set()
    assert [(await task).status for task in under_way] == [200, 200]


@LOCAL
async def test_client_disconnect_ends_the_download(
    api: Client, tenant: Tenant, serve: Serve, settings: Settings, connection: Any
) -> None:
    began, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(jpeg()[:500])
        began.set()
        await go_on.wait()
        try:
            for _ in range(100):
                await response.write(jpeg())
                await asyncio.sleep(0.02)
        finally:
            ended.set()
        return response

    asking = asyncio.create_task(get(api, tenant, await serve(drip)))
    await began.wait()
    asking.cancel()
    await asyncio.wait([asking])
    go_on.set()
    await asyncio.wait_for(ended.wait(), 1.5)
    for _ in range(50):
        if not stored_files(settings):
            break
        await asyncio.sleep(0.02)
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from images") == 0


@pytest.mark.settings(fetch_allow="127.0.0.1", downloads_in_flight=1, wait_s=0)
async def test_client_disconnect_releases_the_slot(port: int, tenant: Tenant, serve: Serve) -> None:
    request_arrived = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        request_arrived.set()
        await asyncio.sleep(5)
        return web.Response()

    silent, origin = await serve(hang), await serve(picture)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /v1/images?key={tenant.key}&url={silent} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await request_arrived.wait()
    writer.close()
    address = f"http://127.0.0.1:{port}/v1/images"
    async with asyncio.timeout(2), ClientSession() as session:
        while (await session.get(address, params={"key": tenant.key, "url": str(origin)})).status != 202:
            await asyncio.sleep(0.1)


@LOCAL
async def test_reason_of_a_failed_download_is_logged(
    api: Client, tenant: Tenant, serve: Serve, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ServiceError("database-unavailable") from OSError("the cable is out")

    monkeypatch.setattr(Ingest, "store", fail)
    assert await refusal(api, tenant, await serve(picture)) == (503, "database-unavailable")
    out, err = capfd.readouterr()
    assert "the cable is out" in out + err


async def test_log_contains_nothing_of_the_url(api: Client, tenant: Tenant, capsys: pytest.CaptureFixture[str]) -> None:
    for url in (
        "http://user-secret.invalid/path-secret?token=query-secret",
        "http://a..b/path-secret?query-secret",
        "http://user:p\u2105secret@example.com/",
    ):
        await refusal(api, tenant, url)
    printed = capsys.readouterr()
    assert "OriginFailure" in printed.out + printed.err
    assert "secret" not in printed.out + printed.err
