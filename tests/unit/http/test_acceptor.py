"""Connections are distributed among processes; a process accepts those that no other accepts."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from service.http.acceptor import Acceptor
from service.shared_memory import connection_counts
from service.shared_memory.connection_counts import ConnectionCounts

Pair = tuple[ConnectionCounts, ConnectionCounts]


@pytest.fixture
def pair() -> Iterator[Pair]:
    descriptor = connection_counts.create(2)
    yield ConnectionCounts(descriptor, 0), ConnectionCounts(descriptor, 1)
    os.close(descriptor)


class Greeting(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        transport.write(b"hello")


class Closing(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        transport.abort()


class Exhausted(socket.socket):
    """Fails to accept the first connection, for lack of descriptors."""

    refusals = 0

    def accept(self) -> Any:
        if not self.refusals:
            self.refusals += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def listening(listener: socket.socket, backlog: int = 16) -> socket.socket:
    listener.bind(("127.0.0.1", 0))
    listener.listen(backlog)
    return listener


async def greet(listener: socket.socket) -> bytes:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    with closing(writer):
        return await asyncio.wait_for(reader.readexactly(5), 10)


class TestCounts:
    def test_process_with_more_connections_is_ahead(self, pair: Pair) -> None:
        one, other = pair
        assert not one.is_ahead()
        one.add(3)
        assert not one.is_ahead()
        one.add(1)
        assert one.is_ahead()
        assert not other.is_ahead()
        other.add(1)
        assert not one.is_ahead()

    def test_allowed_difference_grows_with_the_counts(self, pair: Pair) -> None:
        one, other = pair
        other.add(80)
        one.add(93)
        assert not one.is_ahead()
        one.add(1)
        assert one.is_ahead()

    def test_replaced_process_starts_at_zero(self) -> None:
        descriptor = connection_counts.create(2)
        ConnectionCounts(descriptor, 0).add(50)
        replaced = ConnectionCounts(descriptor, 0)
        os.close(descriptor)
        assert not replaced.is_ahead()

    def test_single_process_is_never_ahead(self) -> None:
        counts = ConnectionCounts.unshared()
        counts.add(1000)
        assert not counts.is_ahead()


async def test_process_ahead_accepts_if_no_other_does(
    pair: Pair,
) -> None:
    counts, _ = pair
    counts.add(100)
    listener = listening(socket.socket())
    async with Acceptor(listener, Greeting, counts, max_connections=1000):
        assert await asyncio.gather(*(greet(listener) for _ in range(20))) == [b"hello"] * 20


async def test_process_ahead_leaves_connections_to_others(
    pair: Pair,
) -> None:
    ahead, behind = pair
    ahead.add(100)
    acceptors: list[str] = []

    def accepted_by(name: str) -> Callable[[], Greeting]:
        def make() -> Greeting:
            acceptors.append(name)
            return Greeting()

        return make

    listener = listening(socket.socket())
    async with (
        Acceptor(listener, accepted_by("ahead"), ahead, max_connections=1000, yield_s=60),
        Acceptor(listener.dup(), accepted_by("behind"), behind, max_connections=1000),
    ):
        for _ in range(10):
            assert await greet(listener) == b"hello"
    assert acceptors == ["behind"] * 10


async def accept_for(iterations: int, *, held: int, waiting: int) -> int:
    """Returns how many of the waiting connections a process accepts that has `held` connections already."""
    listener, counts = listening(socket.socket(), backlog=waiting), ConnectionCounts.unshared()
    counts.add(held)
    with ExitStack() as clients:
        for _ in range(waiting):
            clients.enter_context(socket.create_connection(listener.getsockname()))
        async with Acceptor(listener, Closing, counts, max_connections=1000):
            for _ in range(iterations):
                await asyncio.sleep(0)
            accepted = counts.held - held
    await asyncio.sleep(0.01)  # aborted connections are closed in the next iteration
    return accepted


async def test_few_connections_are_accepted_one_by_one() -> None:
    assert await accept_for(4, held=0, waiting=16) <= 4


async def test_rush_is_accepted_in_few_iterations() -> None:
    assert await accept_for(4, held=400, waiting=100) == 100


@pytest.mark.parametrize("error", [RuntimeError("a fault"), OSError(errno.EINVAL, "the client has gone")])
async def test_failed_connection_is_not_counted(error: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    protocols: list[Greeting] = []

    def make() -> Greeting:
        if not protocols:
            protocols.append(Greeting())
            raise error
        return Greeting()

    listener, counts = listening(socket.socket()), ConnectionCounts.unshared()
    async with Acceptor(listener, make, counts, max_connections=1):
        with pytest.raises(asyncio.IncompleteReadError):  # closed at once
            await greet(listener)
        assert counts.held == 0
        assert await greet(listener) == b"hello"  # below the limit again
    assert capfd.readouterr().out.count("api.connection_failed") == isinstance(error, RuntimeError)


async def test_accepting_resumes_after_exhaustion() -> None:
    listener = listening(Exhausted())
    began = time.monotonic()
    async with Acceptor(listener, Greeting, ConnectionCounts.unshared(), max_connections=1000):
        assert await greet(listener) == b"hello"
    assert time.monotonic() - began >= 0.9


async def test_listener_is_closed_after_the_block() -> None:
    listener = listening(socket.socket())
    address = listener.getsockname()
    async with Acceptor(listener, Greeting, ConnectionCounts.unshared(), max_connections=1000):
        pass
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)


async def test_last_connection_gets_its_protocol() -> None:
    protocols: list[Greeting] = []

    def make() -> Greeting:
        protocols.append(Greeting())
        return protocols[-1]

    listener, counts = listening(socket.socket()), ConnectionCounts.unshared()
    with socket.create_connection(listener.getsockname()) as client:
        async with Acceptor(listener, make, counts, max_connections=1000):
            while not counts.held:
                await asyncio.sleep(0)
            assert not protocols
        assert len(protocols) == counts.held == 1
        assert asyncio.all_tasks() == {asyncio.current_task()}
        client.setblocking(False)
        async with asyncio.timeout(5):
            assert await asyncio.get_running_loop().sock_recv(client, 5) == b"hello"


async def test_waiting_connections_are_accepted_at_the_end() -> None:
    listener, counts = listening(socket.socket()), ConnectionCounts.unshared()
    address = listener.getsockname()
    with socket.create_connection(address) as one, socket.create_connection(address) as other:
        async with Acceptor(listener, Greeting, counts, max_connections=1000):
            pass
        assert counts.held == 2
        for client in (one, other):
            client.setblocking(False)
            async with asyncio.timeout(5):
                assert await asyncio.get_running_loop().sock_recv(client, 5) == b"hello"


async def test_connection_limit_delays_the_next_one(
    capfd: pytest.CaptureFixture[str],
) -> None:
    listener, counts = listening(socket.socket()), ConnectionCounts.unshared()
    async with Acceptor(listener, Greeting, counts, max_connections=2):
        for _ in range(2):
            assert await greet(listener) == b"hello"
        third = asyncio.create_task(greet(listener))
        await asyncio.sleep(0.3)
        assert not third.done()
        assert counts.held == 2
        counts.add(-1)
        assert await third == b"hello"
    assert capfd.readouterr().out.count("api.connection_limit_reached") == 1
