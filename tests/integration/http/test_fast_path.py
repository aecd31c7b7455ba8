"""The fast path: the same responses as the ordinary path, and the same log lines and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, web

from service.api.app import create_app
from service.config.settings import Settings
from service.http.fast_path import FastPath
from service.http.server import Runner
from service.telemetry.metrics import metrics
from tests.conftest import Tenant
from tests.support import pictures

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("worker")]

# Headers that differ between any two responses.
_VARYING = {"date", "x-request-id"}


@pytest.fixture
async def session(port: int) -> AsyncIterator[ClientSession]:
    async with ClientSession(f"http://127.0.0.1:{port}", headers={"Accept": "image/webp"}) as session:
        yield session


@pytest.fixture
async def image_id(session: ClientSession, tenant: Tenant) -> str:
    async with session.post("/v1/images", data=pictures.encode("png"), headers=tenant.headers) as answer:
        return str((await answer.json())["response"]["id"])


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that took the fast path, in the servers that start after this."""
    paths = []
    respond = FastPath.respond

    def record(self: FastPath, request: Any) -> bytes | None:
        response = respond(self, request)
        if response is not None:
            paths.append(request.raw_path)
        return response

    monkeypatch.setattr(FastPath, "respond", record)
    return paths


@pytest.mark.parametrize("query", ["", "/red-car?width=40"])
async def test_fast_response_equals_the_ordinary_one(
    fast: list[str], session: ClientSession, image_id: str, query: str
) -> None:
    answers = []
    for _ in range(3):
        async with session.get(f"/i/{image_id}{query}") as answer:
            headers = {name.lower(): value for name, value in answer.headers.items() if name.lower() not in _VARYING}
            answers.append((answer.status, headers, await answer.read()))
            assert len(answer.headers["X-Request-Id"]) == 16
            assert answer.headers["Date"].endswith(" GMT")
    assert fast == [f"/i/{image_id}{query}"] * 2
    assert answers[0] == answers[1] == answers[2]


async def test_special_requests_take_the_ordinary_path(fast: list[str], session: ClientSession, image_id: str) -> None:
    path = f"/i/{image_id}"
    async with session.get(path) as answer:
        etag, body = answer.headers["ETag"], await answer.read()
    for headers, status in [
        ({"Range": "bytes=0-3"}, 206),
        ({"If-None-Match": etag}, 304),
        ({"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}, 304),
        ({"Connection": "close"}, 200),
        ({"Expect": "100-continue"}, 200),
        ({"Connection": "Upgrade", "Upgrade": "h2c"}, 200),
    ]:
        async with session.get(path, headers=headers) as answer:
            assert answer.status == status
    async with session.head(path) as answer:
        assert answer.status == 200
    async with session.post(path) as answer:
        assert answer.status == 405
    assert fast == []
    async with session.get(path) as answer:
        assert await answer.read() == body
    assert fast == [path]


async def test_pipelined_requests_are_answered_in_order(fast: list[str], port: int, image_id: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET /i/{image_id} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {{}}\r\n\r\n"
    writer.write("".join(request.format(number) for number in range(5)).encode())
    writer.write(b"GET /healthz HTTP/1.0\r\nHost: x\r\n\r\n")
    responses = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    ids = [line.split()[1] for line in responses.split(b"\r\n") if line.startswith(b"X-Request-Id")]
    assert ids[:5] == [b"0", b"1", b"2", b"3", b"4"]
    assert len(ids) == 6
    assert len(fast) == 4


async def test_client_that_leaves_is_no_error(
    fast: list[str], port: int, session: ClientSession, image_id: str, capfd: Any
) -> None:
    async with session.get(f"/i/{image_id}"):
        pass
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /i/{image_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 50)
        await asyncio.sleep(0.005)
        writer.transport.abort()
    async with session.get(f"/i/{image_id}") as answer:
        assert answer.status == 200
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("route", "name"), [("/i/{id}", ""), ("/i/{id}/{name}", "/red-car")])
async def test_fast_responses_are_counted(
    fast: list[str], session: ClientSession, image_id: str, route: str, name: str
) -> None:
    def count(name: str, **labels: str) -> float:
        values = [
            sample.value
            for family in metrics.describe()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(values)

    labels_of_requests = {"route": route, "status": "200", "method": "GET"}
    before = (
        count("daguerre_http_requests_total", **labels_of_requests),
        count("daguerre_http_request_duration_seconds_count", route=route),
        count("daguerre_http_request_duration_seconds_bucket", route=route, le="10.0"),
        count("daguerre_pictures_total", source="memory"),
    )
    for _ in range(5):
        async with session.get(f"/i/{image_id}{name}") as answer:
            await answer.read()
    assert len(fast) == 4
    expected = (before[0] + 5, before[1] + 5, before[2] + 5, before[3] + 4)
    async with asyncio.timeout(5):
        while (
            count("daguerre_http_requests_total", **labels_of_requests),
            count("daguerre_http_request_duration_seconds_count", route=route),
            count("daguerre_http_request_duration_seconds_bucket", route=route, le="10.0"),
            count("daguerre_pictures_total", source="memory"),
        ) != expected:
            await asyncio.sleep(0.02)


async def test_deleted_image_is_not_served(
    fast: list[str], session: ClientSession, image_id: str, tenant: Tenant
) -> None:
    for _ in range(2):
        async with session.get(f"/i/{image_id}") as answer:
            assert answer.status == 200
    async with session.delete(f"/v1/images/{image_id}", headers=tenant.headers):
        pass
    async with session.get(f"/i/{image_id}") as answer:
        assert answer.status == 404
    assert len(fast) == 1


@pytest.mark.settings(not_found_rate_limit="1/h")
async def test_guessing_address_is_rate_limited(fast: list[str], session: ClientSession, image_id: str) -> None:
    for path, status in [(image_id, 200), (image_id, 200), ("AAAAAAA", 404), ("AAAAAAB", 429), (image_id, 429)]:
        async with session.get(f"/i/{path}") as answer:
            assert answer.status == status
    assert len(fast) == 1


async def test_draining_server_closes_the_connection(fast: list[str], settings: Settings, image_id: str) -> None:
    runner = Runner(create_app(settings), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            while not fast:  # the cache is cleared when the process starts to listen for deletions
                async with session.get(f"/i/{image_id}") as answer:
                    assert "Connection" not in answer.headers
            runner.http_server.state.draining = True
            async with session.get(f"/i/{image_id}") as answer:
                assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert len(fast) == 1
    finally:
        await runner.cleanup()
