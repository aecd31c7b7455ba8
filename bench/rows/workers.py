"""The jobs per second of 1, 2 and 4 workers with a stub for the probe: the throughput of the queue itself."""

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
from service.database import Connection, Database
from service.ids import AccountId, ImageId
from service.images.models import NewImage
from service.images.pending import insert_pending
from service.launcher.embedded.postgres import Postgres
from service.launcher.embedded.valkey import Valkey
from service.launcher.process import Program, start, stop
from service.queue import jobs
from service.queue.jobs import JobQueue, ProbeJob
from service.schema.changes import create_schema
from service.storage.local.originals import LocalOriginals

WORKERS = (1, 2, 4)
JOBS = 20_000
_ROOT = Path(__file__).parents[2]
_BATCH_SIZE = 1000
_POLL_INTERVAL_S = 0.02
_TIMEOUT_S = 300
_START_TIMEOUT_S = 30
# With a lower share of the cores busy, something other than the CPU is the bottleneck.
_SATURATED = 0.9


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement. `busy` is the mean number of busy cores; `cpu_ms` is the CPU time per job of each part."""

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
        asyncio.run(create_schema(postgres.dsn))
        servers = [server.process.pid for server in (postgres, valkey) if server.process is not None]
        turns_by_workers: dict[int, list[Turn]] = {workers: [] for workers in WORKERS}
        for _ in range(rounds):
            for workers, measured in turns_by_workers.items():
                with _workers(workers, env, folder) as pids:
                    measured.append(asyncio.run(_measure(postgres.dsn, valkey.url, storage, [*servers, *pids], count)))
                os.sync()
    _show(turns_by_workers, count)


@contextlib.contextmanager
def _workers(count: int, env: Mapping[str, str], folder: Path) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        pids = []
        for number in range(count):
            argv = [sys.executable, "-m", "bench.stub_worker"]
            program = Program(name=f"Worker {number}", argv=argv, env=env, log=folder / f"worker-{number}.log")
            process = start(program)
            stack.callback(stop, program, process)
            pids.append(process.pid)
        asyncio.run(_wait_started(env["DAGUERRE_REDIS_URL"], count, folder))
        yield pids


async def _wait_started(redis_url: str, count: int, folder: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    async with _queue(redis_url) as queue:
        while await queue.count_workers() < count:
            if time.monotonic() > deadline:
                raise BenchError(f"the workers did not start: {(folder / 'worker-0.log').read_text()[-500:]}")
            await asyncio.sleep(0.1)


async def _measure(dsn: str, redis_url: str, storage: LocalOriginals, roots: Sequence[int], count: int) -> Turn:
    async with Database.open(dsn, connections=1) as database, _queue(redis_url) as queue:
        async with database.connection() as connection:
            account_id = await create_account(connection, secrets.token_hex(8), 1 << 60)
        image_ids = await _prepare(database, account_id, storage, count)
        before, own_cpu_before, started = usage.by_part(roots), time.process_time(), time.perf_counter()
        for first in range(0, count, _BATCH_SIZE):
            batch = image_ids[first : first + _BATCH_SIZE]
            await queue.enqueue([ProbeJob(image_id, account_id, "", "bench") for image_id in batch])
        async with database.connection() as connection:
            await _wait_ready(connection, started + _TIMEOUT_S)
        elapsed, own_cpu_s, after = (
            time.perf_counter() - started,
            time.process_time() - own_cpu_before,
            usage.by_part(roots),
        )
    for image_id in image_ids:
        storage.path(image_id).unlink()
    cpu_s = {part: now.cpu_s - before.get(part, usage.Usage()).cpu_s for part, now in after.items()}
    cpu_s["benchmark"] = own_cpu_s
    return Turn(
        count / elapsed,
        sum(cpu_s.values()) / elapsed,
        {part: each * 1000 / count for part, each in cpu_s.items()},
    )


async def _prepare(database: Database, account_id: AccountId, storage: LocalOriginals, count: int) -> list[ImageId]:
    """Inserts pending images with empty files, as if just uploaded and not yet enqueued. Returns their ids."""
    image_ids = [ImageId(secrets.token_hex(6)) for _ in range(count)]
    for image_id in image_ids:
        storage.path(image_id).touch()
    for first in range(0, count, _BATCH_SIZE):
        new = [NewImage(each, account_id, 1000, bytes(32), ()) for each in image_ids[first : first + _BATCH_SIZE]]
        await insert_pending(database, new)
    return image_ids


async def _wait_ready(connection: Connection, deadline: float) -> None:
    while await connection.fetchval("select exists (select from images where state = 'pending')"):
        if time.perf_counter() > deadline:
            raise BenchError(f"the workers did not finish in {_TIMEOUT_S} s")
        await asyncio.sleep(_POLL_INTERVAL_S)


@contextlib.asynccontextmanager
async def _queue(redis_url: str) -> AsyncIterator[JobQueue]:
    redis = jobs.open_redis(redis_url)
    try:
        yield JobQueue(redis)
    finally:
        await redis.aclose(close_connection_pool=True)


def _show(turns_by_workers: Mapping[int, Sequence[Turn]], count: int) -> None:
    print(f"\nWorkers: {count:,} jobs, with a stub for the probe\n")
    print("| workers | jobs/s, median (min to max) | CPU ms per job | cores busy |\n|---|---|---|---|")
    for workers, measured in turns_by_workers.items():
        cpu = ", ".join(
            f"{part} {cost:.2f}" for part, cost in sorted(_median_cpu_ms(measured).items()) if cost >= 0.005
        )
        rates = turns.format_spread([turn.rate for turn in measured], 0)
        print(f"| {workers} | {rates} | {cpu} | {_busy(measured):.2f} |")
    print(f"\n{_explain(turns_by_workers)}")


def _explain(turns_by_workers: Mapping[int, Sequence[Turn]]) -> str:
    cores = len(os.sched_getaffinity(0))
    saturated = [workers for workers, measured in turns_by_workers.items() if _busy(measured) >= _SATURATED * cores]
    if not saturated:
        largest = max(turns_by_workers)
        return (
            f"It does not saturate the machine: {largest} workers keep {_busy(turns_by_workers[largest]):.1f} of"
            f" {cores} cores busy, and are idle for the rest of the time."
        )
    workers = saturated[0]
    cpu_ms = _median_cpu_ms(turns_by_workers[workers])
    part = max(cpu_ms, key=lambda name: cpu_ms[name])
    return (
        f"It saturates at {workers} worker{'s' if workers > 1 else ''}: {_busy(turns_by_workers[workers]):.1f} of"
        f" {cores} cores are busy, {cpu_ms[part] / sum(cpu_ms.values()):.0%} of that with {part}."
    )


def _median_cpu_ms(measured: Sequence[Turn]) -> dict[str, float]:
    parts = {part for turn in measured for part in turn.cpu_ms}
    return {part: statistics.median(turn.cpu_ms.get(part, 0) for turn in measured) for part in parts}


def _busy(measured: Sequence[Turn]) -> float:
    return statistics.median(turn.busy for turn in measured)
