"""One API process: it listens, serves and drains."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import structlog
import uvloop
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_server import Server

from service.config.public_url import warn_if_misleading
from service.config.settings import Settings
from service.http.acceptor import Acceptor
from service.http.protocol import ErrorResponse, HttpConnection, ServerState, Shortcut
from service.shared_memory.connection_counts import ConnectionCounts
from service.telemetry import logs
from service.telemetry.metrics import metrics

log = structlog.get_logger("service.api")

# Keys under which an application passes these to the server. The first is required.
ERROR_RESPONSE: web.AppKey[ErrorResponse] = web.AppKey("error_response")
SHORTCUT: web.AppKey[Shortcut] = web.AppKey("shortcut")

# How long an idle connection stays open after a drain starts, for a request that may be on its way.
_IDLE_GRACE_S = 0.5
_POLL_INTERVAL_S = 0.05
# aiohttp's own shutdown waits twice this long for requests, after the drain. The supervisor kills the process 5 s after
# the drain.
_SHUTDOWN_TIMEOUT_S = 1
# The maximum time until the head of a request is complete, from the start of the connection or the previous response.
KEEPALIVE_S = 75
MAX_LINE_BYTES = 8190
MAX_HEADERS = 128
# A process raises its limit of open files up to this.
MAX_DESCRIPTORS = 65_536
# Open files that are neither connections nor bounded by a setting.
_SPARE_DESCRIPTORS = 64
# The socket; and while a file is sent, the file and a duplicate of the socket.
DESCRIPTORS_PER_CONNECTION = 3
# aiohttp buffers up to twice this for each body; its default is four times as much.
_READ_BUFFER_BYTES = 64 * 1024


class HttpServer(Server):
    """Creates the connections, and can drain: wait until their requests are finished.

    The acceptor counts each connection in `counts`; this class subtracts it when it is lost.
    """

    def __init__(self, *args: Any, state: ServerState, **options: Any) -> None:
        super().__init__(*args, **options)
        self.state = state
        self.counts: ConnectionCounts | None = None

    def __call__(self) -> RequestHandler:
        return HttpConnection(self, self.state, loop=self._loop, **self._kwargs)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if self.counts is not None:
            self.counts.add(-1)

    def count_in_progress(self) -> int:
        """Returns the number of connections with a request in progress."""
        return sum(connection.is_busy() for connection in self.connections if isinstance(connection, HttpConnection))

    async def drain(self, *, idle_grace_s: float, timeout_s: float) -> None:
        """Waits for the requests in progress, up to `timeout_s`. aiohttp's own shutdown would be too early: it drops
        the rest of a body that is still arriving.

        Idle connections stay open for `idle_grace_s`, and each response closes its connection.
        """
        self.state.draining = True
        deadline = time.monotonic() + timeout_s
        await asyncio.sleep(idle_grace_s)
        while self.count_in_progress() and time.monotonic() < deadline:  # noqa: ASYNC110 - aiohttp signals no end
            await asyncio.sleep(_POLL_INTERVAL_S)
        for connection in self.connections:
            if isinstance(connection, HttpConnection) and connection.writing_paused:
                connection.abort()  # aiohttp would wait for a client that does not read


class Runner(web.AppRunner):
    """Serves an application through `HttpServer`. The application has ERROR_RESPONSE, and optionally SHORTCUT."""

    async def _make_server(self) -> Server:
        original = await super()._make_server()
        state = ServerState(self.app[ERROR_RESPONSE], self.app.get(SHORTCUT))
        return HttpServer(
            original.request_handler, request_factory=original.request_factory, state=state, **original._kwargs
        )

    @property
    def http_server(self) -> HttpServer:
        assert isinstance(self.server, HttpServer)  # noqa: S101 - made by _make_server
        return self.server


def serve(
    create_app: Callable[[], web.Application],
    settings: Settings,
    listener: socket.socket,
    counts: ConnectionCounts,
    *,
    supervised: bool,
) -> None:
    """Serves the application until SIGTERM or SIGINT. Raises what its start raises."""
    logs.configure(settings, part="api", pid=os.getpid())
    metrics.share(settings.metrics_folder)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(create_app(), settings, listener, counts, supervised=supervised))


async def _serve(
    app: web.Application,
    settings: Settings,
    listener: socket.socket,
    counts: ConnectionCounts,
    *,
    supervised: bool,
) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    runner = Runner(
        app,
        access_log=None,
        keepalive_timeout=KEEPALIVE_S,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
        max_headers=MAX_HEADERS,
        shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
        read_bufsize=_READ_BUFFER_BYTES,
    )
    await runner.setup()
    try:
        server = runner.http_server
        server.counts = counts
        bound = max_connections(settings, raise_descriptor_limit())
        async with Acceptor(listener, server, counts, max_connections=bound):
            log.info("api.listening", address=listener.getsockname())
            if not supervised:
                warn_if_misleading(settings, listener)
            await stopping.wait()
            log.info("api.draining", requests=server.count_in_progress())
        await server.drain(idle_grace_s=_IDLE_GRACE_S, timeout_s=settings.drain_s)
    finally:
        await runner.cleanup()
    log.info("api.stopped")


def raise_descriptor_limit() -> int:
    """Raises this process's limit of open files as far as allowed. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return soft if soft > 0 else MAX_DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def max_connections(settings: Settings, descriptors: int) -> int:
    """Returns how many connections the limit of open files allows.

    Each upload needs a file, each download a file and a connection to its origin, and every client may download a
    picture from a file at the same time.
    """
    reserved = settings.uploads_in_flight + 2 * settings.downloads_in_flight + settings.database_connections
    return max(descriptors // 4, (descriptors - reserved - _SPARE_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION)
