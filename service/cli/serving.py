"""The commands that run the API or a worker."""

from __future__ import annotations

import asyncio
import os
import socket
from functools import partial

import click

from service.cli.common import load_settings
from service.config.settings import Settings, SettingsError
from service.launcher import StartError, listening
from service.shared_memory.connection_counts import ConnectionCounts
from service.shared_memory.in_flight_bytes import InFlightBytes


@click.command()
@click.option("--fd", type=int, help="Serve on this inherited listening socket, in one process.")
@click.option(
    "--shared", type=int, nargs=3, help="Descriptors of shared memory, and this process's number.", hidden=True
)
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 picks a free one.")
@click.option("--processes", type=click.IntRange(1, 64), help="API processes (also DAGUERRE_API_PROCESSES).")
@click.option("--new-database", is_flag=True, help="Start with an empty database although the storage has images.")
def serve(
    *,
    fd: int | None,
    shared: tuple[int, int, int] | None,
    host: str | None,
    port: int | None,
    processes: int | None,
    new_database: bool,
) -> None:
    """Run the API: several processes behind one port."""
    settings = load_settings(host=host, port=port, api_processes=processes)
    try:
        if fd is None:  # not in its child processes, which would repeat the message
            asyncio.run(_require_servers(settings))
            asyncio.run(_prepare_storage(settings, is_new_database=new_database))
        with _listen(settings, fd) as listener:
            if fd is None and settings.api_processes > 1:
                from service.launcher import serve as supervised  # noqa: PLC0415

                supervised.serve(settings, listener)
            else:
                from service.api.app import create_app  # noqa: PLC0415
                from service.http import server  # noqa: PLC0415

                counts, in_flight_bytes = _open_shared(shared)
                app = partial(create_app, settings, in_flight_bytes)
                server.serve(app, settings, listener, counts, supervised=fd is not None)
    except (SettingsError, StartError) as error:
        raise click.ClickException(str(error)) from None


async def _require_servers(settings: Settings) -> None:
    from service.dependencies.versions import require_servers  # noqa: PLC0415
    from service.queue import jobs  # noqa: PLC0415

    redis = jobs.open_redis(settings.redis_url)
    try:
        await require_servers(settings.database_url, redis)
    finally:
        await redis.aclose(close_connection_pool=True)


async def _prepare_storage(settings: Settings, *, is_new_database: bool) -> None:
    from service.database import Database  # noqa: PLC0415
    from service.storage.backends import open_originals, open_setup  # noqa: PLC0415
    from service.storage.identity import load_id  # noqa: PLC0415
    from service.verification.pairing import prepare_storage, require_pair  # noqa: PLC0415

    await require_pair(settings.database_url, open_setup(settings), is_new_database=is_new_database)
    async with Database.open(settings.database_url, connections=1, pooler=settings.database_pooler) as database:
        await prepare_storage(open_originals(settings, database, partial(load_id, database)), database)


def _open_shared(shared: tuple[int, int, int] | None) -> tuple[ConnectionCounts, InFlightBytes]:
    if shared is None:
        return ConnectionCounts.unshared(), InFlightBytes.unshared()
    counts, in_flight_bytes, number = shared
    return ConnectionCounts(counts, number), InFlightBytes(in_flight_bytes, number)


def _listen(settings: Settings, fd: int | None) -> socket.socket:
    if fd is None:
        return listening.bind(settings.host, settings.port)
    try:
        return socket.socket(fileno=fd)
    except OSError as error:
        raise StartError(f"--fd {fd} is not a socket: {os.strerror(error.errno or 0).lower()}") from None


@click.command()
def worker() -> None:
    """Run one worker process."""
    from worker.main import run  # noqa: PLC0415

    try:
        run(load_settings())
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
