"""What the sweep looks for: rows that stay unfinished, and those that have told of their failure for long enough."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from service.database import Connection
from service.ids import AccountId, ImageId


class Overdue(NamedTuple):
    created_at: datetime
    id: ImageId
    account_id: AccountId


_EXISTING = "select id from images where id = any($1) and state <> 'failed'"


async def list_existing(connection: Connection, image_ids: Sequence[ImageId]) -> set[ImageId]:
    """Those of the ids whose images are stored, ready or pending."""
    return {ImageId(row[0]) for row in await connection.fetch(_EXISTING, image_ids)}


# A time in the future is older than a correction of the clock of PostgreSQL.
_OVERDUE = """
select created_at, id, account_id from images
where state = 'pending'
    and (created_at < now() - $1::float8 * interval '1 second' or created_at > now() + interval '1 minute')
    and ($3::timestamptz is null or (created_at, id) > ($3, $4))
order by created_at, id limit $2
"""


async def list_overdue(connection: Connection, age_s: float, limit: int, after: Overdue | None = None) -> list[Overdue]:
    """The oldest images that have been pending for longer than `age_s`, in order; those behind `after`."""
    rows = await connection.fetch(_OVERDUE, age_s, limit, *(after[:2] if after else (None, None)))
    return [Overdue(*row) for row in rows]


_PURGE_FAILED = """
delete from images where id in (
    select id from images where state = 'failed' and failed_at < now() - $1::float8 * interval '1 second' limit $2
)
"""


async def purge_failed(connection: Connection, age_s: float, limit: int) -> int:
    """Drop rows that have told of their failure for longer than `age_s`; returns how many."""
    status = await connection.execute(_PURGE_FAILED, age_s, limit)
    return int(status.rpartition(" ")[2])
