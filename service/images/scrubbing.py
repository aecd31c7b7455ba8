"""The state of the background scrub: lease, progress and damaged images. Times are from PostgreSQL's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from service.database import Connection
from service.ids import ImageId

# The cost of opening a file, in bytes that could be read in the same time.
FILE_COST = 64 << 10


class ScrubLease(NamedTuple):
    """The state of the current round for its holder. `age_s` is None before the first round."""

    age_s: float | None
    is_over: bool
    after_id: str
    done_cost: int


# Returns no row while another worker holds the lease. A lease that expires too late was written before the clock of
# PostgreSQL was set back.
_ACQUIRE = """
insert into scrub (holder, held_until) values ($1, now() + $2::float8 * interval '1 second')
on conflict (single) do update set holder = excluded.holder, held_until = excluded.held_until
where scrub.holder = excluded.holder or scrub.held_until < now()
    or scrub.held_until > excluded.held_until + interval '1 minute'
returning extract(epoch from now() - started_at)::float8, is_over, after_id, done_cost
"""


async def acquire_lease(connection: Connection, holder: str, lease_s: float) -> ScrubLease | None:
    """Acquires or renews the lease. Returns None if another worker has it."""
    row = await connection.fetchrow(_ACQUIRE, holder, lease_s)
    return None if row is None else ScrubLease(*row)


_RELEASE = "update scrub set held_until = now() where holder = $1"


async def release_lease(connection: Connection, holder: str) -> None:
    """Ends the lease, so that another worker can acquire it at once."""
    await connection.execute(_RELEASE, holder)


_START = "update scrub set started_at = now(), is_over = false, after_id = '', done_cost = 0 where holder = $1"


async def start_round(connection: Connection, holder: str) -> None:
    await connection.execute(_START, holder)


_ADVANCE = "update scrub set after_id = $2, done_cost = done_cost + $3 where holder = $1"


async def advance(connection: Connection, holder: str, after_id: ImageId, cost: int) -> None:
    """Records that all images up to this id have been read."""
    await connection.execute(_ADVANCE, holder, after_id, cost)


_FINISH = "update scrub set is_over = true where holder = $1"
_DROP_DELETED = """
delete from damaged_images
where not exists (select from images where images.id = damaged_images.image_id and images.state <> 'failed')
"""


async def finish_round(connection: Connection, holder: str) -> int:
    """Ends the round. Returns the number of images that are damaged now."""
    await connection.execute(_DROP_DELETED)
    await connection.execute(_FINISH, holder)
    return int(await connection.fetchval("select count(*) from damaged_images"))


_TOTAL = "select coalesce(sum(used_bytes + num_images * $1), 0)::bigint from accounts"


async def sum_cost(connection: Connection) -> int:
    """Returns the cost of reading all images, in bytes, from the accounts' counters."""
    return int(await connection.fetchval(_TOTAL, FILE_COST))


_RECORD_DAMAGED = """
insert into damaged_images (image_id, what) select * from unnest($1::text[], $2::text[])
on conflict (image_id) do update set what = excluded.what, found_at = now() where damaged_images.what <> excluded.what
returning image_id
"""


async def record_damaged(connection: Connection, faults: Mapping[ImageId, str]) -> set[ImageId]:
    """Records what is wrong with images. Returns the ids for which that is new or different."""
    rows = await connection.fetch(_RECORD_DAMAGED, list(faults), list(faults.values()))
    return {ImageId(row[0]) for row in rows}


_RECORD_INTACT = "delete from damaged_images where image_id = any($1) returning image_id"


async def record_intact(connection: Connection, image_ids: Sequence[ImageId]) -> list[ImageId]:
    """Records that images are intact. Returns the ids that were recorded as damaged."""
    return [ImageId(row[0]) for row in await connection.fetch(_RECORD_INTACT, image_ids)]
