"""Prints the query plans of requests and periodic jobs, with many images in the database.

    python -m bench.plans [1000000]

Starts its own PostgreSQL and prints the plan with which each statement of the service was executed.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from bench.generated import PER_MINUTE, START, insert_images, vacuum
from service.accounts.accounts import create_account
from service.accounts.counters import list_stale, refresh_counters
from service.database import Database
from service.deletion.removals import list_removals
from service.ids import ImageId
from service.images.idempotency import find_by_key, find_used_keys, release_expired_keys
from service.images.pending import purge_failed
from service.images.queries import ImageQuery, find_images, list_existing, list_overdue
from service.images.search import Filters, Position, search_images
from service.images.updates import change_tags, delete_images
from service.launcher.embedded.postgres import Postgres
from service.schema.changes import create_schema
from tests.support.folders import temporary_folder

# The plan that was executed. EXPLAIN might show another one, because it plans for the given parameter values.
LOG_PLANS = """
load 'auto_explain';
set auto_explain.log_min_duration = 0;
set auto_explain.log_analyze = on;
set auto_explain.log_buffers = on;
set auto_explain.log_timing = off;
set client_min_messages = log
"""
_PAGE = 10
# The images of the last day have an idempotency key.
_SET_IDEMPOTENCY_KEYS = "update images set idempotency_key = id where created_at > $1"


def _print_plan(_: object, message: Any) -> None:
    _, _, plan = message.message.partition("\nQuery Parameters: ")
    print(plan.partition("\n")[2] + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=int, default=1_000_000)
    options = parser.parse_args()
    with temporary_folder() as folder, Postgres(folder / "pg") as postgres:
        asyncio.run(explain(postgres, options.images))


async def explain(postgres: Postgres, images: int) -> None:
    await create_schema(postgres.dsn)
    opened = Database.open(postgres.dsn, connections=1, command_timeout_s=600)
    async with opened as database, database.connection() as connection:
        account_id = await create_account(connection, "bench", 1 << 60)
        await insert_images(connection, account_id, images)
        newest = START + timedelta(minutes=images // PER_MINUTE)
        await connection.execute(_SET_IDEMPOTENCY_KEYS, newest - timedelta(days=1))
        await vacuum(connection)
        deep = Position(newest - timedelta(minutes=min(1000 * _PAGE, images // 2) // PER_MINUTE), ImageId(""))
        image_id = ImageId(
            await connection.fetchval("select id from images order by id offset $1 limit 1", images // 2)
        )
        statements: dict[str, Callable[[], Awaitable[Any]]] = {
            "metadata": lambda: find_images(connection, [ImageQuery(image_id, account_id)]),
            "list by a tag, first page": lambda: search_images(
                connection, account_id, Filters(tags=["common"]), None, _PAGE + 1
            ),
            "list by a tag, thousandth page": lambda: search_images(
                connection, account_id, Filters(tags=["common"]), deep, _PAGE + 1
            ),
            "search by several tags": lambda: search_images(
                connection, account_id, Filters(tags=["common", "even", "rare"]), None, _PAGE + 1
            ),
            "add_tags": lambda: change_tags(connection, [image_id], account_id, add=["new"]),
            "delete": lambda: delete_images(connection, [image_id], account_id),
            "Idempotency-Key": lambda: find_by_key(connection, account_id, "a-key"),
            "Idempotency-Keys of a batch": lambda: find_used_keys(connection, [(account_id, "a-key")] * 20),
            "sweep, overdue": lambda: list_overdue(connection, 10, 500),
            "sweep, abandoned": lambda: list_existing(connection, [image_id]),
            "sweep, removals": lambda: list_removals(connection, 30, 500),
            "sweep, failures": lambda: purge_failed(connection, 86400, 500),
            "sweep, keys": lambda: release_expired_keys(connection, 500),
            "refresh, stale accounts": lambda: list_stale(connection, 1000),
            "refresh, one account": lambda: refresh_counters(connection, account_id),
        }
        for run in statements.values():  # first without a plan, because asyncpg queries the types
            transaction = connection.transaction()
            await transaction.start()
            await run()
            await transaction.rollback()
        await connection.execute(LOG_PLANS)
        connection.add_log_listener(_print_plan)
        for name, run in statements.items():
            print(f"\n## {name}\n")
            await run()
        connection.remove_log_listener(_print_plan)


if __name__ == "__main__":
    main()
