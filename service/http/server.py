"""One API process: listen, serve, drain."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Callable

import structlog
import uvloop
from aiohttp import web

from service.config.public_url import warn_if_misleading
from service.config.settings import Settings
from service.http.acceptor import Acceptor
from service.http.protocol import UNREAD_S, Runner
from service.shared_memory.connection_counts import ConnectionCounts
from service.telemetry import logs
from service.telemetry.metrics import metrics

log = structlog.get_logger("service.api")

# How long an idle connection stays open for a request that may be on its way when the drain begins.
_LINGER_S = 0.5
# aiohttp waits twice so long for what the drain has waited for already. A supervisor kills 5 s after the drain.
_CUT_OFF_S = 1
# Until a request's head is complete, from the beginning of the connection or from the answer before.
KEEPALIVE_S = 75
MAX_LINE_BYTES = 8190
MAX_HEADERS = 128
# Descriptors that a process asks for where it has less and may have more; and those that are not for connections and
# not counted by a setting.
MOST_DESCRIPTORS = 65_536
_SPARE_DESCRIPTORS = 64
# Its own; and while a picture is sent from its file, that and a copy of its own.
DESCRIPTORS_OF_A_CONNECTION = 3
# aiohttp buffers up to twice this for each body; its default is four times as much.
_READ_BYTES = 64 * 1024


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
        unread_timeout=UNREAD_S,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
        max_headers=MAX_HEADERS,
        shutdown_timeout=_CUT_OFF_S,
        read_bufsize=_READ_BYTES,
    )
    await runner.setup()
    try:
        server = runner.draining_server
        server.counts = counts
        async with Acceptor(listener, server, counts, most=most_connections(settings, raise_descriptors())):
            log.info("api.listening", address=listener.getsockname())
            if not supervised:
                warn_if_misleading(settings, listener)
            await stopping.wait()
            log.info("api.draining", requests=server.count_under_way())
        await server.drain(linger_s=_LINGER_S, timeout_s=settings.drain_s)
    finally:
        await runner.cleanup()
    log.info("api.stopped")


def raise_descriptors() -> int:
    """As many open files and connections as this process may have from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return soft if soft > 0 else MOST_DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def most_connections(settings: Settings, descriptors: int) -> int:
    """What is left for clients when every upload has its file, and every download its file and its origin; all of them
    may be sent pictures from files at once.
    """
    kept = settings.uploads_in_flight + 2 * settings.downloads_in_flight + settings.database_connections
    return max(descriptors // 4, (descriptors - kept - _SPARE_DESCRIPTORS) // DESCRIPTORS_OF_A_CONNECTION)
