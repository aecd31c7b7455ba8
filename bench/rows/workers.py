"""How many jobs a second 1, 2 and 4 workers finish, with a stand-in for the probe: what the queue itself allows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import turns, usage
from bench.wrk import BenchError
from service.accounts.accounts import create_account
from service.database import Connection, Database, apply_schema
from service.ids import AccountId, ImageId
from service.images.models import NewImage
from service.images.pending import insert_pending
from service.launcher.embedded.postgres import Postgres
from service.launcher.embedded.valkey import Valkey
from service.launcher.process import Program, start, stop
from service.queue import jobs
from service.queue.jobs import JobQueue, ProbeJob
from service.storage.local.originals import LocalOriginals

WORKERS = (1, 2, 4)
JOBS = 20_000
_ROOT = Path(__file__).parents[2]
_GROUP = 1000
_LOOK_S = 0.02
_TIMEOUT_S = 300
_START_TIMEOUT_S = 30
# With less of the cores at work than this, something else is what holds the queue up.
_USED_UP = 0.9


@dataclass(frozen=True, slots=True)
class Turn:
    """So many jobs done by some workers once. `busy` counts cores; `cpu_ms` is what a job cost in each part."""

    rate: float
    busy: float
    cpu_ms: dict[str, float]


def run(folder: Path, *, rounds: int, seconds: float, sizes: Sequence[str], count: int = JOBS) -> None:
    del seconds, sizes
    storage = LocalOriginals(folder / "data" / "storage")
    storage.prepare()
    with Postgres(folder / "pg") as postgres, Valkey(folder / "valkey") as valkey:
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")},
            "PYTHONPATH": str(_ROOT),
            "DAGUERRE_DATA": str(folder / "data"),
            "DAGUERRE_METRICS_DIR": str(folder / "metrics"),
            "DAGUERRE_DATABASE_URL": postgres.dsn,
            "DAGUERRE_REDIS_URL": valkey.url,
            "DAGUERRE_LOG_LEVEL": "warning",
        }
        asyncio.run(apply_schema(postgres.dsn))
        servers = [server.process.pid for server in (postgres, valkey) if server.process is not None]
        found: dict[int, list[Turn]] = {workers: [] for workers in WORKERS}
        for _ in range(rounds):
            for workers, taken in found.items():
                with _workers(workers, env, folder) as pids:
                    taken.append(asyncio.run(_take(postgres.dsn, valkey.url, storage, [*servers, *pids], count)))
                os.sync()
    _show(found, count)


@contextlib.contextmanager
def _workers(count: int, env: Mapping[str, str], folder: Path) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        pids = []
        for number in range(count):
            argv = [sys.executable, "-m", "bench.stand_in_worker"]
            program = Program(name=f"Worker {number}", argv=argv, env=env, log=folder / f"worker-{number}.log")
            process = start(program)
            stack.callback(stop, program, process)
            pids.append(process.pid)
        asyncio.run(_wait_alive(env["DAGUERRE_REDIS_URL"], count, folder))
        yield pids


async def _wait_alive(redis_url: str, count: int, folder: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    async with _queue(redis_url) as queue:
        while await queue.count_workers() < count:
            if time.monotonic() > deadline:
                raise BenchError(f"the workers did not start: {(folder / 'worker-0.log').read_text()[-500:]}")
            await asyncio.sleep(0.1)


async def _take(dsn: str, redis_url: str, storage: LocalOriginals, roots: Sequence[int], count: int) -> Turn:
    async with Database.open(dsn, connections=1) as database, _queue(redis_url) as queue:
        async with database.connection() as connection:
            account_id = await create_account(connection, secrets.token_hex(8), 1 << 60)
        image_ids = await _prepare(database, account_id, storage, count)
        before, own_before, started = usage.by_part(roots), time.process_time(), time.perf_counter()
        for place in range(0, count, _GROUP):
            group = image_ids[place : place + _GROUP]
            await queue.enqueue([ProbeJob(image_id, account_id, "", "bench") for image_id in group])
        async with database.connection() as connection:
            await _wait_ready(connection, started + _TIMEOUT_S)
        elapsed, own_s, after = time.perf_counter() - started, time.process_time() - own_before, usage.by_part(roots)
    for image_id in image_ids:
        storage.path(image_id).unlink()
    cpu_s = {part: now.cpu_s - before.get(part, usage.Usage()).cpu_s for part, now in after.items()}
    cpu_s["benchmark"] = own_s
    return Turn(
        count / elapsed,
        sum(cpu_s.values()) / elapsed,
        {part: each * 1000 / count for part, each in cpu_s.items()},
    )


async def _prepare(database: Database, account_id: AccountId, storage: LocalOriginals, count: int) -> list[ImageId]:
    """Pending images with files, as uploads leave them; the files are empty. Nobody has enqueued them yet."""
    image_ids = [ImageId(secrets.token_hex(6)) for _ in range(count)]
    for image_id in image_ids:
        storage.path(image_id).touch()
    for place in range(0, count, _GROUP):
        new = [NewImage(each, account_id, 1000, bytes(32), ()) for each in image_ids[place : place + _GROUP]]
        await insert_pending(database, new)
    return image_ids


async def _wait_ready(connection: Connection, deadline: float) -> None:
    while await connection.fetchval("select exists (select from images where state = 'pending')"):
        if time.perf_counter() > deadline:
            raise BenchError("the workers did not finish in time")
        await asyncio.sleep(_LOOK_S)


@contextlib.asynccontextmanager
async def _queue(redis_url: str) -> AsyncIterator[JobQueue]:
    redis = jobs.open_redis(redis_url)
    try:
        yield JobQueue(redis)
    finally:
        await redis.aclose(close_connection_pool=True)


def _show(found: Mapping[int, Sequence[Turn]], count: int) -> None:
    print(f"\nWorkers: {count:,} jobs, a stand-in for the probe\n")
    print("| workers | jobs/s, median (least to most) | CPU ms a job | cores busy |\n|---|---|---|---|")
    for workers, taken in found.items():
        cpu = ", ".join(f"{part} {cost:.2f}" for part, cost in sorted(_costs(taken).items()) if cost >= 0.005)
        print(f"| {workers} | {turns.spread([turn.rate for turn in taken], 0)} | {cpu} | {_busy(taken):.2f} |")
    print(f"\n{_explain(found)}")


def _explain(found: Mapping[int, Sequence[Turn]]) -> str:
    cores = len(os.sched_getaffinity(0))
    full = [workers for workers, taken in found.items() if _busy(taken) >= _USED_UP * cores]
    if not full:
        most = max(found)
        return (
            f"It does not saturate the machine: {most} workers keep {_busy(found[most]):.1f} of {cores} cores busy,"
            " and wait for the rest of the time."
        )
    costs = _costs(found[full[0]])
    part = max(costs, key=lambda name: costs[name])
    return (
        f"It saturates at {full[0]} worker{'s' if full[0] > 1 else ''}: {_busy(found[full[0]]):.1f} of {cores} cores"
        f" are busy, {costs[part] / sum(costs.values()):.0%} of that with {part}."
    )


def _costs(taken: Sequence[Turn]) -> dict[str, float]:
    parts = {part for turn in taken for part in turn.cpu_ms}
    return {part: statistics.median(turn.cpu_ms.get(part, 0) for turn in taken) for part in parts}


def _busy(taken: Sequence[Turn]) -> float:
    return statistics.median(turn.busy for turn in taken)
