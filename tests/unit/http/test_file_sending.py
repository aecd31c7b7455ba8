"""Pictures that go from their file to the connection: to slow clients, to those that leave, and at a shut-down."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web

from service.http import file_sending
from service.http.file_sending import FileAnswer, Part
from service.http.protocol import Runner
from service.http.server import DESCRIPTORS_OF_A_CONNECTION
from service.limits import pace
from service.storage.files import disk_threads, in_thread

SIZE = 600_000
THREADS = disk_threads("test")
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

Scene = Callable[[Runner, socket.socket], Coroutine[Any, Any, None]]
Play = Callable[[Scene], None]


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[Runner, socket.socket]]:
    """An application that has this file, and a client; little lies between them."""

    async def show(_: web.Request) -> web.StreamResponse:
        return FileAnswer(path.open("rb", buffering=0), Part(0, SIZE), 200, {}, THREADS)

    app = web.Application()
    app.router.add_get("/", show)
    runner = Runner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await web.SockSite(runner, listener).start()
        await asyncio.get_running_loop().sock_connect(client, listener.getsockname())
        try:
            yield runner, client
        finally:
            await runner.cleanup()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Runs a scene between a server and its client, in each of the event loops."""
    path = tmp_path / "picture"
    path.write_bytes(os.urandom(SIZE))

    async def run(scene: Scene) -> None:
        async with asyncio.timeout(15), serving(path) as (runner, client):
            await scene(runner, client)

    def play(scene: Scene) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(run(scene))

    return play


async def ask(client: socket.socket) -> None:
    await asyncio.get_running_loop().sock_sendall(client, GET)
    await asyncio.sleep(0.1)


async def read(client: socket.socket, *, pauses: int = 0) -> int:
    """The bytes of the picture, until it is whole or the connection ends; there are pauses at the beginning."""
    received = bytearray()
    while len(received.partition(b"\r\n\r\n")[2]) < SIZE:
        piece = await asyncio.get_running_loop().sock_recv(client, 4096)
        if not piece:
            break
        received += piece
        if pauses:
            pauses -= 1
            await asyncio.sleep(0.1)
    return len(received.partition(b"\r\n\r\n")[2])


def test_a_client_that_takes_a_little_at_a_time_gets_all_of_the_file(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection takes new bytes only when a third of what it holds is gone."""
    monkeypatch.setattr(file_sending, "UNREAD_S", 0.3)

    async def scene(_: Runner, client: socket.socket) -> None:
        await ask(client)
        assert await read(client, pauses=15) == SIZE
        await ask(client)
        assert await read(client) == SIZE  # the connection is in good order

    play(scene)


def test_a_client_that_takes_nothing_is_left(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sending, "UNREAD_S", 0.3)

    async def scene(runner: Runner, client: socket.socket) -> None:
        await ask(client)
        while runner.draining_server.connections:
            await asyncio.sleep(0.01)
        assert await read(client) < SIZE

    play(scene)


def test_a_client_below_the_least_pace_is_left(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sending, "UNREAD_S", 0.5)
    monkeypatch.setattr(pace, "MIN_BYTES_PER_S", 10_000_000)

    async def scene(runner: Runner, client: socket.socket) -> None:
        await ask(client)
        reading = asyncio.create_task(read(client, pauses=1000))
        async with asyncio.timeout(3):
            while runner.draining_server.connections:
                await asyncio.sleep(0.01)
        assert not reading.done()
        reading.cancel()

    play(scene)


def test_a_drain_waits_until_a_file_is_read(play: Play) -> None:
    async def scene(runner: Runner, client: socket.socket) -> None:
        await ask(client)
        server = runner.draining_server
        draining = asyncio.create_task(server.drain(linger_s=0, timeout_s=10))
        await asyncio.sleep(0.2)
        assert server.count_under_way() == 1
        assert not draining.done()
        reading = asyncio.create_task(read(client))
        await draining
        await runner.cleanup()
        assert await reading == SIZE

    play(scene)


@pytest.mark.skipif(sys.platform != "linux", reason="it counts descriptors in /proc")
def test_a_connection_has_as_many_descriptors_as_are_counted_for_it_and_gives_them_back(play: Play) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - their number is all there is to it

    async def scene(runner: Runner, client: socket.socket) -> None:
        connected = count()
        await ask(client)
        assert count() == connected + DESCRIPTORS_OF_A_CONNECTION - 1
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        while runner.draining_server.connections or count() > connected - 2:
            await asyncio.sleep(0.01)

    play(scene)


async def test_a_thread_is_waited_for_however_often_its_call_is_cancelled() -> None:
    """What it works with, a descriptor perhaps, is closed after it."""
    begun, going_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        going_on.wait(5)
        ended.set()

    calling = asyncio.create_task(in_thread(THREADS, work))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    for _ in range(3):
        calling.cancel()
        await asyncio.sleep(0.01)
    assert not calling.done()
    going_on.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert ended.is_set()


async def test_a_file_that_a_client_left_before_it_was_found_missing_is_no_error_in_the_log() -> None:
    begun, going_on = threading.Event(), threading.Event()
    unheard: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))

    def work() -> None:
        begun.set()
        going_on.wait(5)
        raise FileNotFoundError

    calling = asyncio.create_task(in_thread(THREADS, work))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    calling.cancel()
    await asyncio.sleep(0.01)
    going_on.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    del calling
    gc.collect()
    await asyncio.sleep(0)
    assert unheard == []
