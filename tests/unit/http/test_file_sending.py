"""Files that are sent with sendfile: to slow clients, to clients that leave, and at a shutdown."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import pytest
import uvloop
from aiohttp import web

from service.api.responses import error_response
from service.http.file_sending import ByteRange, SendfileResponse
from service.http.server import DESCRIPTORS_PER_CONNECTION, ERROR_RESPONSE, Runner
from service.http.write_stalls import WRITE_STALL_TIMEOUT_S
from service.limits import slots as pace
from service.storage.files import disk_threads, in_thread
from tests.support.slow_client import connect_slow_client

SIZE = 600_000
THREADS = disk_threads("test")
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

Scenario = Callable[[Runner, socket.socket], Coroutine[Any, Any, None]]


class Play(Protocol):
    """Runs a scenario between a server and its client."""

    def __call__(self, scenario: Scenario, *, write_stall_timeout_s: float = WRITE_STALL_TIMEOUT_S) -> None: ...


def serve(path: Path, write_stall_timeout_s: float) -> Runner:
    """Returns a server that sends this file."""

    async def show(_: web.Request) -> web.StreamResponse:
        return SendfileResponse(
            path.open("rb", buffering=0),
            ByteRange(0, SIZE),
            200,
            {},
            THREADS,
            write_stall_timeout_s=write_stall_timeout_s,
        )

    app = web.Application()
    app[ERROR_RESPONSE] = error_response
    app.router.add_get("/", show)
    return Runner(app, access_log=None, shutdown_timeout=0.2)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Runs a scenario in each of the event loops."""
    path = tmp_path / "picture"
    path.write_bytes(os.urandom(SIZE))

    async def run(scenario: Scenario, write_stall_timeout_s: float) -> None:
        runner = serve(path, write_stall_timeout_s)
        async with asyncio.timeout(30), connect_slow_client(runner, send_buffer=100_000) as client:
            await scenario(runner, client)

    def play(scenario: Scenario, *, write_stall_timeout_s: float = WRITE_STALL_TIMEOUT_S) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(run(scenario, write_stall_timeout_s))

    return play


async def send_request(client: socket.socket) -> None:
    await asyncio.get_running_loop().sock_sendall(client, GET)
    await asyncio.sleep(0.1)


async def read(client: socket.socket, *, pauses: int = 0) -> int:
    """Returns the number of bytes of the file that arrived, until it is complete or the connection ends.

    The client pauses after each of the first reads.
    """
    received = bytearray()
    while len(received.partition(b"\r\n\r\n")[2]) < SIZE:
        chunk = await asyncio.get_running_loop().sock_recv(client, 4096)
        if not chunk:
            break
        received += chunk
        if pauses:
            pauses -= 1
            await asyncio.sleep(0.1)
    return len(received.partition(b"\r\n\r\n")[2])


@pytest.mark.slow
def test_slow_client_gets_the_whole_file(play: Play) -> None:
    """The kernel takes new bytes only when a third of its buffer is free."""

    async def scenario(_: Runner, client: socket.socket) -> None:
        await send_request(client)
        assert await read(client, pauses=15) == SIZE
        await send_request(client)
        assert await read(client) == SIZE  # the connection can be reused

    play(scenario, write_stall_timeout_s=0.3)


def test_stalled_client_is_disconnected(play: Play) -> None:
    async def scenario(runner: Runner, client: socket.socket) -> None:
        await send_request(client)
        while runner.http_server.connections:
            await asyncio.sleep(0.01)
        assert await read(client) < SIZE

    play(scenario, write_stall_timeout_s=0.3)


def test_too_slow_client_is_disconnected(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MIN_BYTES_PER_S", 10_000_000)

    async def scenario(runner: Runner, client: socket.socket) -> None:
        await send_request(client)
        reading = asyncio.create_task(read(client, pauses=1000))
        async with asyncio.timeout(9):
            while runner.http_server.connections:
                await asyncio.sleep(0.01)
        assert not reading.done()
        reading.cancel()

    play(scenario, write_stall_timeout_s=0.5)


def test_drain_waits_for_a_file_to_be_read(play: Play) -> None:
    async def scenario(runner: Runner, client: socket.socket) -> None:
        await send_request(client)
        server = runner.http_server
        draining = asyncio.create_task(server.drain(idle_grace_s=0, timeout_s=10))
        await asyncio.sleep(0.2)
        assert server.count_in_progress() == 1
        assert not draining.done()
        reading = asyncio.create_task(read(client))
        await draining
        await runner.cleanup()
        assert await reading == SIZE

    play(scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="it counts descriptors in /proc")
def test_sending_uses_the_counted_descriptors(play: Play) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number counts

    async def scenario(runner: Runner, client: socket.socket) -> None:
        connected = count()
        await send_request(client)
        while count() != connected + DESCRIPTORS_PER_CONNECTION - 1:
            await asyncio.sleep(0.01)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        while runner.http_server.connections or count() > connected - 2:
            await asyncio.sleep(0.01)

    play(scenario)


async def test_cancelled_call_waits_for_its_thread() -> None:
    """The descriptors that the thread uses are closed after it."""
    started, proceed, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        proceed.wait(5)
        ended.set()

    calling = asyncio.create_task(in_thread(THREADS, work))
    while not started.is_set():
        await asyncio.sleep(0.01)
    for _ in range(3):
        calling.cancel()
        await asyncio.sleep(0.01)
    assert not calling.done()
    proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert ended.is_set()


async def test_error_after_cancellation_is_not_logged() -> None:
    started, proceed = threading.Event(), threading.Event()
    unhandled: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))

    def work() -> None:
        started.set()
        proceed.wait(5)
        raise FileNotFoundError

    calling = asyncio.create_task(in_thread(THREADS, work))
    while not started.is_set():
        await asyncio.sleep(0.01)
    calling.cancel()
    await asyncio.sleep(0.01)
    proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    del calling
    gc.collect()
    await asyncio.sleep(0)
    assert unhandled == []
