"""What an image leaves behind and what its writes cost: bytes of rows and indexes, WAL, Redis, and the CPU of both
servers for batches of several sizes. `bench.capacity` computes with these figures.

Images get their rows as uploads to an object store do: the journal, the pending row, the end of the journal, and the
result of a real probe.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import usage
from bench.photographs import photograph
from bench.wrk import BenchError
from service.accounts.accounts import create_account
from service.accounts.counters import measure_drift
from service.database import Connection, Database
from service.ids import AccountId, ImageId
from service.images.models import NewImage
from service.images.pending import insert_pending, mark_ready, new_image_id
from service.images.probe import Probe
from service.launcher.embedded.postgres import Postgres
from service.launcher.embedded.valkey import Valkey
from service.queue import jobs
from service.queue.jobs import PROBE_QUEUE, WAKEUP_KEY, JobQueue, ProbeJob
from service.renditions.queries import NewRendition, insert_renditions, sum_bytes
from service.schema.changes import create_schema
from service.storage.interface import RenditionKey
from service.storage.object_store.journal import Journal
from worker import imaging
from worker.queue.claims import ClaimedJob, ClaimLimits, Claims, JobResult

IMAGES = 200_000
TAGS_PER_IMAGE = 2
RENDITIONS_PER_IMAGE = 3
BATCH_SIZES = (1, 16, 256)
_ACCOUNTS = 20
_TAGS = [f"tag-{number}" for number in range(1000)]
_LOAD_BATCH_SIZE = 256
_FIRST_VACUUM = 5000
_MAX_JOBS = 10_000
_JOBS_IN_FLIGHT = 16
_LEASE_S = 50  # below MAX_DEFER_S of worker/queue/claims.py, and longer than all claims take
# After a checkpoint, the first change of a page writes all of it to the WAL. With as few images as this, most pages of
# the indexes that are hit at random are changed for the first time, as always in a large table.
_IMAGES_AFTER_CHECKPOINT = 256
_TIMEOUT_S = 600
_RELOAD_S = 1  # the checkpointer passes the new setting on
# The size of the reply to a job: the metadata of an image with its EXIF and preview.
_REPLY = bytes(1000)


def run(folder: Path, *, rounds: int, seconds: float, sizes: Sequence[str], images: int = IMAGES) -> None:
    del sizes
    path = folder / "m.jpg"
    path.write_bytes(photograph("m"))
    imaging.prepare()
    probe = imaging.probe(str(path), max_pixels=1_000_000_000)
    with Postgres(folder / "pg", settings={"autovacuum": "off"}) as postgres, Valkey(folder / "valkey") as valkey:
        asyncio.run(create_schema(postgres.dsn))
        asyncio.run(_measure_database(postgres, probe, images, rounds, seconds / 4))
        asyncio.run(_measure_queue(valkey, rounds, min(images, _MAX_JOBS)))


@dataclass(frozen=True, slots=True)
class _Site:
    """An open database with its accounts. `roots` are the processes of the server."""

    database: Database
    connection: Connection
    accounts: Sequence[AccountId]
    roots: Sequence[int]
    probe: Probe

    def cpu_s(self) -> float:
        return usage.by_part(self.roots)["postgres"].cpu_s

    async def wal_bytes(self) -> int:
        return int(await self.connection.fetchval("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


async def _measure_database(postgres: Postgres, probe: Probe, images: int, rounds: int, seconds: float) -> None:
    assert postgres.process is not None
    async with (
        Database.open(postgres.dsn, connections=4, command_timeout_s=_TIMEOUT_S) as database,
        database.connection() as connection,
    ):
        accounts = [await create_account(connection, f"bench-{number}", 1 << 60) for number in range(_ACCOUNTS)]
        site = _Site(database, connection, accounts, [postgres.process.pid], probe)
        await _load(site, images)
        await _show_rows(site)
        await _show_periodic_jobs(site)
        await _show_writes(site, rounds, seconds)
        print(f"\nPrivate memory of a connection, median, MB: {_connection_mb(site.roots):.1f}")


async def _load(site: _Site, images: int) -> None:
    """Vacuums when the tables have grown by a fifth, as autovacuum does, which would disturb the measurements."""
    loaded, next_vacuum = 0, _FIRST_VACUUM
    while loaded < images:
        image_ids = await _write_images(site, _LOAD_BATCH_SIZE)
        for _ in range(RENDITIONS_PER_IMAGE):
            await _write_renditions(site, image_ids)
        loaded += len(image_ids)
        if loaded >= next_vacuum:
            await site.connection.execute("vacuum", timeout=_TIMEOUT_S)
            next_vacuum = round(loaded * 1.2)
    await site.connection.execute("vacuum analyze", timeout=_TIMEOUT_S)


async def _write_images(site: _Site, count: int) -> list[ImageId]:
    """Writes all rows of uploads to an object store, in one batch. Returns their ids."""
    new = [
        NewImage(
            new_image_id(),
            random.choice(site.accounts),
            random.randrange(10_000, 5_000_000),
            secrets.token_bytes(32),
            random.sample(_TAGS, TAGS_PER_IMAGE),
        )
        for _ in range(count)
    ]
    journal = Journal(site.database)
    await journal.begin({image.id: secrets.token_hex(16) for image in new})
    outcomes = await insert_pending(site.database, new)
    image_ids = [image.id for image, outcome in zip(new, outcomes, strict=True) if outcome is None]
    await journal.finish(image_ids)
    if None in await mark_ready(site.database, [(image_id, site.probe) for image_id in image_ids]):
        raise BenchError("an image was lost")
    return image_ids


async def _write_renditions(site: _Site, image_ids: Sequence[ImageId]) -> None:
    await insert_renditions(
        site.database,
        [NewRendition(RenditionKey(image_id, secrets.token_hex(16)), None, 20_000) for image_id in image_ids],
    )


# Tables include their TOAST, free space map and visibility map.
_RELATIONS = """
select relname, case relkind when 'i' then pg_relation_size(oid) else pg_table_size(oid) end as bytes
from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'i')
    and (relname ~ '^(images|image_tags|renditions)')
order by relkind = 'i', relname
"""


async def _show_rows(site: _Site) -> None:
    counts = {
        name: int(await site.connection.fetchval(f"select count(*) from {name}", timeout=_TIMEOUT_S))
        for name in ("images", "image_tags", "renditions")
    }
    rows = await site.connection.fetch(_RELATIONS)
    print(
        f"\nFootprint, rows: {counts['images']:,} images of {len(site.accounts)} accounts, each with {TAGS_PER_IMAGE}"
        f" tags, {RENDITIONS_PER_IMAGE} renditions and the metadata of the photograph m\n"
    )
    print("| table or index | rows of | bytes per row |\n|---|---|---|")
    for name, num_bytes in rows:
        table = max((table for table in counts if name.startswith(table)), key=len)
        if num_bytes / counts[table] >= 0.1:  # the others have only some rows
            print(f"| {name} | {table} | {num_bytes / counts[table]:.1f} |")


async def _show_periodic_jobs(site: _Site) -> None:
    """The two periodic statements that read every row."""
    images, renditions = [
        int(await site.connection.fetchval(f"select count(*) from {name}", timeout=_TIMEOUT_S))
        for name in ("images", "renditions")
    ]

    async def refresh_all() -> None:
        for account_id in site.accounts:
            await measure_drift(site.connection, account_id)

    print("\nFootprint, statements that read every row\n\n| statement | rows of | ns per row |\n|---|---|---|")
    for name, table, count, call in (
        ("refresh of the counters", "images", images, refresh_all),
        ("sum of the sizes of renditions", "renditions", renditions, lambda: sum_bytes(site.connection)),
    ):
        print(f"| {name} | {table} | {await _min_s(call) / count * 1e9:.0f} |")


async def _min_s(call: Callable[[], Awaitable[Any]]) -> float:
    times = []
    for _ in range(10):
        started = time.perf_counter()
        await call()
        times.append(time.perf_counter() - started)
    return min(times)


async def _show_writes(site: _Site, rounds: int, seconds: float) -> None:
    """CPU and WAL for batches of several sizes; first without the images of whole pages that follow a checkpoint.

    The minimum of the rounds counts, because other work of the machine only adds to the CPU time.
    """
    recent: list[ImageId] = []

    async def write_images(count: int) -> None:
        recent[:] = await _write_images(site, count)

    async def write_renditions(count: int) -> None:
        await _write_renditions(site, list(itertools.islice(itertools.cycle(recent), count)))

    print("\nFootprint, writes\n")
    print(
        "| rows | in one batch | PostgreSQL CPU ms per row | WAL bytes per row | WAL bytes per row after a checkpoint |"
    )
    print("|---|---|---|---|---|")
    for name, write in (("image", write_images), ("rendition", write_renditions)):
        for batch_size in BATCH_SIZES:
            await _set_full_page_writes(site, "off")
            cpu_ms, wal_bytes = min([await _time_writes(site, write, batch_size, seconds) for _ in range(rounds)])
            await _set_full_page_writes(site, "on")
            await site.connection.execute("checkpoint", timeout=_TIMEOUT_S)
            _, first_bytes = await _time_writes(site, write, batch_size, 0)
            print(f"| {name} | {batch_size} | {cpu_ms:.3f} | {wal_bytes:.0f} | {first_bytes:.0f} |")


async def _set_full_page_writes(site: _Site, value: str) -> None:
    await site.connection.execute(f"alter system set full_page_writes = {value}")
    await site.connection.execute("select pg_reload_conf()")
    await asyncio.sleep(_RELOAD_S)
    if await site.connection.fetchval("show full_page_writes") != value:
        raise BenchError("PostgreSQL did not load its settings")


async def _time_writes(
    site: _Site, write: Callable[[int], Awaitable[None]], batch_size: int, seconds: float
) -> tuple[float, float]:
    """Writes for this time, and at least a number of rows. Returns the CPU ms and the bytes of WAL for each."""
    cpu_s, wal_bytes, deadline, count = site.cpu_s(), await site.wal_bytes(), time.monotonic() + seconds, 0
    while count < _IMAGES_AFTER_CHECKPOINT or time.monotonic() < deadline:
        await write(batch_size)
        count += batch_size
    return (site.cpu_s() - cpu_s) * 1000 / count, (await site.wal_bytes() - wal_bytes) / count


def _connection_mb(roots: Sequence[int]) -> float:
    """Returns the median of the memory that only one server process of a connection uses."""
    sizes = []
    for pid in usage.pids_of("postgres", roots):
        command = (Path("/proc") / str(pid) / "cmdline").read_bytes()
        if command.startswith(b"postgres: daguerre"):
            rollup = (Path("/proc") / str(pid) / "smaps_rollup").read_text()
            sizes.append(sum(_kilobytes(line) for line in rollup.splitlines() if line.startswith("Private_")))
    return statistics.median(sizes) / 1024


def _kilobytes(line: str) -> int:
    return int(line.split()[1])


async def _measure_queue(valkey: Valkey, rounds: int, num_jobs: int) -> None:
    assert valkey.process is not None
    roots = [valkey.process.pid]
    async with _redis(valkey.url) as redis:
        queue, claims = JobQueue(redis), Claims(redis, PROBE_QUEUE, WAKEUP_KEY, lease_s=_LEASE_S)
        await queue.enqueue([])  # loads the script
        print(f"\nFootprint, queue: {num_jobs:,} jobs, {_JOBS_IN_FLIGHT} clients\n")
        print("| jobs in one script | Valkey CPU ms per job: enqueue | claim | finish | all |\n|---|---|---|---|---|")
        job_bytes = 0.0
        for batch_size in BATCH_SIZES[:2]:
            costs = [await _time_jobs(roots, redis, queue, claims, batch_size, num_jobs) for _ in range(rounds)]
            enqueue_ms, claim_ms, finish_ms, job_bytes = (min(values) for values in zip(*costs, strict=True))
            total_ms = enqueue_ms + claim_ms + finish_ms
            print(f"| {batch_size} | {enqueue_ms:.3f} | {claim_ms:.3f} | {finish_ms:.3f} | {total_ms:.3f} |")
        print(f"\nMemory of a waiting job in Valkey, bytes: {job_bytes:.0f}")


async def _time_jobs(
    roots: Sequence[int], redis: Any, queue: JobQueue, claims: Claims, batch_size: int, num_jobs: int
) -> tuple[float, float, float, float]:
    """Returns the CPU ms of Valkey for a job: to enqueue, claim and finish it; and the bytes of a waiting job."""
    before = int((await redis.info("memory"))["used_memory"])
    probe_jobs = [
        ProbeJob(new_image_id(), AccountId(number % _ACCOUNTS), "daguerre:replies:0123456789abcdef", "bench")
        for number in range(num_jobs)
    ]
    enqueue_ms = await _time_queue(roots, _enqueue_all(queue, probe_jobs, batch_size)) / num_jobs
    job_bytes = (int((await redis.info("memory"))["used_memory"]) - before) / num_jobs
    claimed: list[ClaimedJob] = []
    claim_ms = await _time_queue(roots, _claim_all(claims, claimed, batch_size, num_jobs)) / num_jobs
    finish_ms = await _time_queue(roots, _finish_all(claims, claimed, batch_size)) / num_jobs
    return enqueue_ms, claim_ms, finish_ms, job_bytes


@contextlib.asynccontextmanager
async def _redis(url: str) -> AsyncIterator[Any]:
    redis = jobs.open_redis(url)
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


async def _time_queue(roots: Sequence[int], work: Awaitable[None]) -> float:
    """Returns the CPU ms of Valkey."""
    before = usage.by_part(roots)["valkey"].cpu_s
    await work
    return (usage.by_part(roots)["valkey"].cpu_s - before) * 1000


async def _enqueue_all(queue: JobQueue, probe_jobs: Sequence[ProbeJob], batch_size: int) -> None:
    batches = _split(probe_jobs, batch_size)
    await _in_flight(lambda: _next(batches, queue.enqueue))


async def _claim_all(claims: Claims, claimed: list[ClaimedJob], batch_size: int, num_jobs: int) -> None:
    """One worker claims; its commands cannot be concurrent."""
    deadline = time.monotonic() + _TIMEOUT_S
    while len(claimed) < num_jobs and time.monotonic() < deadline:
        claimed += await claims.claim(batch_size, ClaimLimits(batch_size), wait_s=0)


async def _finish_all(claims: Claims, claimed: Sequence[ClaimedJob], batch_size: int) -> None:
    batches = _split([JobResult(job.id, _REPLY) for job in claimed], batch_size)
    await _in_flight(lambda: _next(batches, claims.finish))


def _split(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))


async def _next(batches: Iterator[Sequence[Any]], send: Callable[[Sequence[Any]], Awaitable[Any]]) -> None:
    for batch in batches:
        await send(batch)


async def _in_flight(make_client: Callable[[], Awaitable[None]]) -> None:
    await asyncio.gather(*(make_client() for _ in range(_JOBS_IN_FLIGHT)))
