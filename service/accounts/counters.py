"""What an account's images add up to, held against the counters that uploads and deletions keep."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from service.accounts.accounts import AccountUnknown
from service.database import Connection
from service.ids import AccountId

# Oldest first, so that a budget that runs out starts where it ended; those of $2 in their order, behind all others.
# A refresh in the future was before the clock of PostgreSQL was set back.
_STALE = """
select id from accounts where changed_at >= refreshed_at or refreshed_at > now()
order by array_position($2::bigint[], id) nulls first, refreshed_at, id limit $1
"""

# One snapshot reads the sum and the row; images and counters move in one commit, so the two differ only by an
# error. `seen_at` is that snapshot's time.
_DRIFT = """
select stored.bytes - accounts.used_bytes, stored.images - accounts.num_images,
    statement_timestamp(), accounts.refreshed_at
from accounts, lateral (
    select coalesce(sum(size), 0)::bigint as bytes, count(*) as images
    from images where account_id = accounts.id and state <> 'failed'
) as stored
where accounts.id = $1
"""

# Only if no other refresh came between: the difference must not be applied twice.
_REFRESH = """
update accounts set used_bytes = used_bytes + $2, num_images = num_images + $3, refreshed_at = $4
where id = $1 and refreshed_at = $5
"""


@dataclass(frozen=True, slots=True)
class Drift:
    """What an account's counters were off by; zero unless something went wrong."""

    account_id: AccountId
    bytes: int
    images: int

    def __bool__(self) -> bool:
        return bool(self.bytes or self.images)


async def list_stale(connection: Connection, limit: int, last: Iterable[AccountId] = ()) -> list[AccountId]:
    """Accounts that changed since their counters were last refreshed; those of `last` come last."""
    return [AccountId(row[0]) for row in await connection.fetch(_STALE, limit, list(last))]


async def measure_drift(connection: Connection, account_id: AccountId) -> Drift:
    """Hold the counters against the account's images, and leave them as they are."""
    return (await _measure(connection, account_id)).drift


async def refresh_counters(connection: Connection, account_id: AccountId) -> Drift:
    """Count the account's images and apply the difference, as a difference: uploads go on meanwhile."""
    drift, seen_at, refreshed_at = await _measure(connection, account_id)
    await connection.execute(_REFRESH, account_id, drift.bytes, drift.images, seen_at, refreshed_at)
    return drift


_HAS_GROWN = """
select exists (
    select from images where account_id = $1 and state <> 'failed'
        and created_at > (select max_bytes_set_at from accounts where id = $1)
)
"""


async def has_grown_since_quota(connection: Connection, account_id: AccountId) -> bool:
    """Whether the account stores an image that is younger than its quota. One that stores more than a quota that was
    lowered later has none.
    """
    return bool(await connection.fetchval(_HAS_GROWN, account_id))


class _Measured(NamedTuple):
    drift: Drift
    seen_at: datetime
    refreshed_at: datetime


async def _measure(connection: Connection, account_id: AccountId) -> _Measured:
    row = await connection.fetchrow(_DRIFT, account_id)
    if row is None:
        raise AccountUnknown(account_id)
    return _Measured(Drift(account_id, *row[:2]), *row[2:])
