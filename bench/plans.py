"""The query plans behind the requests and periodic jobs, with many images in the database.

    python -m bench.plans [1000000]

Starts a PostgreSQL of its own and prints EXPLAIN (ANALYZE, BUFFERS) of each statement as the service sends it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, cast

from bench.generated import PER_MINUTE, START, fill, settle
from service.accounts import create_account, list_stale, refresh_counters
from service.database import Connection, Database, apply_schema
from service.embedded.folder import scratch
from service.embedded.postgres import Postgres
from service.ids import ImageId
from service.images.deletions import delete_images
from service.images.leftovers import list_existing, list_overdue, purge_failed
from service.images.lookups import Wanted, find_images
from service.images.search import Filters, Position, search_images
from service.images.tags import change_tags
from service.removals import list_removals

_EXPLAIN = "explain (analyze, buffers, costs off, timing off, summary off) "
_PAGE = 10


class Explaining:
    """A connection that prints the plan of each statement before it runs it; and takes back what EXPLAIN did."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        await self._explain(query, args)
        return list(await self._connection.fetch(query, *args))

    async def fetchrow(self, query: str, *args: Any) -> Any:
        await self._explain(query, args)
        return await self._connection.fetchrow(query, *args)

    async def execute(self, query: str, *args: Any) -> str:
        await self._explain(query, args)
        return await self._connection.execute(query, *args)

    async def _explain(self, query: str, args: tuple[Any, ...]) -> None:
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            plan = await self._connection.fetch(_EXPLAIN + query, *args)
        finally:
            await transaction.rollback()
        print("\n".join(row[0] for row in plan) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=int, default=1_000_000)
    options = parser.parse_args()
    with scratch() as folder, Postgres(folder / "pg") as postgres:
        asyncio.run(explain(postgres, options.images))


async def explain(postgres: Postgres, images: int) -> None:
    await apply_schema(postgres.dsn)
    opened = Database.open(postgres.dsn, connections=1, command_timeout_s=600)
    async with opened as database, database.connection() as connection:
        account_id = await create_account(connection, "bench", 1 << 60)
        await fill(connection, account_id, images)
        await settle(connection)
        newest = START + timedelta(minutes=images // PER_MINUTE)
        deep = Position(newest - timedelta(minutes=min(1000 * _PAGE, images // 2) // PER_MINUTE), ImageId(""))
        image_id = ImageId(
            await connection.fetchval("select id from images order by id offset $1 limit 1", images // 2)
        )
        explaining = cast("Connection", Explaining(connection))
        statements: dict[str, Callable[[], Awaitable[Any]]] = {
            "metadata": lambda: find_images(explaining, [Wanted(image_id, account_id)]),
            "list by a tag, first page": lambda: search_images(
                explaining, account_id, Filters(tags=["common"]), None, _PAGE + 1
            ),
            "list by a tag, thousandth page": lambda: search_images(
                explaining, account_id, Filters(tags=["common"]), deep, _PAGE + 1
            ),
            "search by several tags": lambda: search_images(
                explaining, account_id, Filters(tags=["common", "even", "rare"]), None, _PAGE + 1
            ),
            "add_tags": lambda: change_tags(explaining, [image_id], account_id, add=["new"]),
            "delete": lambda: delete_images(explaining, [image_id], account_id),
            "sweep, overdue": lambda: list_overdue(explaining, 10, 500),
            "sweep, abandoned": lambda: list_existing(explaining, [image_id]),
            "sweep, removals": lambda: list_removals(explaining, 30, 500),
            "sweep, failures": lambda: purge_failed(explaining, 86400, 500),
            "refresh, stale accounts": lambda: list_stale(explaining, 1000),
            "refresh, one account": lambda: refresh_counters(explaining, account_id),
        }
        for name, run in statements.items():
            print(f"\n## {name}\n")
            await run()


if __name__ == "__main__":
    main()
