"""The counters of accounts, compared with the sums of their images and corrected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from service.accounts.accounts import AccountUnknown
from service.database import Connection
from service.ids import AccountId

# Oldest refresh first, so that a run that ends early is continued by the next one. The accounts of $2 come last, in
# that order. A refresh in the future was written before the clock of PostgreSQL was set back.
_STALE = """
select id from accounts where changed_at >= refreshed_at or refreshed_at > now()
order by array_position($2::bigint[], id) nulls first, refreshed_at, id limit $1
"""

# One snapshot reads the sum and the row. Images and counters change in one commit, so the two differ only after an
# error.
_DRIFT = """
select stored.bytes - accounts.used_bytes, stored.images - accounts.num_images,
    statement_timestamp(), accounts.refreshed_at
from accounts, lateral (
    select coalesce(sum(size), 0)::bigint as bytes, count(*) as images
    from images where account_id = accounts.id and state <> 'failed'
) as stored
where accounts.id = $1
"""

# Only if no other refresh came in between: the difference must not be applied twice.
_REFRESH = """
update accounts set used_bytes = used_bytes + $2, num_images = num_images + $3, refreshed_at = $4
where id = $1 and refreshed_at = $5
"""


@dataclass(frozen=True, slots=True)
class Drift:
    """The difference between an account's images and its counters; zero unless something went wrong."""

    account_id: AccountId
    bytes: int
    images: int

    def __bool__(self) -> bool:
        return bool(self.bytes or self.images)


async def list_stale(connection: Connection, limit: int, last: Iterable[AccountId] = ()) -> list[AccountId]:
    """Returns up to `limit` accounts that changed since their counters were refreshed; those in `last` come last."""
    return [AccountId(row[0]) for row in await connection.fetch(_STALE, limit, list(last))]


async def measure_drift(connection: Connection, account_id: AccountId) -> Drift:
    """Compares the counters with the account's images and changes nothing. Raises AccountUnknown."""
    return (await _measure(connection, account_id)).drift


async def refresh_counters(connection: Connection, account_id: AccountId) -> Drift:
    """Counts the account's images and adds the difference to the counters, because uploads go on meanwhile.

    Raises AccountUnknown.
    """
    drift, measured_at, refreshed_at = await _measure(connection, account_id)
    await connection.execute(_REFRESH, account_id, drift.bytes, drift.images, measured_at, refreshed_at)
    return drift


_HAS_GROWN = """
select exists (
    select from images where account_id = $1 and state <> 'failed'
        and created_at > (select max_bytes_set_at from accounts where id = $1)
)
"""


async def has_grown_since_quota(connection: Connection, account_id: AccountId) -> bool:
    """Returns whether an image was stored after the quota was set.

    If not, an account that stores more than its quota does so because the quota was lowered.
    """
    return bool(await connection.fetchval(_HAS_GROWN, account_id))


class _Measurement(NamedTuple):
    """`measured_at` is the time of the snapshot."""

    drift: Drift
    measured_at: datetime
    refreshed_at: datetime


async def _measure(connection: Connection, account_id: AccountId) -> _Measurement:
    row = await connection.fetchrow(_DRIFT, account_id)
    if row is None:
        raise AccountUnknown(account_id)
    return _Measurement(Drift(account_id, *row[:2]), *row[2:])


async def count_images(connection: Connection) -> int:
    """Returns the number of images of all accounts, by their counters."""
    return int(await connection.fetchval("select coalesce(sum(num_images), 0)::bigint from accounts"))
