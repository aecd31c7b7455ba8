"""A client that reads slowly, on a connection with small buffers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from service.http.server import Runner


@asynccontextmanager
async def connect_slow_client(runner: Runner, *, send_buffer: int) -> AsyncIterator[socket.socket]:
    """Starts the server and yields the socket of a client. Stops the server at the end.

    `send_buffer` is the size of the server's send buffer in bytes. The client's receive buffer has the minimum size.
    """
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await web.SockSite(runner, listener).start()
        await asyncio.get_running_loop().sock_connect(client, listener.getsockname())
        try:
            yield client
        finally:
            await runner.cleanup()
