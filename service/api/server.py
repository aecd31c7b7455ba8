"""One API process: listen, serve, drain."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import structlog
import uvloop

from service import logs
from service.api.acceptor import Acceptor
from service.api.app import create_app
from service.api.protocol import Runner
from service.metrics import metrics
from service.processes.connection_counts import ConnectionCounts
from service.settings import Settings

log = structlog.get_logger("service.api")

# Threads only wait for the disk; the default of cores + 4 would let six slow syncs hold up every other upload.
_DISK_THREADS = 32
# How long an idle connection stays open for a request that may be on its way when the drain begins.
_LINGER_S = 0.5
_KEEPALIVE_S = 75
# aiohttp buffers up to twice this for each body; its default is four times as much.
_READ_BYTES = 64 * 1024


def serve(settings: Settings, listener: socket.socket, counts: ConnectionCounts) -> None:
    """Serve until SIGTERM or SIGINT. Raises SettingsError where the storage cannot be used."""
    logs.configure(settings, part="api", pid=os.getpid())
    metrics.share(settings.metrics_folder)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listener, counts))


async def _serve(settings: Settings, listener: socket.socket, counts: ConnectionCounts) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="disk"))
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    runner = Runner(
        create_app(settings),
        access_log=None,
        keepalive_timeout=_KEEPALIVE_S,
        shutdown_timeout=5,
        read_bufsize=_READ_BYTES,
    )
    await runner.setup()
    try:
        server = runner.draining_server
        server.counts = counts
        with Acceptor(listener, server, counts):
            log.info("api.listening", address=listener.getsockname())
            await stopping.wait()
            log.info("api.draining", requests=server.count_under_way())
        await server.drain(linger_s=_LINGER_S, timeout_s=settings.drain_s)
    finally:
        await runner.cleanup()
    log.info("api.stopped")
