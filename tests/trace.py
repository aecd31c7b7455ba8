"""Prints the files that a request visits: `python -m tests.trace`.

An upload, a new rendition and a delete, one after the other, through the API and a worker in this process, over real
HTTP, PostgreSQL and Valkey. Files of the decoding child are not counted. A file counts when one of its functions is
called; what runs all the time (heartbeats, health checks, polling) is measured first and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import aiohttp
from aiohttp import web

from service.accounts.accounts import create_account, create_key
from service.api.app import create_app
from service.config.settings import Settings
from service.database import Database
from service.http.server import Runner
from service.launcher.embedded.postgres import Postgres
from service.launcher.embedded.valkey import Valkey
from service.schema.changes import create_schema
from service.telemetry import logs
from tests.conftest import run_worker
from tests.support.folders import temporary_folder
from tests.support.samples import jpeg

_ROOT = Path(__file__).parents[1]
_PACKAGES = tuple(f"{_ROOT / name}{os.sep}" for name in ("service", "worker"))
# Longer than a heartbeat and a poll of the queue take, and than what follows a request (counters, rows, logs).
_BACKGROUND_S = 3.0
_AFTERMATH_S = 1.5


Profile = Callable[[FrameType, str, object], None]


def _set_profile(profile: Profile | None) -> None:
    threading.setprofile(profile)  # threads that start from now on
    if sys.version_info >= (3, 12):
        threading.setprofile_all_threads(profile)
    sys.setprofile(profile)


class Visits:
    """The functions that were called, by file, in order of the first call."""

    def __init__(self) -> None:
        self.functions: dict[str, set[str]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records the calls in the block, of this thread and of new ones; from Python 3.12 on, of all threads."""
        _set_profile(self._record)
        try:
            yield
        finally:
            _set_profile(None)

    def _record(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(_PACKAGES) and code.co_name != "<module>":
            self.functions.setdefault(code.co_filename, set()).add(code.co_qualname)

    def without(self, background: Visits) -> dict[str, set[str]]:
        """Returns the functions that the background does not call, by file."""
        own = {file: names - background.functions.get(file, set()) for file, names in self.functions.items()}
        return {file: names for file, names in own.items() if names}


Request = Callable[[aiohttp.ClientSession], Awaitable[None]]


async def trace(request: Request, session: aiohttp.ClientSession, background: Visits) -> dict[str, set[str]]:
    visits = Visits()
    with visits.recording():
        await request(session)
        await asyncio.sleep(_AFTERMATH_S)
    return visits.without(background)


def show(name: str, files: dict[str, set[str]], *, functions: bool) -> None:
    print(f"\n{name}: {len(files)} files")
    for number, (file, names) in enumerate(files.items(), 1):
        words = f"  {', '.join(sorted(names))}" if functions else ""
        print(f"{number:4}  {Path(file).relative_to(_ROOT)}{words}")


async def trace_all(settings: Settings, *, functions: bool) -> None:
    logs.configure(settings, part="trace", pid=os.getpid())
    await create_schema(settings.database_url)
    async with Database.open(settings.database_url, connections=1) as database, database.connection() as connection:
        await create_account(connection, "trace", 1 << 30)
        key = await create_key(connection, "trace")
    runner = Runner(create_app(settings), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    headers = {"X-Api-Key": key, "Content-Type": "image/jpeg"}
    image_id = ""

    async def upload(session: aiohttp.ClientSession) -> None:
        nonlocal image_id
        async with session.post("/v1/images", data=jpeg()) as response:
            response.raise_for_status()
            image_id = (await response.json())["response"]["id"]

    async def render(session: aiohttp.ClientSession) -> None:
        async with session.get(f"/i/{image_id}?width=20") as response:
            response.raise_for_status()
            await response.read()

    async def delete(session: aiohttp.ClientSession) -> None:
        async with session.delete(f"/v1/images/{image_id}") as response:
            response.raise_for_status()

    async with run_worker(settings), aiohttp.ClientSession(f"http://{host}:{port}", headers=headers) as session:
        for request in (upload, render, delete):  # the first of each connects, and fills caches
            await request(session)
        background = Visits()
        with background.recording():
            await asyncio.sleep(_BACKGROUND_S)
        for name, request in (("An upload", upload), ("A new rendition", render), ("A delete", delete)):
            show(name, await trace(request, session, background), functions=functions)
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.trace", description=__doc__.splitlines()[0])
    parser.add_argument("--functions", action="store_true", help="also print the functions of each file")
    options = parser.parse_args()
    with (
        temporary_folder() as folder,
        Postgres(folder / "pg", settings={"fsync": "off"}) as postgres,
        Valkey(folder / "valkey") as valkey,
    ):
        settings = Settings(
            data=folder / "data",
            metrics=folder / "metrics",
            database_url=postgres.dsn,
            redis_url=valkey.url,
            log_level="error",
        )
        asyncio.run(trace_all(settings, functions=options.functions))


if __name__ == "__main__":
    main()
