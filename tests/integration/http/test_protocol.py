"""The protocol of a connection, over raw sockets: parser errors, drain, stalled clients, keys that must not leak."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import pytest
import uvloop
from aiohttp import web

from service.api.app import create_app
from service.config.settings import Settings
from service.http.protocol import HttpConnection
from service.http.server import Runner
from service.limits import slots as pace
from tests.conftest import Tenant
from tests.support.raw_http import BAD_REQUESTS, exchange
from tests.support.samples import jpeg
from tests.support.slow_client import connect_slow_client


@pytest.mark.parametrize("method", ["get", "Get", "gEt"])
async def test_lower_case_method_is_accepted(port: int, tenant: Tenant, method: str) -> None:
    status, _, body = await exchange(
        port, f"{method} /v1/account?key={tenant.key} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    )
    assert status == 200
    assert json.loads(body)["response"]["num_images"] == 0


async def test_early_lower_case_method_is_accepted(port: int, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    request = f"get /v1/account?key={tenant.key} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    connection_made = HttpConnection.connection_made

    def receive_early(self: HttpConnection, transport: asyncio.BaseTransport) -> None:
        connection_made(self, transport)
        self.data_received(request)  # before the connection's task has begun
        self.data_received(request)  # before the first one is answered

    monkeypatch.setattr(HttpConnection, "connection_made", receive_early)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(5):
        for _ in range(2):
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            await reader.readuntil(b"}}}")
    writer.close()


@pytest.mark.usefixtures("worker")
async def test_body_like_a_method_is_not_changed(port: int, tenant: Tenant) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = jpeg() + b"get me here"
    head = (
        f"post /v1/images?key={tenant.key}&verbose HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    writer.write(head + body[:-11])
    await asyncio.sleep(0.05)
    writer.write(body[-11:])
    async with asyncio.timeout(5):
        response = await reader.readuntil(b"}}")
    writer.close()
    assert hashlib.sha256(body).hexdigest().encode() in response


@pytest.mark.parametrize("case", BAD_REQUESTS)
async def test_parser_errors_have_the_body_and_no_key(
    port: int, tenant: Tenant, case: str, capfd: Any, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    request = BAD_REQUESTS[case].replace(b"%s", tenant.key.encode())
    status, headers, body = await exchange(port, request)
    assert status in (400, 405)
    assert headers["content-type"].startswith("application/json")
    response = json.loads(body)
    assert response["success"] is False
    assert response["error"]["code"] in ("bad-request", "method-not-allowed")
    out, err = capfd.readouterr()
    for text in (body.decode(), out, err, caplog.text):
        assert tenant.key not in text


async def test_unknown_expectation_is_a_417(port: int, tenant: Tenant) -> None:
    for path in ("/v1/images", "/nowhere"):
        status, _, body = await exchange(
            port, f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: a-miracle\r\nContent-Length: 0\r\n\r\n".encode()
        )
        assert status == 417
        assert json.loads(body)["error"]["code"] == "expectation-failed"


async def test_key_in_query_is_not_logged(port: int, tenant: Tenant, capfd: Any, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    await exchange(port, f"GET /v1/account?key={tenant.key} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await exchange(port, f"GET /v1/images/AAAAAAA?key={tenant.key} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    out, err = capfd.readouterr()
    assert "/v1/account" in out
    for text in (out, err, caplog.text):
        assert tenant.key not in text


@pytest.mark.slow
async def test_drain_finishes_requests_in_progress(settings: Settings, tenant: Tenant) -> None:
    runner = Runner(create_app(settings), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    body = b"not a picture" * 1000
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        + f"Content-Length: {len(body)}\r\nX-Api-Key: {tenant.key}\r\n\r\n".encode()
        + body[:100]
    )
    await asyncio.sleep(0.1)
    assert runner.http_server.count_in_progress() == 1

    async def stop() -> None:
        await site.stop()
        await runner.http_server.drain(idle_grace_s=0.1, timeout_s=20)
        await runner.cleanup()

    stopping = asyncio.create_task(stop())
    await asyncio.sleep(0.3)
    writer.write(body[100:])
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 202")
    assert "Connection: close" in head
    await stopping
    writer.close()


@pytest.mark.usefixtures("worker")
async def test_head_in_pieces_is_not_changed(port: int, tenant: Tenant) -> None:
    body = jpeg()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in (
        b"POST /v1/images?tags=abc,",
        b"holiday HTTP/1.1\r\nHost: x\r\nX-Note: a",
        b"get /x\r\nContent-Type: image/jpeg\r\n",
        f"X-Api-Key: {tenant.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body,
    ):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        assert b'"tags":["abc","holiday"]' in await reader.readuntil(b"}}")
    writer.close()


async def test_malformed_chunk_is_refused_at_once(port: int, tenant: Tenant) -> None:
    status, _, body = await exchange(
        port,
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n"
        + f"X-Api-Key: {tenant.key}\r\n\r\n5\r\nabcde\r\n".encode(),
        b"zz\r\n",
    )
    assert status == 400
    assert json.loads(body)["error"]["code"] == "invalid-body"


async def test_client_that_leaves_is_no_error(port: int, tenant: Tenant, capfd: Any) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 10000\r\n"
        + f"X-Api-Key: {tenant.key}\r\n\r\nabc".encode()
    )
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    out = ""
    async with asyncio.timeout(10):
        while "request.aborted" not in out:
            await asyncio.sleep(0.02)
            out += capfd.readouterr().out
    assert "Traceback" not in out


@pytest.mark.parametrize("path", ["/v1/images/{key}", "/v1/account&key={key}"])
async def test_key_in_path_is_not_logged(port: int, tenant: Tenant, path: str, capfd: Any) -> None:
    status, _, body = await exchange(port, f"GET {path.format(key=tenant.key)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert status in (401, 404)
    out, err = capfd.readouterr()
    assert "[key]" in out
    assert tenant.key not in out + err + body.decode()


async def test_unread_body_closes_the_connection(port: int) -> None:
    _, headers, _ = await exchange(
        port, b"POST /v1/images HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    )
    assert headers["connection"] == "close"


@pytest.mark.slow
async def test_endless_letters_do_not_block_others(port: int) -> None:
    writers = []
    for piece in (b"x" * 32_000, b"GET /" + b"x" * 7_000, b"x" * 256_000, b"GET / HTTP/1.1\r\nX: "):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(piece)
        await asyncio.sleep(0.02)
        writer.write(b"x" * 256_000)
        writers.append(writer)
    async with asyncio.timeout(6):
        assert (await exchange(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
    for writer in writers:
        writer.close()


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
async def test_lower_case_method_after_body_is_accepted(port: int, tenant: Tenant) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = jpeg()
    post = (
        f"post /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nX-Api-Key: {tenant.key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    get = f"get /v1/account HTTP/1.1\r\nHost: x\r\nX-Api-Key: {tenant.key}\r\n\r\n".encode()
    for request in (post, post, get, post):
        writer.write(request)
        async with asyncio.timeout(5):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 200"), head
            await reader.readexactly(int(head.lower().split("content-length: ")[1].split()[0]))
    writer.close()


@pytest.mark.parametrize("path", ["/v1/images", "/nowhere"])
async def test_malformed_body_is_not_logged_as_error(port: int, path: str, caplog: pytest.LogCaptureFixture) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n".encode()
    for pieces in (
        (head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", b"zz\r\n"),
        (head + b"Content-Encoding: gzip\r\nContent-Length: 50\r\n\r\n" + b"x" * 10, b"\1" * 40),
    ):
        status, _, _ = await exchange(port, *pieces)
        assert status in (401, 404)
        await asyncio.sleep(0.1)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_key_as_request_id_is_ignored(port: int, tenant: Tenant, capfd: Any) -> None:
    _, headers, _ = await exchange(
        port, f"GET /v1/account HTTP/1.1\r\nHost: x\r\nX-Request-Id: {tenant.key}\r\n\r\n".encode()
    )
    out, err = capfd.readouterr()
    assert tenant.key not in headers["x-request-id"] + out + err


@pytest.mark.parametrize("line", ["GET /healthz HTTP/1.1", "GET /v1/account HTTP/1.1", "GET /a b HTTP/1.1", "x y"])
async def test_responses_show_no_versions(port: int, line: str) -> None:
    _, headers, _ = await exchange(port, f"{line}\r\nHost: x\r\n\r\n".encode())
    assert headers["server"] == "Daguerre"


DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
DOCUMENT_AND_CLOSE = DOCUMENT[:-2] + b"Connection: close\r\n\r\n"
Scenario = Callable[[Runner, socket.socket], Coroutine[Any, Any, None]]


class Play(Protocol):
    """Runs a scenario between a server and its client."""

    def __call__(self, scenario: Scenario, *, write_stall_timeout_s: float = 0.5) -> None: ...


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest, settings: Settings) -> Play:
    """Runs a scenario in each of the event loops."""

    async def run(scenario: Scenario, write_stall_timeout_s: float) -> None:
        runner = Runner(
            create_app(settings),
            access_log=None,
            keepalive_timeout=0.2,
            write_stall_timeout_s=write_stall_timeout_s,
            shutdown_timeout=5,
        )
        async with asyncio.timeout(30), connect_slow_client(runner, send_buffer=4096) as client:
            await scenario(runner, client)

    def play(scenario: Scenario, *, write_stall_timeout_s: float = 0.5) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(run(scenario, write_stall_timeout_s))

    return play


async def stalled(runner: Runner) -> HttpConnection:
    """Returns the only connection, when its response waits for the client."""
    async with asyncio.timeout(15):
        while True:
            for connection in runner.http_server.connections:
                assert isinstance(connection, HttpConnection)
                if connection.writing_paused:
                    return connection
            await asyncio.sleep(0.01)


async def read_all(client: socket.socket, *, pause_s: float = 0) -> bytes:
    received = bytearray()
    while chunk := await asyncio.get_running_loop().sock_recv(client, 4096):
        received += chunk
        await asyncio.sleep(pause_s)
    return bytes(received)


def is_complete(response: bytes) -> bool:
    head, _, body = response.partition(b"\r\n\r\n")
    return len(body) == int(head.lower().partition(b"content-length: ")[2].split()[0])


@pytest.mark.parametrize("requests", [DOCUMENT * 1000, DOCUMENT_AND_CLOSE], ids=["many", "last"])
def test_stalled_client_is_disconnected(play: Play, requests: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario(runner: Runner, client: socket.socket) -> None:
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(client, requests))
        connection = await stalled(runner)
        began = time.monotonic()
        await asyncio.sleep(0.3)
        assert connection.is_busy()
        assert len(connection._messages) <= 32
        assert connection.transport is not None
        assert 0 < connection.transport.get_write_buffer_size() < 300_000  # one response
        while runner.http_server.connections:
            await asyncio.sleep(0.01)
        assert 0.8 < time.monotonic() - began < 6
        with pytest.raises(ConnectionResetError):
            await read_all(client)
        await asyncio.wait([sending])
        sending.exception()

    play(scenario, write_stall_timeout_s=1)
    out, _ = capfd.readouterr()
    assert out.count("connection.write_stalled") == 1
    assert "Traceback" not in out


@pytest.mark.slow
def test_slow_client_gets_the_whole_response(play: Play) -> None:
    async def scenario(runner: Runner, client: socket.socket) -> None:
        began = time.monotonic()
        await asyncio.get_running_loop().sock_sendall(client, DOCUMENT_AND_CLOSE)
        assert is_complete(await read_all(client, pause_s=0.03))
        assert time.monotonic() - began > 0.7  # longer than the timeout of a stalled client

    play(scenario)


def test_too_slow_client_is_disconnected(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MIN_BYTES_PER_S", 10_000_000)

    async def scenario(_: Runner, client: socket.socket) -> None:
        began = time.monotonic()
        await asyncio.get_running_loop().sock_sendall(client, DOCUMENT_AND_CLOSE)
        with pytest.raises(ConnectionResetError):
            await read_all(client, pause_s=0.1)
        assert 0.4 < time.monotonic() - began < 9

    play(scenario)


def test_drain_waits_for_a_response_to_be_read(play: Play) -> None:
    async def scenario(runner: Runner, client: socket.socket) -> None:
        await asyncio.get_running_loop().sock_sendall(client, DOCUMENT)
        await stalled(runner)
        server = runner.http_server
        draining = asyncio.create_task(server.drain(idle_grace_s=0, timeout_s=10))
        await asyncio.sleep(0.2)
        assert not draining.done()
        assert server.count_in_progress() == 1
        reading = asyncio.create_task(read_all(client))
        await draining
        await runner.cleanup()
        assert is_complete(await reading)

    play(scenario)


def test_drain_ends_on_time_with_a_stalled_client(play: Play) -> None:
    async def scenario(runner: Runner, client: socket.socket) -> None:
        await asyncio.get_running_loop().sock_sendall(client, DOCUMENT)
        await stalled(runner)
        began = time.monotonic()
        await runner.http_server.drain(idle_grace_s=0, timeout_s=0.1)
        await runner.cleanup()
        assert time.monotonic() - began < 6

    play(scenario, write_stall_timeout_s=60)  # the drain's timeout expires first
