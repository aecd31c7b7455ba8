"""Checks of the tables and their rows: pending images, counters, and expected images."""

from __future__ import annotations

from collections.abc import Mapping

from service.accounts.accounts import Account, AccountUnknown, list_accounts
from service.accounts.counters import has_grown_since_quota, measure_drift, refresh_counters
from service.config.values import format_size
from service.ids import ImageId
from service.images.integrity import find_sha256, read_table
from service.images.queries import OverdueImage, list_overdue
from service.schema.definition import Schema
from service.verification.context import BATCH_SIZE, DATABASE_ERRORS, Context, Problem, Problems

_OVERDUE_S = 60  # the sweep enqueues them earlier


async def check_tables(context: Context) -> Problems:
    """Checks that PostgreSQL can read every table."""
    for table in Schema.load().tables:
        try:
            async with context.database.connection() as connection:
                await read_table(connection, table)
        except DATABASE_ERRORS as error:
            if not await context.is_database_available():
                raise
            yield Problem(f"table {table}", f"it cannot be read: {await context.explain(error)}")


async def check_pending(context: Context) -> Problems:
    """Checks that every image is processed within a minute. With `repair`, the others are enqueued."""
    last: OverdueImage | None = None
    while overdue := await _list_overdue(context, last):
        last = overdue[-1]
        if context.options.repair:
            await context.queue.enqueue_again({image.id: image.account_id for image in overdue})
        for image in overdue:
            what = f"no worker has processed it since {image.created_at:%Y-%m-%d %H:%M:%S} UTC"
            yield Problem(f"image {image.id}", what, "enqueued" if context.options.repair else "")


async def _list_overdue(context: Context, after: OverdueImage | None) -> list[OverdueImage]:
    async with context.database.connection() as connection:
        return await list_overdue(connection, _OVERDUE_S, BATCH_SIZE, after)


async def check_accounts(context: Context) -> Problems:
    """Checks that the counters are the sums of what is stored, and that no account is over its quota."""
    async with context.database.connection() as connection:
        accounts = await list_accounts(connection)
    for account in accounts:
        try:
            async for problem in _check_account(context, account):
                yield problem
        except AccountUnknown:
            continue  # deleted meanwhile
        except DATABASE_ERRORS as error:
            if not await context.is_database_available():
                raise
            yield Problem(f"account {account.name}", f"its images cannot be counted: {await context.explain(error)}")


async def _check_account(context: Context, account: Account) -> Problems:
    subject, repair = f"account {account.name}", context.options.repair
    async with context.database.connection() as connection:
        drift = await (refresh_counters if repair else measure_drift)(connection, account.id)
        used = account.used_bytes + drift.bytes
        is_over = used > account.max_bytes and await has_grown_since_quota(connection, account.id)
    if drift:
        what = f"its counters are off by {-drift.images} images and {-drift.bytes} bytes"
        yield Problem(subject, what, "corrected" if repair else "")
    if is_over:
        yield Problem(
            subject, f"it stores {format_size(used)}, more than its quota of {format_size(account.max_bytes)}"
        )


async def check_expected(context: Context, expected: Mapping[ImageId, bytes]) -> Problems:
    """Checks that these images are stored, with rows of these SHA-256."""
    image_ids = list(expected)
    for first in range(0, len(image_ids), BATCH_SIZE):
        chunk = image_ids[first : first + BATCH_SIZE]
        async with context.database.connection() as connection:
            stored = await find_sha256(connection, chunk)
        for image_id in chunk:
            if image_id not in stored:
                yield Problem(f"image {image_id}", "it is expected, but not stored")
            elif stored[image_id] != expected[image_id]:
                yield Problem(f"image {image_id}", "its SHA-256 is not the expected one")
