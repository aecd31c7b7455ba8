"""A separate deployment of Daguerre for each fault, and the invariants that are checked after it.

It has PostgreSQL and Valkey with durable settings, two API processes with their supervisor, and two workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import aiohttp
import asyncpg
import pytest

from service.accounts.accounts import create_account, create_key
from service.config.settings import Settings
from service.config.values import StoreUrl
from service.launcher.embedded.object_store import BUCKET, ObjectStoreServer
from service.launcher.embedded.postgres import Postgres
from service.launcher.embedded.server import Server
from service.launcher.embedded.valkey import Valkey
from service.launcher.exit_reasons import wait_ready
from service.launcher.process import end_orphans, start
from service.schema.changes import create_schema
from service.storage.backends import open_setup
from tests.chaos.load import ChaosClient, mixed_load, send
from tests.support.daguerre_processes import Daguerre, Part, processes_of
from tests.support.folders import temporary_folder
from tests.support.waiting import until

# The last account reaches its quota often.
_QUOTAS = (10 << 30, 10 << 30, 2 << 20)
_CLIENTS = 8
# The maximum time from the end of a fault until every client has a successful request.
RECOVERY_TIMEOUT_S = 30
# The maximum time from the end of the load until the stored data is consistent.
_CONSISTENCY_TIMEOUT_S = 60
# Must be in no log, during any fault.
UNEXPECTED_IN_LOGS = (
    "Traceback (most recent call last)",
    '"task.died"',
    '"request.failed"',
    "was never retrieved",
    "was never awaited",
    "Fatal Python error",
)


class Clocks(NamedTuple):
    """Environment variables that change the clock of each process; None for a correct clock."""

    api: Mapping[str, str] | None = None
    workers: Sequence[Mapping[str, str] | None] = (None, None)


CORRECT_CLOCKS = Clocks()


@dataclass
class Site:
    """`object_store` is None if the images are on the disk."""

    postgres: Postgres
    valkey: Valkey
    object_store: ObjectStoreServer | None
    settings: Settings
    keys: Sequence[str]
    daguerre: Daguerre
    base_url: str
    record: Callable[[str, object], None]
    clocks: Clocks

    serve: Part = field(init=False)
    workers: list[Part] = field(init=False)

    def start(self) -> None:
        self.serve = self.daguerre.start_serve(2, self.clocks.api)
        self.workers = []
        for clock in self.clocks.workers:
            self.start_worker(clock)

    def start_worker(self, clock: Mapping[str, str] | None = None) -> Part:
        self.workers.append(self.daguerre.start_worker(clock))
        return self.workers[-1]

    async def stop(self) -> None:
        """Stops the API, which finishes its requests, and then the workers."""
        for part in (self.serve, *self.workers):
            part.send(signal.SIGTERM)
            assert await part.exit_code() == 0

    def use_storage(self, storage: Path | StoreUrl) -> None:
        """Changes the setting, for processes that start later."""
        self.settings = self.daguerre.settings = self.settings.model_copy(update={"storage": storage})

    async def copy_storage(self, target: Path | StoreUrl) -> None:
        result = await asyncio.to_thread(self._run, "storage", "copy", "--to", str(target))
        assert result.returncode == 0, f"{result.stdout}{result.stderr}"

    async def wait_ready(self) -> None:
        await self.daguerre.wait_ready(RECOVERY_TIMEOUT_S)

    @asynccontextmanager
    async def load(self) -> AsyncIterator[list[ChaosClient]]:
        """Runs clients before, during and after the block, which causes the fault. Then asserts the invariants."""
        async with mixed_load(self.base_url, self.keys, clients=_CLIENTS) as clients:
            await self._wait_served(clients)
            yield clients
            started = time.monotonic()
            await self._wait_served(clients)
            self.record("served after ms", round((time.monotonic() - started) * 1000))
        started = time.monotonic()
        await self.assert_invariants(clients)
        self.record("consistent after ms", round((time.monotonic() - started) * 1000))
        self._record_responses(clients)

    def _record_responses(self, clients: Sequence[ChaosClient]) -> None:
        responses = sum((client.history.responses for client in clients), Counter[str]())
        refused = {name: count for name, count in sorted(responses.items()) if name.startswith("503")}
        self.record("done", responses["200"] + responses["202"])
        self.record("503", ", ".join(f"{count} {name.partition(' ')[2]}" for name, count in refused.items()))
        self.record("no response", responses["none"])
        self.record("slowest ms", round(1000 * max(client.history.slowest_s for client in clients)))

    async def _wait_served(self, clients: Sequence[ChaosClient]) -> None:
        """Returns when every client has had a successful request after this call."""
        now = time.monotonic()
        await until(lambda: all(client.history.succeeded_at > now for client in clients), RECOVERY_TIMEOUT_S)

    async def assert_invariants(self, clients: Sequence[ChaosClient]) -> None:
        for client in clients:
            assert client.history.errors == []
        await self._assert_consistent({k: v for client in clients for k, v in client.history.stored.items()})
        for client in clients:
            await self._assert_unchanged(client)
        for part in self.daguerre.parts:  # including those that were killed or stopped
            lines = part.log.read_text(errors="replace").splitlines()
            unexpected = [line for line in lines if any(text in line for text in UNEXPECTED_IN_LOGS)]
            assert not unexpected, f"{part.log.name}: {unexpected[0]}"
        assert self.serve.is_alive()

    async def _assert_consistent(self, stored: dict[str, bytes]) -> None:
        """Asserts that `daguerre verify` finds no problem and no image is pending, within _CONSISTENCY_TIMEOUT_S."""
        lines = "".join(f"{image_id} {sha256.hex()}\n" for image_id, sha256 in stored.items())
        deadline = time.monotonic() + _CONSISTENCY_TIMEOUT_S
        while True:
            result = await asyncio.to_thread(self._verify, lines)
            pending = await self._count_pending()
            if result.returncode == 0 and not pending:
                return
            assert time.monotonic() < deadline, f"{result.stdout}{result.stderr}, {pending} pending"
            await asyncio.sleep(1)

    def _verify(self, expected: str) -> subprocess.CompletedProcess[str]:
        return self._run("verify", "--expect", "-", text=expected)

    def _run(self, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "service.cli", *words],
            env={
                "PATH": os.environ["PATH"],
                "DAGUERRE_DATABASE_URL": self.settings.database_url,
                "DAGUERRE_REDIS_URL": self.settings.redis_url,
                "DAGUERRE_STORAGE": str(self.settings.object_store or self.settings.storage_folder),
                "DAGUERRE_CACHE": str(self.settings.cache_folder),
                **(self.object_store.environment() if self.object_store else {}),
            },
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    async def _count_pending(self) -> int:
        connection = await asyncpg.connect(self.settings.database_url)
        try:
            return int(await connection.fetchval("select count(*) from images where state = 'pending'"))
        finally:
            await connection.close()

    async def _assert_unchanged(self, client: ChaosClient) -> None:
        """Asserts that a client still gets its images, ready and with their tags, and none that it deleted."""
        history = client.history
        async with aiohttp.ClientSession(self.base_url, headers={"X-Api-Key": client.key}) as session:
            for image_id in history.stored:
                response = await send(session.get(f"/v1/images/{image_id}"))
                assert response.status == 200, (image_id, response)
                assert "status" not in response.body["response"], response
                assert history.tags[image_id] <= set(response.body["response"]["tags"]), (image_id, response)
            for image_id in history.deleted:
                assert (await send(session.get(f"/v1/images/{image_id}"))).status == 404

    async def stop_server(self, server: Server) -> None:
        await asyncio.to_thread(server.stop)

    async def start_server(self, server: Server) -> None:
        """Starts a server in a thread, because the clients run on the event loop."""
        program = server.program()
        server.process = start(program)
        await asyncio.to_thread(wait_ready, program, server.process)

    def kill_server(self, server: Server) -> None:
        """Kills a server and its child processes."""
        assert server.process is not None
        end_orphans(server.process)
        server.process.wait()

    def kill_all(self) -> None:
        for part in (self.serve, *self.workers):
            part.send(signal.SIGKILL)
        self.kill_server(self.postgres)
        self.kill_server(self.valkey)
        if self.object_store is not None:
            self.kill_server(self.object_store)


@asynccontextmanager
async def run_site(
    folder: Path,
    record: Callable[[str, object], None],
    clocks: Clocks = CORRECT_CLOCKS,
    *,
    on_s3: bool = False,
    **changes: object,
) -> AsyncIterator[Site]:
    """Runs a deployment within the block, with its images on the disk or in an object store. `record` is called with
    the name and value of each measurement.

    `changes` are settings.
    """
    with (
        temporary_folder() as servers,
        Postgres(servers / "pg") as postgres,
        Valkey(servers / "valkey") as valkey,
        contextlib.ExitStack() as stack,
    ):
        object_store = stack.enter_context(ObjectStoreServer(servers / "s3")) if on_s3 else None
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in (object_store.environment() if object_store else {}).items():
            environment.setenv(name, value)
        await create_schema(postgres.dsn)
        keys = await _make_accounts(postgres.dsn)
        settings = Settings(
            data=folder,
            storage=StoreUrl("s3", BUCKET) if on_s3 else servers / "storage",
            metrics_dir=folder / "metrics",
            database_url=postgres.dsn,
            redis_url=valkey.url,
        ).model_copy(update=changes)
        async with processes_of(settings, keys[0], folder / "logs") as daguerre:
            host, port = daguerre.listener.getsockname()
            base_url = f"http://{host}:{port}"
            site = Site(postgres, valkey, object_store, settings, keys, daguerre, base_url, record, clocks)
            # Otherwise a worker waits for the folders with time.sleep, which fails under libfaketime (EINVAL).
            open_setup(settings).prepare()
            site.start()
            await site.wait_ready()
            yield site


async def _make_accounts(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        for number, max_bytes in enumerate(_QUOTAS):
            await create_account(connection, f"account-{number}", max_bytes)
        return [await create_key(connection, f"account-{number}") for number in range(len(_QUOTAS))]
    finally:
        await connection.close()
