"""Measures what PgBouncer in transaction mode costs: the time from no row to a ready one, and of a page of a search.

    python -m bench.pooler

Starts its own PostgreSQL and the system's PgBouncer, and measures both ways in turns. Figures are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Awaitable, Callable
from functools import partial

from bench.generated import insert_images
from bench.search import PAGE, SEARCHES, median_ms, time_writes
from service.accounts.accounts import create_account
from service.database import Database
from service.ids import AccountId
from service.images.search import search_images
from service.launcher.embedded.postgres import Postgres
from service.schema.changes import create_schema
from tests.support.folders import temporary_folder
from tests.support.pgbouncer import pgbouncer

_IMAGES = 10_000
_TURNS = 10


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with (
        temporary_folder() as folder,
        Postgres(folder / "pg", settings={"autovacuum": "off"}) as postgres,
        pgbouncer(postgres.socket_folder, "daguerre", user="daguerre", password="bench", pool_size=3) as server,
    ):
        url = f"postgresql://daguerre:bench@127.0.0.1:{server.port}/pooled"
        asyncio.run(measure(postgres.dsn, url))


async def measure(direct: str, pooled: str) -> None:
    await create_schema(direct)
    async with Database.open(direct, connections=1) as database, database.connection() as connection:
        account_id = await create_account(connection, "bench", 1 << 60)
        await insert_images(connection, account_id, _IMAGES)
    print("milliseconds                direct   pooled")
    for batch_size in (1, 16):
        await compare(f"an image, {batch_size} at a time", direct, pooled, partial(time_write_ms, batch_size))
    await compare("a page of a search", direct, pooled, lambda url: time_page_ms(url, account_id))


async def compare(title: str, direct: str, pooled: str, measure_ms: Callable[[str], Awaitable[float]]) -> None:
    times: dict[str, list[float]] = {direct: [], pooled: []}
    for _ in range(_TURNS):
        for url, values in times.items():
            values.append(await measure_ms(url))
    medians = [statistics.median(values) for values in times.values()]
    print(f"{title:26} {medians[0]:7.2f}  {medians[1]:7.2f}   x{medians[1] / medians[0]:.1f}")


async def time_write_ms(batch_size: int, url: str) -> float:
    return await time_writes(url, batch_size, ("a", "b")) * 1000


async def time_page_ms(url: str, account_id: AccountId) -> float:
    async with Database.open(url, connections=1) as database, database.connection() as connection:
        return await median_ms(lambda: search_images(connection, account_id, SEARCHES["common tag"], None, PAGE + 1))


if __name__ == "__main__":
    main()
