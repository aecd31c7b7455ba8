"""The rows of renditions that are kept: which there are, how large, and when each was last asked for.

Every statement takes its rows in the order of their keys, so that none waits for another that waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from service.database import Connection, Database
from service.ids import ImageId
from service.storage.interface import RenditionKey

# Uses are noted this coarsely, so that a rendition in use costs one write in so many minutes.
USE_NOTED_S = 600


@dataclass(frozen=True, slots=True)
class Made:
    """A rendition whose file is written. `size` is what it takes on disk, in bytes."""

    key: RenditionKey
    watermark_id: ImageId | None
    size: int


class Kept(NamedTuple):
    key: RenditionKey
    size: int
    used_at: datetime


# Images are locked, so that a deletion either finds the row or is found by it; by their ids' order, as everywhere.
# What may be lost with the server is a row; then its file goes with its image only.
_KEEP = """
with made as (
    select * from unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
        as made (image_id, digest, watermark_id, size)
), locked as materialized (
    select id from images
    where id in (select image_id from made union select watermark_id from made) and state = 'ready'
    order by id for key share
), relaxed as materialized (
    select set_config('synchronous_commit', 'off', true)
)
insert into renditions (image_id, digest, watermark_id, size)
select distinct on (image_id, digest) made.* from made, relaxed
where image_id in (select id from locked) and (watermark_id is null or watermark_id in (select id from locked))
order by image_id, digest
on conflict (image_id, digest) do update set size = excluded.size, used_at = now()
returning image_id, digest
"""


async def keep_together(database: Database, made: Sequence[Made]) -> list[bool]:
    """Whether each has its row now: False for one whose image, or watermark, was deleted. Its file is the caller's."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            _KEEP,
            [one.key.image_id for one in made],
            [one.key.digest for one in made],
            [one.watermark_id for one in made],
            [one.size for one in made],
        )
    kept = {(row[0], row[1]) for row in rows}
    return [one.key in kept for one in made]


class Derived(NamedTuple):
    """A rendition, by the image that it shows and the one that is its watermark."""

    key: RenditionKey
    watermark_id: ImageId | None


_LIST = "select image_id, digest, watermark_id from renditions where image_id = any($1) or watermark_id = any($1)"


async def list_of_images(connection: Connection, image_ids: Sequence[ImageId]) -> list[Derived]:
    """All that was made of these images, or with one of them as the watermark."""
    rows = await connection.fetch(_LIST, image_ids)
    return [Derived(RenditionKey(ImageId(row[0]), row[1]), row[2]) for row in rows]


_LIST_UNKNOWN = """
select image_id, digest from unnest($1::text[], $2::text[]) as file (image_id, digest)
where not exists (
    select from renditions where renditions.image_id = file.image_id and renditions.digest = file.digest
)
"""


async def list_unknown(connection: Connection, keys: Sequence[RenditionKey]) -> list[RenditionKey]:
    """Those that have no row."""
    rows = await connection.fetch(_LIST_UNKNOWN, [key.image_id for key in keys], [key.digest for key in keys])
    return [RenditionKey(ImageId(row[0]), row[1]) for row in rows]


_RECOUNT = """
update renditions set size = file.size
from (
    select renditions.image_id, renditions.digest, file.size from renditions
    join unnest($1::text[], $2::text[], $3::bigint[]) as file (image_id, digest, size) using (image_id, digest)
    where renditions.size <> file.size
    order by renditions.image_id, renditions.digest for update of renditions
) as file
where renditions.image_id = file.image_id and renditions.digest = file.digest
"""


async def recount(connection: Connection, sizes: Mapping[RenditionKey, int]) -> None:
    """Correct the sizes in the rows, e.g. of files that were moved to another disk."""
    image_ids, digests = [key.image_id for key in sizes], [key.digest for key in sizes]
    await connection.execute(_RECOUNT, image_ids, digests, list(sizes.values()))


_FORGET = """
delete from renditions using unnest($1::text[], $2::text[]) as gone (image_id, digest)
where renditions.image_id = gone.image_id and renditions.digest = gone.digest
"""


async def forget_renditions(connection: Connection, keys: Sequence[RenditionKey]) -> None:
    """Drop the rows of files that are gone."""
    if not keys:
        return
    keys = sorted(keys)
    await connection.execute(_FORGET, [key.image_id for key in keys], [key.digest for key in keys])


_EVICT = """
delete from renditions using unnest($1::text[], $2::text[], $3::timestamptz[]) as gone (image_id, digest, used_at)
where renditions.image_id = gone.image_id and renditions.digest = gone.digest and renditions.used_at = gone.used_at
"""


async def forget_evicted(connection: Connection, evicted: Iterable[Kept]) -> None:
    """As `forget_renditions`, but not those that were made again since they were listed: they are there."""
    gone = sorted(evicted)
    await connection.execute(
        _EVICT,
        [one.key.image_id for one in gone],
        [one.key.digest for one in gone],
        [one.used_at for one in gone],
    )


_NOTE = """
update renditions set used_at = now()
from unnest($1::text[], $2::text[]) as used (image_id, digest)
where renditions.image_id = used.image_id and renditions.digest = used.digest
    and used_at < now() - $3::float8 * interval '1 second'
"""


async def note_uses(connection: Connection, keys: Iterable[RenditionKey]) -> None:
    keys = sorted(keys)
    await connection.execute(_NOTE, [key.image_id for key in keys], [key.digest for key in keys], USE_NOTED_S)


async def sum_bytes(connection: Connection) -> int:
    return int(await connection.fetchval("select coalesce(sum(size), 0)::bigint from renditions"))


_OLDEST = "select image_id, digest, size, used_at from renditions order by used_at limit $1 offset $2"


async def list_oldest(connection: Connection, limit: int, *, skip: int = 0) -> list[Kept]:
    """Those that were asked for least recently, the oldest first, without the first `skip` of them."""
    rows = await connection.fetch(_OLDEST, limit, skip)
    return [Kept(RenditionKey(ImageId(row[0]), row[1]), row[2], row[3]) for row in rows]
