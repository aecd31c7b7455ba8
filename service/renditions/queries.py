"""The table of stored renditions: which exist, how large they are, and when each was last used.

Every statement locks its rows in the order of their keys, so that no two statements deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from service.database import Connection, Database
from service.ids import ImageId
from service.storage.interface import RenditionKey

# The use of a rendition is recorded at most once in this time.
USE_RECORD_INTERVAL_S = 600


@dataclass(frozen=True, slots=True)
class NewRendition:
    """A rendition whose file is written and whose row is not. `size` is in bytes on disk."""

    key: RenditionKey
    watermark_id: ImageId | None
    size: int


class EvictionCandidate(NamedTuple):
    """A row as it was listed. `used_at` changes if the rendition is used or made again meanwhile."""

    key: RenditionKey
    size: int
    used_at: datetime


# Images are locked so that a deletion either finds the new row, or is seen here. They are locked by id, as everywhere.
# A crash of the server may lose a row. Then its file is removed together with its image.
_INSERT = """
with entry as (
    select * from unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
        as entry (image_id, digest, watermark_id, size)
), locked as materialized (
    select id from images
    where id in (select image_id from entry union select watermark_id from entry) and state = 'ready'
    order by id for key share
), relaxed as materialized (
    select set_config('synchronous_commit', 'off', true)
)
insert into renditions (image_id, digest, watermark_id, size)
select distinct on (image_id, digest) entry.* from entry, relaxed
where image_id in (select id from locked) and (watermark_id is null or watermark_id in (select id from locked))
order by image_id, digest
on conflict (image_id, digest) do update set size = excluded.size, used_at = now()
returning image_id, digest
"""


async def insert_renditions(database: Database, renditions: Sequence[NewRendition]) -> list[bool]:
    """Inserts a batch of rows. Returns whether each rendition has its row now.

    False means that its image or its watermark was deleted; the caller then removes the file.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(
            _INSERT,
            [rendition.key.image_id for rendition in renditions],
            [rendition.key.digest for rendition in renditions],
            [rendition.watermark_id for rendition in renditions],
            [rendition.size for rendition in renditions],
        )
    keys = {(row[0], row[1]) for row in rows}
    return [rendition.key in keys for rendition in renditions]


class DerivedRendition(NamedTuple):
    """A rendition that shows an image, or has it as its watermark."""

    key: RenditionKey
    watermark_id: ImageId | None


_LIST_BY_IMAGES = (
    "select image_id, digest, watermark_id from renditions where image_id = any($1) or watermark_id = any($1)"
)


async def list_by_images(connection: Connection, image_ids: Sequence[ImageId]) -> list[DerivedRendition]:
    """Returns all renditions of these images, and those with one of them as the watermark."""
    rows = await connection.fetch(_LIST_BY_IMAGES, image_ids)
    return [DerivedRendition(RenditionKey(ImageId(row[0]), row[1]), row[2]) for row in rows]


_LIST_ORPHANS = """
select image_id, digest from unnest($1::text[], $2::text[]) as file (image_id, digest)
where not exists (
    select from renditions where renditions.image_id = file.image_id and renditions.digest = file.digest
)
"""


async def list_orphans(connection: Connection, keys: Sequence[RenditionKey]) -> list[RenditionKey]:
    """Returns the keys, which are those of files, that have no row."""
    rows = await connection.fetch(_LIST_ORPHANS, [key.image_id for key in keys], [key.digest for key in keys])
    return [RenditionKey(ImageId(row[0]), row[1]) for row in rows]


_UPDATE_SIZES = """
update renditions set size = file.size
from (
    select renditions.image_id, renditions.digest, file.size from renditions
    join unnest($1::text[], $2::text[], $3::bigint[]) as file (image_id, digest, size) using (image_id, digest)
    where renditions.size <> file.size
    order by renditions.image_id, renditions.digest for update of renditions
) as file
where renditions.image_id = file.image_id and renditions.digest = file.digest
"""


async def update_sizes(connection: Connection, sizes: Mapping[RenditionKey, int]) -> None:
    """Corrects the sizes in the rows, e.g. after the files were moved to another disk."""
    image_ids, digests = [key.image_id for key in sizes], [key.digest for key in sizes]
    await connection.execute(_UPDATE_SIZES, image_ids, digests, list(sizes.values()))


_DELETE = """
delete from renditions using unnest($1::text[], $2::text[]) as gone (image_id, digest)
where renditions.image_id = gone.image_id and renditions.digest = gone.digest
"""


async def delete_renditions(connection: Connection, keys: Sequence[RenditionKey]) -> None:
    """Deletes the rows of files that were removed."""
    if not keys:
        return
    keys = sorted(keys)
    await connection.execute(_DELETE, [key.image_id for key in keys], [key.digest for key in keys])


_DELETE_EVICTED = """
delete from renditions using unnest($1::text[], $2::text[], $3::timestamptz[]) as gone (image_id, digest, used_at)
where renditions.image_id = gone.image_id and renditions.digest = gone.digest and renditions.used_at = gone.used_at
"""


async def delete_evicted(connection: Connection, evicted: Iterable[EvictionCandidate]) -> None:
    """Like `delete_renditions`, but keeps the rows of renditions that were made again since they were listed."""
    rows = sorted(evicted)
    await connection.execute(
        _DELETE_EVICTED,
        [row.key.image_id for row in rows],
        [row.key.digest for row in rows],
        [row.used_at for row in rows],
    )


_RECORD_USES = """
update renditions set used_at = now()
from unnest($1::text[], $2::text[]) as used (image_id, digest)
where renditions.image_id = used.image_id and renditions.digest = used.digest
    and used_at < now() - $3::float8 * interval '1 second'
"""


async def record_uses(connection: Connection, keys: Iterable[RenditionKey]) -> None:
    """Records that renditions were used now, except those used within the last `USE_RECORD_INTERVAL_S`."""
    keys = sorted(keys)
    await connection.execute(
        _RECORD_USES, [key.image_id for key in keys], [key.digest for key in keys], USE_RECORD_INTERVAL_S
    )


async def sum_bytes(connection: Connection) -> int:
    return int(await connection.fetchval("select coalesce(sum(size), 0)::bigint from renditions"))


_LIST_LEAST_RECENTLY_USED = "select image_id, digest, size, used_at from renditions order by used_at limit $1 offset $2"


async def list_least_recently_used(connection: Connection, limit: int, *, skip: int = 0) -> list[EvictionCandidate]:
    """Returns the least recently used renditions, oldest first, without the first `skip`."""
    rows = await connection.fetch(_LIST_LEAST_RECENTLY_USED, limit, skip)
    return [EvictionCandidate(RenditionKey(ImageId(row[0]), row[1]), row[2], row[3]) for row in rows]
