"""An origin for the tests of downloads, and a listener that no download may reach."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from tests.integration.downloads.origins import (
    Serve,
)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts an origin with one handler for every path. Returns its address."""
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


@pytest.fixture
async def trap() -> AsyncIterator[tuple[int, list[object]]]:
    """A listener on every loopback address, and its connections."""
    peers: list[object] = []

    async def accept_one(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(accept_one, None, 0, family=socket.AF_INET)
    async with server:
        yield server.sockets[0].getsockname()[1], peers
