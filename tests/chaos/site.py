"""A Daguerre of its own for each fault: PostgreSQL and Valkey with durable settings, the API behind its supervisor, and
two workers; and the invariants that hold after every fault.
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

from service.accounts.accounts import create_account, create_key
from service.config.settings import Settings
from service.database import apply_schema
from service.launcher.embedded.postgres import Postgres
from service.launcher.embedded.server import Server
from service.launcher.embedded.valkey import Valkey
from service.launcher.exit_reasons import wait_ready
from service.launcher.process import end_orphans, start
from service.storage.local.originals import LocalOriginals
from tests.chaos.load import ChaosClient, mixed_load, send
from tests.support.daguerre_processes import Daguerre, Part, processes_of
from tests.support.folders import temporary_folder
from tests.support.waiting import until

# The last one is full again and again.
_QUOTAS = (10 << 30, 10 << 30, 2 << 20)
_CLIENTS = 8
# From the end of a fault until every client is served again, and until nothing is left of it.
RECOVERY_S = 30
_SETTLING_S = 60
# What no process says, whatever is done to it.
UNEXPECTED = (
    "Traceback (most recent call last)",
    '"task.died"',
    '"request.failed"',
    "was never retrieved",
    "was never awaited",
    "Fatal Python error",
)


class Clocks(NamedTuple):
    """What the environment of each part says of its clock: nothing if that is right."""

    api: Mapping[str, str] | None = None
    workers: Sequence[Mapping[str, str] | None] = (None, None)


RIGHT_CLOCKS = Clocks()


@dataclass
class Site:
    postgres: Postgres
    valkey: Valkey
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

    async def wait_ready(self) -> None:
        await until(self._is_ready, RECOVERY_S)

    async def _is_ready(self) -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            return (await self.daguerre.get("/readyz")).status == 200
        return False

    @asynccontextmanager
    async def load(self) -> AsyncIterator[list[ChaosClient]]:
        """Clients at work before, while and after the block does its harm; then everything is as it was promised."""
        async with mixed_load(self.base_url, self.keys, clients=_CLIENTS) as clients:
            await self._wait_served(clients)
            yield clients
            began = time.monotonic()
            await self._wait_served(clients)
            self.record("served again after ms", round((time.monotonic() - began) * 1000))
        began = time.monotonic()
        await self.assert_invariants(clients)
        self.record("whole after ms", round((time.monotonic() - began) * 1000))
        self._record_answers(clients)

    def _record_answers(self, clients: Sequence[ChaosClient]) -> None:
        answers = sum((client.memory.answers for client in clients), Counter[str]())
        refused = {name: times for name, times in sorted(answers.items()) if name.startswith("503")}
        self.record("done", answers["200"] + answers["202"])
        self.record("503", ", ".join(f"{times} {name.partition(' ')[2]}" for name, times in refused.items()))
        self.record("unanswered", answers["none"])
        self.record("slowest ms", round(1000 * max(client.memory.slowest_s for client in clients)))

    async def _wait_served(self, clients: Sequence[ChaosClient]) -> None:
        """Until each client has got something done after now."""
        now = time.monotonic()
        await until(lambda: all(client.memory.succeeded_at > now for client in clients), RECOVERY_S)

    async def assert_invariants(self, clients: Sequence[ChaosClient]) -> None:
        for client in clients:
            assert client.memory.wrong == []
        await self._assert_whole({k: v for client in clients for k, v in client.memory.stored.items()})
        for client in clients:
            await self._assert_unchanged(client)
        for part in self.daguerre.parts:  # including those that were killed or stopped
            lines = part.log.read_text(errors="replace").splitlines()
            wrong = [line for line in lines if any(sign in line for sign in UNEXPECTED)]
            assert not wrong, f"{part.log.name}: {wrong[0]}"
        assert self.serve.is_alive()

    async def _assert_whole(self, stored: dict[str, bytes]) -> None:
        """By the command that operators run: at the latest a minute after the load."""
        lines = "".join(f"{image_id} {sha256.hex()}\n" for image_id, sha256 in stored.items())
        deadline = time.monotonic() + _SETTLING_S
        while True:
            found = await asyncio.to_thread(self._verify, lines)
            pending = await self._count_pending()
            if found.returncode == 0 and not pending:
                return
            assert time.monotonic() < deadline, f"{found.stdout}{found.stderr}, {pending} pending"
            await asyncio.sleep(1)

    def _verify(self, expected: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "service.cli", "verify", "--expect", "-"],
            env={
                "PATH": os.environ["PATH"],
                "DAGUERRE_DATABASE_URL": self.settings.database_url,
                "DAGUERRE_REDIS_URL": self.settings.redis_url,
                "DAGUERRE_STORAGE": str(self.settings.storage_folder),
            },
            input=expected,
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
        """Each client still gets its images, ready and with their tags, and none that it deleted."""
        memory = client.memory
        async with aiohttp.ClientSession(self.base_url, headers={"X-Api-Key": client.key}) as session:
            for image_id in memory.stored:
                shown = await send(session.get(f"/v1/images/{image_id}"))
                assert shown.status == 200, (image_id, shown)
                assert "status" not in shown.body["response"], shown
                assert memory.tags[image_id] <= set(shown.body["response"]["tags"]), (image_id, shown)
            for image_id in memory.deleted:
                assert (await send(session.get(f"/v1/images/{image_id}"))).status == 404

    async def stop_server(self, server: Server) -> None:
        await asyncio.to_thread(server.stop)

    async def start_server(self, server: Server) -> None:
        """The clients go on meanwhile."""
        program = server.program()
        server.process = start(program)
        await asyncio.to_thread(wait_ready, program, server.process)

    def kill_server(self, server: Server) -> None:
        """With no time to write anything, its children too."""
        assert server.process is not None
        end_orphans(server.process)
        server.process.wait()

    def kill_all(self) -> None:
        for part in (self.serve, *self.workers):
            part.send(signal.SIGKILL)
        self.kill_server(self.postgres)
        self.kill_server(self.valkey)


@asynccontextmanager
async def site_in(
    folder: Path, record: Callable[[str, object], None], clocks: Clocks = RIGHT_CLOCKS, **changes: object
) -> AsyncIterator[Site]:
    """`record` gets each measurement and its name."""
    with temporary_folder() as place, Postgres(place / "pg") as postgres, Valkey(place / "valkey") as valkey:
        await apply_schema(postgres.dsn)
        keys = await _make_accounts(postgres.dsn)
        settings = Settings(
            data=folder,
            storage=place / "storage",
            metrics_dir=folder / "metrics",
            database_url=postgres.dsn,
            redis_url=valkey.url,
        ).model_copy(update=changes)
        async with processes_of(settings, keys[0], folder / "logs") as daguerre:
            host, port = daguerre.listener.getsockname()
            site = Site(postgres, valkey, settings, keys, daguerre, f"http://{host}:{port}", record, clocks)
            # Else a worker waits for the folders by time.sleep, which fails under libfaketime (EINVAL).
            LocalOriginals(settings.storage_folder).prepare()
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
