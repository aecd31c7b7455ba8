"""Measures the time of search pages, and the time that the indexes of the search add to an upload.

    python -m bench.search [10000 300000]    the number of images in the account, one table for each

Starts its own PostgreSQL. For each search it prints the median milliseconds of the first page of 20 images, and of a
page from the middle of the account, without statistics and after ANALYZE. The connection has run the search before.
Below each table are the microseconds per image for the insert and for writing the result of its probe, one image at a
time and in batches of 16, with and without the indexes and triggers of the search.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg

from bench.generated import PER_MINUTE, START, insert_images, vacuum
from service.accounts.accounts import create_account
from service.database import Connection, Database
from service.ids import AccountId, ImageId
from service.images.models import NewImage
from service.images.pending import insert_pending, mark_ready, new_image_id
from service.images.probe import Probe
from service.images.search import Filters, Position, search_images
from service.launcher.embedded.postgres import Postgres
from service.schema.changes import create_schema
from tests.support.folders import temporary_folder

PAGE = 20
PROBE = Probe("jpeg", 2000, 1500, 1, 1, False, {"Make": "x" * 300}, bytes(480))

SEARCHES = {
    "everything": Filters(),
    "common tag": Filters(tags=["common"]),
    "rare tag": Filters(tags=["rare"]),
    "common and rare tag": Filters(tags=["common", "rare"]),
    "two common tags": Filters(tags=["common", "even"]),
    "two disjoint tags": Filters(tags=["even", "odd"]),
    "two disjoint periods": Filters(tags=["early", "late"]),
    "common format": Filters(format="jpeg"),
    "rare format": Filters(format="gif"),
    "common tag, rare format": Filters(tags=["common"], format="gif"),
    "rare tag, common format": Filters(tags=["rare"], format="jpeg"),
    "unknown sha256": Filters(sha256=bytes(32)),
    "one hour": Filters(created_after=START, created_before=START + timedelta(hours=1)),
    "rare tag in one hour": Filters(tags=["rare"], created_after=START, created_before=START + timedelta(hours=1)),
}

# Brings the schema back to its state before the search was added.
_REMOVE_SEARCH = """
drop trigger images_tags_inserted on images;
drop trigger images_tags_updated on images;
drop trigger images_tags_deleted on images;
drop index images_in_order, images_by_format, images_by_sha256;
create index images_of_account on images (account_id) include (size) where state <> 'failed';
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=int, default=[10_000, 300_000])
    options = parser.parse_args()
    for images in options.images:
        with temporary_folder() as folder, Postgres(folder / "pg", settings={"autovacuum": "off"}) as postgres:
            asyncio.run(measure(postgres, images))


async def measure(postgres: Postgres, images: int) -> None:
    await create_schema(postgres.dsn)
    async with Database.open(postgres.dsn, connections=1) as database, database.connection() as connection:
        account_id = await create_account(connection, "bench", 1 << 60)
        for owner in (account_id, await create_account(connection, "neighbour", 1 << 60)):
            await insert_images(connection, owner, images)
        print(f"{images:<26} without statistics     after ANALYZE\n{'images':24}   first halfway     first halfway")
        before = [await time_pages(connection, account_id, filters, images) for filters in SEARCHES.values()]
        await vacuum(connection)
        after = [await time_pages(connection, account_id, filters, images) for filters in SEARCHES.values()]
    for name, (first, deep), (first_analyzed, deep_analyzed) in zip(SEARCHES, before, after, strict=True):
        print(f"{name:24} {first:7.2f} {deep:7.2f}   {first_analyzed:7.2f} {deep_analyzed:7.2f}")
    await compare_writes(postgres)


async def time_pages(
    connection: Connection, account_id: AccountId, filters: Filters, images: int
) -> tuple[float, float]:
    halfway = Position(START + timedelta(minutes=images // PER_MINUTE // 2), ImageId(""))
    if filters.created_before is not None:
        halfway = Position(START + timedelta(minutes=30), ImageId(""))
    return (
        await median_ms(lambda: search_images(connection, account_id, filters, None, PAGE + 1)),
        await median_ms(lambda: search_images(connection, account_id, filters, halfway, PAGE + 1)),
    )


async def median_ms(call: Callable[[], Awaitable[Any]]) -> float:
    times = []
    for _ in range(15):
        started = time.perf_counter()
        await call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


async def compare_writes(postgres: Postgres) -> None:
    """Measures writes to two copies of the database in turns, so that other work of the machine affects both."""
    admin = await asyncpg.connect(postgres.dsn_of("postgres"))
    for name in ("with_search", "without_search"):
        await admin.execute(f"create database {name} template daguerre", timeout=600)
    await admin.close()
    connection = await asyncpg.connect(postgres.dsn_of("without_search"))
    await connection.execute(_REMOVE_SEARCH, timeout=600)
    await connection.close()
    print("\nmicroseconds per image          with    without")
    for tags in ((), ("a", "b", "c")):
        for batch_size in (1, 16):
            times_by_database: dict[str, list[float]] = {"with_search": [], "without_search": []}
            for _ in range(10):
                for name, times in times_by_database.items():
                    times.append(await time_writes(postgres.dsn_of(name), batch_size, tags))
            medians = [statistics.median(times) * 1e6 for times in times_by_database.values()]
            title = f"{len(tags)} tags, {batch_size} at a time"
            print(f"{title:24} {medians[0]:11.1f} {medians[1]:10.1f}   {medians[0] / medians[1] - 1:+.1%}")
    print()


async def time_writes(dsn: str, batch_size: int, tags: tuple[str, ...]) -> float:
    """Returns the seconds per image from no row to a ready one."""
    rounds = 300 if batch_size == 1 else 60
    async with Database.open(dsn, connections=1) as database:
        account_id = AccountId(1)
        await write(database, account_id, batch_size, tags)
        started = time.perf_counter()
        for _ in range(rounds):
            await write(database, account_id, batch_size, tags)
        return (time.perf_counter() - started) / rounds / batch_size


async def write(database: Database, account_id: AccountId, batch_size: int, tags: tuple[str, ...]) -> None:
    new = [NewImage(new_image_id(), account_id, 1000, secrets.token_bytes(32), tags) for _ in range(batch_size)]
    await insert_pending(database, new)
    if None in await mark_ready(database, [(image.id, PROBE) for image in new]):
        raise SystemExit("an image was lost")


if __name__ == "__main__":
    main()
