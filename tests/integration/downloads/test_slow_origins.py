"""Slow origins and name servers, with short time limits."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import ResolveResult
from yarl import URL

from service.addresses import AllowedAddresses
from service.config.settings import Settings
from service.downloads.client import DownloadClient, DownloadTimeouts
from service.downloads.connections import GuardedResolver
from service.errors import ServiceError
from tests.conftest import Client, Tenant
from tests.integration.downloads.origins import (
    LOCAL,
    QUICK,
    Serve,
    fetch,
    get,
    listening,
    picture,
    raw_origin,
    refusal,
)
from tests.support.api import error_of
from tests.support.samples import jpeg, stored_files


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
async def test_interim_responses_are_skipped(api: Client, tenant: Tenant) -> None:
    before = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n" * 3
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(jpeg())
    async with raw_origin(before + head + jpeg()) as url:
        assert (await get(api, tenant, url)).status == 200


async def test_endless_interim_responses_are_refused(settings: Settings) -> None:
    """They arrive at once, so no time limit applies before the last one."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 103 A\r\n\r\n" * 1000)
                await writer.drain()

    async with listening(say) as port:
        began = time.process_time()
        with pytest.raises(ServiceError, match="origin-refused"):
            await fetch(f"http://127.0.0.1:{port}/", settings, DownloadTimeouts(total_s=5))
    assert time.process_time() - began < 1


async def test_origin_below_the_minimum_pace_is_too_slow(serve: Serve, settings: Settings) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(200):
            await response.write(b"x" * 10)
            await asyncio.sleep(0.05)
        return response

    timeouts = DownloadTimeouts(connect_s=0.3, read_s=0.3, total_s=10)
    url = str(await serve(drip))
    began = time.monotonic()
    with pytest.raises(ServiceError, match="origin-too-slow"):
        await fetch(url, settings, timeouts)
    assert 0.2 < time.monotonic() - began < 2
    assert stored_files(settings) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nabc"],
)
async def test_origin_that_stalls_is_too_slow(settings: Settings, data: bytes) -> None:
    async with raw_origin(data, then_close=False) as url:
        with pytest.raises(ServiceError, match="origin-too-slow"):
            await asyncio.wait_for(fetch(url, settings), 5)
    assert stored_files(settings) == []


async def test_origin_over_the_total_time_is_too_slow(serve: Serve, settings: Settings) -> None:
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


async def test_unaccepted_connection_is_too_slow(settings: Settings) -> None:
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


async def test_refused_connection_is_origin_refused(settings: Settings) -> None:
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
    async with DownloadClient.connect(AllowedAddresses.parse(""), lookups=1, timeouts=QUICK) as client:
        with pytest.raises(ServiceError, match="origin-too-slow"):
            async with client.get(URL("http://slow.example/")):
                pass


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
@pytest.mark.settings(fetch_allow="127.0.0.0/8", downloads_in_flight=2)
async def test_hanging_lookups_make_the_next_one_busy(
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


async def test_hanging_lookups_leave_slots_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download releases its slot after 5 seconds, and its look-up goes on."""
    look_up, go_on = socket.getaddrinfo, threading.Event()

    def hang(host: str, *rest: Any) -> Any:
        if host == "slow.example":
            go_on.wait(30)
        return look_up("127.0.0.1", *rest)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    allowed = AllowedAddresses.parse("127.0.0.1")
    slow, quick = URL("http://slow.example:1/"), URL("http://quick.example:1/")
    async with DownloadClient.connect(allowed, lookups=8, timeouts=QUICK) as client:
        try:
            codes = await asyncio.gather(*(fail(client, slow, "loud") for _ in range(8)))
            assert codes == ["origin-too-slow"] * 6 + ["busy"] * 2
            assert await fail(client, quick, "loud") == "busy"
            assert await fail(client, quick, "quiet") == "origin-refused"  # nothing listens there
        finally:
            go_on.set()


async def fail(client: DownloadClient, url: URL, account: str) -> str:
    with pytest.raises(ServiceError) as failure:
        async with client.get(url, account):
            pass
    return failure.value.code


async def test_lookup_ends_with_its_result() -> None:
    resolver = GuardedResolver(AllowedAddresses.parse("127.0.0.1"), lookups=1)
    for _ in range(50):
        await resolver.resolve("127.0.0.1", 80)
        with pytest.raises(OSError, match="not a host name"):
            await resolver.resolve("a..example", 80)


async def test_system_without_threads_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolver = GuardedResolver(AllowedAddresses.parse("127.0.0.1"), lookups=1)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ServiceError, match="busy"):
            await resolver.resolve("127.0.0.1", 80)
    assert await resolver.resolve("127.0.0.1", 80)


async def test_process_exits_during_a_hanging_lookup() -> None:
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
