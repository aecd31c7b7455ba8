"""Pictures from URLs: what is stored, what an origin may do wrong, and where no request may go."""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from aiohttp import ClientSession, web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer
from yarl import URL

from service.addresses import AllowedAddresses
from service.config.settings import Settings
from service.downloads.connections import GuardedResolver
from service.downloads.decoding import DecodingError, decode
from service.downloads.origins import Origins, OriginTimeouts, parse_url
from service.errors import ServiceError
from service.storage.local.originals import LocalOriginals
from service.uploads import receiving
from service.uploads.ingest import Ingest
from service.uploads.receiving import UploadLimits
from tests.conftest import Client, NewTenant, Tenant
from tests.integration.api.test_refusals import error_of
from tests.support.samples import jpeg, stored_files

LOCAL = pytest.mark.settings(fetch_allow="127.0.0.1")
QUICK = OriginTimeouts(connect_s=0.3, read_s=0.3, total_s=1)

Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[URL]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start an origin with one handler for every path; answers its address."""
    servers = []

    async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> URL:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return server.make_url("/")

    yield start
    for server in servers:
        await server.close()


Say = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(say: Say) -> AsyncIterator[int]:
    """A server on loopback, by its port. Its connections end with the block, which asyncio's own leaves open."""
    connections: set[asyncio.Task[None]] = set()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await say(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(serve_one(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
    for connection in connections:
        connection.cancel()
    await asyncio.gather(*connections, return_exceptions=True)


@asynccontextmanager
async def raw_origin(answer: bytes, *, then_close: bool = True) -> AsyncIterator[str]:
    """An origin that says just this, and then hangs up or says nothing more."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if not then_close:
            await reader.read()

    async with listening(say) as port:
        yield f"http://127.0.0.1:{port}/picture.jpg"


async def picture(_: web.Request) -> web.Response:
    return web.Response(body=jpeg(), content_type="image/jpeg")


async def get(api: Client, tenant: Tenant, url: object, **parameters: str) -> Any:
    return await api.get("/v1/images", params={"url": str(url)} | parameters, headers=tenant.headers)


async def refusal(api: Client, tenant: Tenant, url: object) -> tuple[int, str]:
    status, code, _ = await error_of(await get(api, tenant, url))
    return status, code


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_the_picture_at_a_url_is_stored_like_an_upload(
    api: Client, tenant: Tenant, serve: Serve, settings: Settings
) -> None:
    origin = await serve(picture)
    response = await get(api, tenant, origin / "a.png", tags="lake, evening", verbose="true", with_exif="true")
    assert response.status == 200
    assert response.headers["Cache-Control"] == "no-store"
    shown = (await response.json())["response"]
    assert list(shown)[:5] == ["id", "width", "height", "filesize", "tags"]
    assert (shown["width"], shown["height"], shown["filesize"]) == (64, 48, len(jpeg()))
    assert (shown["tags"], shown["format"], shown["exif"]) == (["lake", "evening"], "jpeg", {})
    [file] = stored_files(settings)
    assert file.read_bytes() == jpeg()


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_a_url_may_be_posted_as_json(api: Client, tenant: Tenant, serve: Serve) -> None:
    origin = await serve(picture)
    body = {"url": str(origin), "tags": ["lake", " evening "]}
    response = await api.post("/v1/images?verbose", json=body, headers=tenant.headers)
    shown = (await response.json())["response"]
    assert (response.status, shown["tags"], shown["format"]) == (200, ["lake", "evening"], "jpeg")


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
async def test_json_that_is_not_a_url_with_tags_is_refused(
    api: Client, tenant: Tenant, body: str, code: str, named: str
) -> None:
    headers = tenant.headers | {"Content-Type": "application/json"}
    status, given, message = await error_of(await api.post("/v1/images", data=body, headers=headers))
    assert (status, given) == (400, code)
    assert named in message


async def test_tags_are_not_taken_from_two_places(api: Client, tenant: Tenant) -> None:
    body = {"url": "http://e.example/", "tags": ["a"]}
    response = await api.post("/v1/images?tags=b", json=body, headers=tenant.headers)
    assert (await error_of(response))[:2] == (400, "invalid-parameter")


@pytest.mark.parametrize("query", ["", "?url=", "?tags=a", "?url"])
async def test_a_get_without_url_is_refused_by_name(api: Client, tenant: Tenant, query: str) -> None:
    status, code, message = await error_of(await api.get(f"/v1/images{query}", headers=tenant.headers))
    assert (status, code) == (400, "invalid-parameter")
    assert message.startswith("url is required")


async def test_a_url_needs_a_key(api: Client) -> None:
    assert (await error_of(await api.get("/v1/images?url=http://e.example/")))[:2] == (401, "unauthorized")


@LOCAL
async def test_head_is_no_get(api: Client, tenant: Tenant, serve: Serve, settings: Settings) -> None:
    asked = []

    async def note(request: web.Request) -> web.Response:
        asked.append(request)
        return await picture(request)

    url = str(await serve(note))
    response = await api.head("/v1/images", params={"url": url}, headers=tenant.headers)
    assert response.status == 405
    assert (asked, stored_files(settings)) == ([], [])


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_nothing_of_the_client_reaches_the_origin(api: Client, tenant: Tenant, serve: Serve) -> None:
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
        left = int(request.query["left"])
        if left == 0:
            return await picture(request)
        return web.Response(status=301 if left % 2 else 307, headers={"Location": f"/?left={left - 1}"})

    origin = await serve(pass_on)
    assert (await get(api, tenant, origin % {"left": redirects})).status == status


@LOCAL
@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.com/", "javascript:1", "http://", "http:///x"])
async def test_a_redirect_to_what_is_no_http_is_refused(api: Client, tenant: Tenant, serve: Serve, target: str) -> None:
    async def pass_on(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": target})

    assert await refusal(api, tenant, await serve(pass_on)) == (422, "origin-refused")


@LOCAL
@pytest.mark.parametrize("userinfo", ["user:secret@", "user@"])
@pytest.mark.parametrize("hops", [1, 2])
async def test_a_redirect_to_a_url_with_credentials_is_refused_and_none_are_sent(
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
async def test_the_status_of_the_origin_is_told(
    api: Client, tenant: Tenant, serve: Serve, settings: Settings, status: int, code: str
) -> None:
    async def fail(_: web.Request) -> web.Response:
        return web.Response(status=status)

    answer, given, message = await error_of(await get(api, tenant, await serve(fail)))
    assert (answer, given) == (422, code)
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
async def test_an_origin_that_breaks_off_is_refused(
    api: Client, tenant: Tenant, settings: Settings, answer: bytes, status: int, code: str
) -> None:
    async with raw_origin(answer) as url:
        assert await refusal(api, tenant, url) == (status, code)
    assert stored_files(settings) == []


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_what_is_no_picture_is_refused_and_not_kept(
    api: Client, tenant: Tenant, serve: Serve, settings: Settings, connection: Any
) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><p>No picture here", content_type="text/html")

    assert await refusal(api, tenant, await serve(page)) == (415, "not-an-image")
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from images") == 0


@pytest.mark.settings(fetch_allow="127.0.0.1", max_upload=10_000)
async def test_a_declared_length_over_the_limit_is_refused_before_the_body(api: Client, tenant: Tenant) -> None:
    async with raw_origin(b"HTTP/1.1 200 OK\r\nContent-Length: 10001\r\n\r\n", then_close=False) as url:
        assert await refusal(api, tenant, url) == (413, "upload-too-large")


@pytest.mark.settings(fetch_allow="127.0.0.1", max_upload=200_000)
@pytest.mark.parametrize("compressed", [None, "gzip", "x-gzip"])
async def test_a_body_over_the_limit_is_cut_off(
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
async def test_what_an_origin_compresses_is_stored_as_the_picture(
    api: Client, tenant: Tenant, serve: Serve, settings: Settings
) -> None:
    async def compress(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(jpeg()), headers={"Content-Encoding": "gzip"})

    assert (await get(api, tenant, await serve(compress))).status == 200
    [file] = stored_files(settings)
    assert file.read_bytes() == jpeg()


@LOCAL
async def test_a_picture_from_a_url_is_held_to_the_quota(api: Client, new_tenant: NewTenant, serve: Serve) -> None:
    tenant = await new_tenant(max_bytes=len(jpeg()) - 1)
    assert await refusal(api, tenant, await serve(picture)) == (403, "quota-exceeded")


@pytest.mark.settings(fetch_allow="127.0.0.1", wait_s=0)
async def test_a_picture_whose_worker_is_slow_is_answered_202(api: Client, tenant: Tenant, serve: Serve) -> None:
    response = await get(api, tenant, await serve(picture), tags="a")
    assert (response.status, response.headers["Cache-Control"]) == (202, "no-store")
    assert (await response.json())["response"]["status"] == "processing"


@pytest.mark.usefixtures("worker")
@pytest.mark.settings(fetch_allow="127.0.0.1", downloads_in_flight=2, uploads_in_flight=1)
async def test_slow_origins_take_no_place_of_an_upload(api: Client, tenant: Tenant, serve: Serve) -> None:
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
async def test_a_client_that_goes_away_ends_its_download(
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
async def test_a_client_that_goes_away_gives_its_place_back_though_the_origin_is_silent(
    port: int, tenant: Tenant, serve: Serve
) -> None:
    asked = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        asked.set()
        await asyncio.sleep(5)
        return web.Response()

    silent, origin = await serve(hang), await serve(picture)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /v1/images?key={tenant.key}&url={silent} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await asked.wait()
    writer.close()
    address = f"http://127.0.0.1:{port}/v1/images"
    async with asyncio.timeout(2), ClientSession() as session:
        while (await session.get(address, params={"key": tenant.key, "url": str(origin)})).status != 202:
            await asyncio.sleep(0.1)


@LOCAL
async def test_why_a_picture_from_a_url_was_not_stored_is_logged(
    api: Client, tenant: Tenant, serve: Serve, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ServiceError("database-unavailable") from OSError("the cable is out")

    monkeypatch.setattr(Ingest, "store", fail)
    assert await refusal(api, tenant, await serve(picture)) == (503, "database-unavailable")
    out, err = capfd.readouterr()
    assert "the cable is out" in out + err


# Where no request may go


@pytest.fixture
async def trap() -> AsyncIterator[tuple[int, list[object]]]:
    """A listener on every loopback address, and who has come."""
    came: list[object] = []

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(note, None, 0, family=socket.AF_INET)
    async with server:
        yield server.sockets[0].getsockname()[1], came


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "127.0.1", "0", "0.0.0.0", "2130706433"),
        *(
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "017700000001",
            "127.0.0.1.",
            "①②⑦.0.0.1",
            "127。0。0。1",
            "127.127.127.127",
        ),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "[::ffff:0:127.0.0.1]"),
        *(
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[::1%25lo]",
            "[fe80::1%25lo]",
            "%31%32%37.0.0.1",
            "127.0.0.1%2eexample",
        ),
    ],
)
async def test_no_spelling_of_a_refused_address_is_connected_to(
    api: Client, tenant: Tenant, trap: tuple[int, list[object]], host: str
) -> None:
    port, came = trap
    status, code = await refusal(api, tenant, f"http://{host}:{port}/a.jpg")
    assert (status, code) in {(400, "url-not-allowed"), (400, "invalid-url"), (422, "origin-not-found")}
    assert came == []


async def test_the_answer_tells_nothing_of_the_refused_address(api: Client, tenant: Tenant) -> None:
    status, code, message = await error_of(await get(api, tenant, "http://localhost:1/secret?token=1"))
    assert (status, code) == (400, "url-not-allowed")
    assert not any(word in message for word in ("127", "::1", "localhost", "secret", "token"))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://e.example/",
            "file:///etc/passwd",
            "data:image/png;base64,AAAA",
            "e.example/a.jpg",
            "//e.example/a",
            "http:",
        ),
        *(
            "http:///a.jpg",
            "http://e.example:0/",
            "http://e.example:99999/",
            "http://user@e.example/",
            "http://:pw@e.example/",
        ),
        *(
            "http://e.example/\x00",
            "http://e.ex\nample/",
            "gopher://e.example/",
            "http://[::1/",
            "http://e.example/" + "a" * 8000,
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ServiceError, match="invalid-url"):
        parse_url(url)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("/a%2fb%7Ec;d?sig=a%2bb+c%3D&x='*'&x=%20", "/a%2fb%7Ec;d?sig=a%2bb+c%3D&x='*'&x=%20"),
        ("/a b/é?q=ü|", "/a%20b/%C3%A9?q=%C3%BC|"),
        ("/a%2fb|{c}?X=%7e%27%26%40%2F[1]^`\\&e=%zz%", "/a%2fb|{c}?X=%7e%27%26%40%2F[1]^`\\&e=%zz%"),
        ('/"<\u200b>?"<>', "/%22%3C%E2%80%8B%3E?%22%3C%3E"),
        ("/a/../b//./%2e%2e/c?", "/a/../b//./%2e%2e/c?"),
        ("?a=/../b", "/?a=/../b"),
        ("/caf\udce9", "/caf%E9"),
        ("", "/"),
    ],
)
async def test_url_is_sent_byte_for_byte(given: str, sent: str) -> None:
    assert await targets_of(given, [PICTURE]) == [sent]


@pytest.mark.parametrize(
    ("location", "sent"),
    [
        *((target, target) for target in ("/x%27y%26%40%2F%7E?sig=%2b%2F%3d&a=[1]", "/a|{b}?c=%27|{d}", "/?", "/%e9%")),
        ("../x?y=%27", "/a/x?y=%27"),
        ("?z=%7e", "/a/b%2fc/d?z=%7e"),
        ("e/./f/../%2e%2e", "/a/b%2fc/e/%2e%2e"),
        ("/a b/é#part", "/a%20b/%C3%A9"),
        (b"/caf\xe9?\xc3\xa9", "/caf%E9?%C3%A9"),
        ("  /blank\t", "/blank"),
        ("//{host}/%7e", "/%7e"),
        ("HTTP://{host}/%7e?{x}", "/%7e?{x}"),
    ],
)
async def test_redirect_is_followed_byte_for_byte(location: str | bytes, sent: str) -> None:
    raw = location if isinstance(location, bytes) else location.encode()
    redirect = b"HTTP/1.1 302 Found\r\nLocation: " + raw + b"\r\nContent-Length: 0\r\n\r\n"
    assert await targets_of("/a/b%2fc/d?q=%27", [redirect, PICTURE]) == ["/a/b%2fc/d?q=%27", sent]


PICTURE = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"


async def targets_of(target: str, answers: list[bytes]) -> list[str]:
    """The targets of the request lines that an origin with these answers reads. `{host}` stands for its own address."""
    lines: list[bytes] = []

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
        writer.write(answers[len(lines) - 1].replace(b"{host}", host.encode()))

    async with listening(say) as port:
        host = f"127.0.0.1:{port}"
        async with (
            Origins.connect(AllowedAddresses.parse("127.0.0.1"), lookups=1) as origins,
            origins.get(parse_url(f"http://{host}{target}#part")),
        ):
            pass
    return [line.decode("ascii").removeprefix("GET ").removesuffix(" HTTP/1.1") for line in lines]


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_url_parameter_is_decoded_once(api: Client, tenant: Tenant, serve: Serve) -> None:
    heard = []

    async def listen(request: web.Request) -> web.Response:
        heard.append(request.raw_path)
        return await picture(request)

    origin = await serve(listen)
    target = "a%27b%252F|{c}?sig=%2b+%7E&x=[1]"
    for query in (quote(f"{origin}{target}", safe=""), quote_plus(f"{origin}{target}")):
        address = URL(f"/v1/images?url={query}", encoded=True)
        assert (await api.get(address, headers=tenant.headers)).status == 200
    address = URL(f"/v1/images?url={quote(str(origin))}caf%E9", encoded=True)
    assert (await api.get(address, headers=tenant.headers)).status == 200
    response = await api.post("/v1/images", json={"url": f"{origin}{target}"}, headers=tenant.headers)
    assert response.status == 200
    assert heard == [f"/{target}", f"/{target}", "/caf%E9", f"/{target}"]


async def test_host_is_sent_as_idna(serve: Serve) -> None:
    heard = []

    async def listen(request: web.Request) -> web.Response:
        heard.append(request.headers["Host"])
        return await picture(request)

    port = (await serve(listen)).port
    resolver = Liar("127.0.0.1")
    async with (
        Origins.connect(AllowedAddresses.parse("127.0.0.1"), lookups=1, resolver=resolver) as origins,
        origins.get(parse_url(f"http://B\u00fccher.example:{port}/%27")),
    ):
        assert heard == [f"xn--bcher-kva.example:{port}"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_share_one_timeout(settings: Settings, status: int) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.25)
        writer.write(f"HTTP/1.1 {status} Moved\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n".encode())

    async with listening(say) as port:
        with pytest.raises(ServiceError, match="origin-too-slow"):
            await fetch(f"http://127.0.0.1:{port}/", settings)


@LOCAL
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("size", [8_000, 20_000, 65_000])
async def test_origin_may_send_long_headers(api: Client, tenant: Tenant, size: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Security-Policy: " + b"x" * size + b"\r\n"
    async with raw_origin(head + b"Content-Length: %d\r\n\r\n" % len(jpeg()) + jpeg()) as url:
        assert (await get(api, tenant, url)).status == 200


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_interim_answers_are_skipped(api: Client, tenant: Tenant) -> None:
    before = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n" * 3
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(jpeg())
    async with raw_origin(before + head + jpeg()) as url:
        assert (await get(api, tenant, url)).status == 200


async def test_endless_interim_answers_are_refused(settings: Settings) -> None:
    """Each arrives at once, so no time limit ended them before the last one."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 103 A\r\n\r\n" * 1000)
                await writer.drain()

    async with listening(say) as port:
        began = time.process_time()
        with pytest.raises(ServiceError, match="origin-refused"):
            await fetch(f"http://127.0.0.1:{port}/", settings, OriginTimeouts(total_s=5))
    assert time.process_time() - began < 1


def deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


@LOCAL
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("coding", "code"),
    [
        *((name, gzip.compress) for name in ("x-gzip", "X-GZip", "GZIP", "identity, gzip", "aws-chunked,gzip")),
        ("gzip", lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:])),
        ("gzip", lambda data: gzip.compress(data) + b"\0\0trailer"),
        ("deflate", zlib.compress),
        ("deflate", deflate),
        ("deflate, x-gzip", lambda data: gzip.compress(zlib.compress(data))),
        *((name, bytes) for name in ("identity", "aws-chunked", "UTF-8", "none")),
    ],
)
async def test_coded_body_is_stored_decoded(
    api: Client, tenant: Tenant, settings: Settings, coding: str, code: Callable[[bytes], bytes]
) -> None:
    body = code(jpeg())
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n\r\n"
    async with raw_origin(head.encode() + body) as url:
        assert (await get(api, tenant, url)).status == 200
    [file] = stored_files(settings)
    assert file.read_bytes() == jpeg()


def _gzip(data: bytes) -> bytes:
    """The same bytes in every process: parameters name tests."""
    return gzip.compress(data, mtime=0)


@LOCAL
@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("x-gzip", b"hello"),
        ("x-gzip", _gzip(bytes(1000))[:-3]),
        ("gzip", _gzip(b"") * 200),
        ("gzip, gzip, gzip", _gzip(_gzip(_gzip(bytes(1000))))),
        ("deflate", b"\xff" * 100),
        ("br", b"hello"),
        ("zstd", b"hello"),
    ],
)
async def test_body_that_cannot_be_decoded_is_refused(
    api: Client, tenant: Tenant, settings: Settings, coding: str, body: bytes
) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n\r\n"
    async with raw_origin(head.encode() + body) as url:
        assert await refusal(api, tenant, url) == (422, "origin-refused")
    assert stored_files(settings) == []


async def test_empty_blocks_of_two_codings_are_refused() -> None:
    """They cost much time, and yield no byte that a limit would count."""
    inner = zlib.compressobj(wbits=31)
    empty_blocks = inner.compress(b"") + b"\0\0\0\xff\xff" * 1_000_000
    outer = gzip.compress(empty_blocks)
    assert len(outer) < 20_000

    async def send() -> AsyncIterator[bytes]:
        yield outer

    with pytest.raises(DecodingError, match="for nothing"):
        _ = [piece async for piece in decode(send(), ["gzip", "gzip"])]


async def test_incompressible_body_is_decoded() -> None:
    data = random.Random(1).randbytes(4 << 20)
    stored = zlib.compressobj(0, wbits=31)

    async def send() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 1000):  # each flushed by itself, as servers do that stream
            yield stored.compress(data[at : at + 1000]) + stored.flush(zlib.Z_SYNC_FLUSH)
        yield stored.flush()

    assert b"".join([piece async for piece in decode(send(), ["gzip"])]) == data


async def test_decoding_does_not_depend_on_chunks() -> None:
    data = bytes(200_000) + jpeg()
    body = gzip.compress(data[:7]) + gzip.compress(data[7:])
    for size in (1, 7, 1000, len(body)):

        async def cut(size: int = size) -> AsyncIterator[bytes]:
            for at in range(0, len(body), size):
                yield body[at : at + size]

        pieces = [piece async for piece in decode(cut(), ["gzip"])]
        assert b"".join(pieces) == data
        assert max(map(len, pieces)) <= 65_536


async def test_a_redirect_is_checked_like_the_first_url(
    api: Client, tenant: Tenant, serve: Serve, trap: tuple[int, list[object]], settings: Settings
) -> None:
    port, came = trap

    async def pass_on(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"http://127.0.0.1:{port}/"})

    origin = await serve(pass_on)
    async with Origins.connect(AllowedAddresses.parse(f"127.0.0.1:{origin.port}"), lookups=1) as origins:
        with pytest.raises(ServiceError, match="url-not-allowed"):
            async with origins.get(origin):
                pass
    assert came == []


async def test_a_name_with_one_refused_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.215.14", "192.168.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with Origins.connect(AllowedAddresses.parse(""), lookups=1) as origins:
        with pytest.raises(ServiceError, match="url-not-allowed"):
            async with origins.get(URL("http://mixed.example/")):
                pass


class Liar(AbstractResolver):
    """Says what it likes, unchecked, and how often it was asked."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        return [
            ResolveResult(
                hostname=host, host=self.address, port=port, family=family or socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


async def test_the_address_is_checked_again_in_the_moment_of_connecting(trap: tuple[int, list[object]]) -> None:
    port, came = trap
    async with Origins.connect(AllowedAddresses.parse(""), lookups=1, resolver=Liar("127.0.0.1")) as origins:
        with pytest.raises(ServiceError, match="url-not-allowed"):
            async with origins.get(URL(f"http://rebound.example:{port}/")):
                pass
    assert came == []


async def test_a_name_is_resolved_once_for_a_connection(serve: Serve) -> None:
    origin = await serve(picture)
    resolver = Liar("127.0.0.1")
    async with (
        Origins.connect(AllowedAddresses.parse("127.0.0.1"), lookups=1, resolver=resolver) as origins,
        origins.get(URL(f"http://once.example:{origin.port}/")),
    ):
        assert resolver.asked == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", "a..example"])
async def test_a_name_that_is_unknown_is_no_origin(api: Client, tenant: Tenant, host: str) -> None:
    assert await refusal(api, tenant, f"http://{host}/") in {(422, "origin-not-found"), (400, "invalid-url")}


async def test_a_proxy_in_the_environment_is_ignored(
    serve: Serve, trap: tuple[int, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, came = trap
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    origin = await serve(picture)
    async with (
        Origins.connect(AllowedAddresses.parse(f"127.0.0.1:{origin.port}"), lookups=1) as origins,
        origins.get(origin) as answer,
    ):
        assert answer.length == len(jpeg())
    assert came == []


# Slow origins, with short time-outs


async def test_an_origin_below_the_least_pace_is_too_slow(serve: Serve, settings: Settings) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(200):
            await response.write(b"x" * 10)
            await asyncio.sleep(0.05)
        return response

    timeouts = OriginTimeouts(connect_s=0.3, read_s=0.3, total_s=10)
    url = str(await serve(drip))
    began = time.monotonic()
    with pytest.raises(ServiceError, match="origin-too-slow"):
        await fetch(url, settings, timeouts)
    assert 0.2 < time.monotonic() - began < 2
    assert stored_files(settings) == []


async def fetch(url: str, settings: Settings, timeouts: OriginTimeouts = QUICK) -> receiving.Upload:
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    limits = UploadLimits(1 << 20, 10, 10)
    async with (
        Origins.connect(AllowedAddresses.parse("127.0.0.1"), lookups=1, timeouts=timeouts) as origins,
        origins.get(URL(url)) as origin,
    ):
        return await receiving.receive(origin.chunks(), storage, limits)


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nabc"],
)
async def test_an_origin_that_falls_silent_is_too_slow(settings: Settings, said: bytes) -> None:
    async with raw_origin(said, then_close=False) as url:
        with pytest.raises(ServiceError, match="origin-too-slow"):
            await asyncio.wait_for(fetch(url, settings), 5)
    assert stored_files(settings) == []


async def test_an_origin_that_drips_for_too_long_is_too_slow(serve: Serve, settings: Settings) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(200):
            await response.write(b"x")
            await asyncio.sleep(0.05)
        return response

    with pytest.raises(ServiceError, match="origin-too-slow"):
        await asyncio.wait_for(fetch(str(await serve(drip)), settings), 5)
    assert stored_files(settings) == []


async def test_a_connection_that_is_not_taken_is_too_slow(settings: Settings) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        host, port = listener.getsockname()
        fill = []
        for _ in range(4):  # until the backlog is full and connections hang
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((host, port))
            fill.append(filler)
        with pytest.raises(ServiceError, match="origin-too-slow"):
            await asyncio.wait_for(fetch(f"http://{host}:{port}/", settings), 5)
        for filler in fill:
            filler.close()


async def test_a_refused_connection_is_the_origins_failure(settings: Settings) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ServiceError, match="origin-refused"):
            await fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/", settings)


async def test_a_slow_name_server_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()

    async def resolve(*_: object, **__: object) -> list[ResolveResult]:
        await go_on.wait()
        return []

    monkeypatch.setattr(GuardedResolver, "resolve", resolve)
    async with Origins.connect(AllowedAddresses.parse(""), lookups=1, timeouts=QUICK) as origins:
        with pytest.raises(ServiceError, match="origin-too-slow"):
            async with origins.get(URL("http://slow.example/")):
                pass


@pytest.mark.usefixtures("worker")
@pytest.mark.settings(fetch_allow="127.0.0.0/8", downloads_in_flight=2)
async def test_names_that_hang_make_the_next_one_busy_and_not_too_slow(
    api: Client, tenant: Tenant, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, go_on = socket.getaddrinfo, threading.Event()

    def hang(host: str, *rest: Any) -> Any:
        if host.endswith(".slow.example"):
            go_on.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "slow")
        return look_up("127.0.0.1", *rest)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    quick = f"http://quick.example:{(await serve(picture)).port}/"
    try:
        given_up = await asyncio.gather(*(refusal(api, tenant, f"http://{n}.slow.example/") for n in range(2)))
        assert given_up == [(422, "origin-too-slow")] * 2
        response = await get(api, tenant, quick)
        assert (await error_of(response))[:2] == (503, "busy")
        assert response.headers["Retry-After"] == "1"
    finally:
        go_on.set()
    async with asyncio.timeout(5):
        while (await get(api, tenant, quick)).status == 503:
            await asyncio.sleep(0.01)
    assert (await get(api, tenant, quick)).status == 200


async def test_names_that_hang_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download gives its place back after 5 seconds, and its look-up goes on."""
    look_up, go_on = socket.getaddrinfo, threading.Event()

    def hang(host: str, *rest: Any) -> Any:
        if host == "slow.example":
            go_on.wait(30)
        return look_up("127.0.0.1", *rest)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    allowed = AllowedAddresses.parse("127.0.0.1")
    slow, quick = URL("http://slow.example:1/"), URL("http://quick.example:1/")
    async with Origins.connect(allowed, lookups=8, timeouts=QUICK) as origins:
        try:
            codes = await asyncio.gather(*(fail(origins, slow, "loud") for _ in range(8)))
            assert codes == ["origin-too-slow"] * 6 + ["busy"] * 2
            assert await fail(origins, quick, "loud") == "busy"
            assert await fail(origins, quick, "quiet") == "origin-refused"  # nobody listens there
        finally:
            go_on.set()


async def fail(origins: Origins, url: URL, account: str) -> str:
    with pytest.raises(ServiceError) as failure:
        async with origins.get(url, account):
            pass
    return failure.value.code


async def test_a_look_up_is_over_when_its_answer_is_there() -> None:
    resolver = GuardedResolver(AllowedAddresses.parse("127.0.0.1"), lookups=1)
    for _ in range(50):
        await resolver.resolve("127.0.0.1", 80)
        with pytest.raises(OSError, match="not a host name"):
            await resolver.resolve("a..example", 80)


async def test_a_system_that_gives_no_more_threads_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolver = GuardedResolver(AllowedAddresses.parse("127.0.0.1"), lookups=1)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ServiceError, match="busy"):
            await resolver.resolve("127.0.0.1", 80)
    assert await resolver.resolve("127.0.0.1", 80)


async def test_a_process_ends_while_a_look_up_hangs() -> None:
    script = (
        "import asyncio, socket, time\n"
        "from service.addresses import AllowedAddresses\n"
        "from service.downloads.connections import GuardedResolver\n"
        "socket.getaddrinfo = lambda *_: time.sleep(50)\n"
        "resolver = GuardedResolver(AllowedAddresses.parse(''), 1)\n"
        "try:\n    asyncio.run(asyncio.wait_for(resolver.resolve('slow.example', 80), 0.1))\n"
        "except TimeoutError:\n    print('given up')"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(20):
        assert (await process.communicate())[0] == b"given up\n"
    assert process.returncode == 0


async def test_the_log_holds_nothing_of_the_url(
    api: Client, tenant: Tenant, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in (
        "http://user-secret.invalid/path-secret?token=query-secret",
        "http://a..b/path-secret?query-secret",
        "http://user:p\u2105secret@example.com/",
    ):
        await refusal(api, tenant, url)
    printed = capsys.readouterr()
    assert "OriginFailure" in printed.out + printed.err
    assert "secret" not in printed.out + printed.err
