"""Queries for images by id, and for the rows that the sweep handles."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from service.database import Connection, Database
from service.ids import AccountId, ImageId
from service.images.models import ALL, COLUMNS, Image, Include


class ImageQuery(NamedTuple):
    """A request of a client of this account for one image."""

    image_id: ImageId
    account_id: AccountId
    include: Include = ALL


# The lateral join makes PostgreSQL look up each image by the primary key, whatever its planner estimates.
_FIND = f"""
select query.place, {COLUMNS}, case when query.exif then images.exif::text end,
    case when query.mini_preview then images.mini_preview end
from unnest($1::text[], $2::bigint[], $3::bool[], $4::bool[]) with ordinality
    as query (id, account_id, exif, mini_preview, place)
cross join lateral (
    select * from images where id = query.id and account_id = query.account_id limit 1
) images
"""


async def find_images(connection: Connection, queries: Sequence[ImageQuery]) -> list[Image | None]:
    """Returns the images in order, and None for an unknown id or an image of another account."""
    rows = await connection.fetch(
        _FIND,
        [query.image_id for query in queries],
        [query.account_id for query in queries],
        [query.include.exif for query in queries],
        [query.include.mini_preview for query in queries],
    )
    images = {place: Image(*columns) for place, *columns in rows}
    return [images.get(place) for place in range(1, len(queries) + 1)]


async def find_image_batch(database: Database, queries: Sequence[ImageQuery]) -> list[Image | None]:
    """`find_images` for a Batcher. Returns the rows as they are after all of the batch's requests have arrived."""
    async with database.connection() as connection:
        return await find_images(connection, queries)


_LOAD = f"select {COLUMNS}, images.exif::text, images.mini_preview from images where id = $1"


async def load_image(connection: Connection, image_id: ImageId) -> Image | None:
    """Returns an image of any account with all columns: for the worker, never for a client."""
    row = await connection.fetchrow(_LOAD, image_id)
    return None if row is None else Image(*row)


_FIND_ACROSS_ACCOUNTS = f"""
select query.place, {COLUMNS} from unnest($1::text[]) with ordinality as query (id, place)
cross join lateral (select * from images where id = query.id limit 1) images
"""


async def find_across_accounts(connection: Connection, image_ids: Sequence[ImageId]) -> list[Image | None]:
    """Returns images of any account without the large columns, in order, for delivery; None for an unknown id."""
    rows = await connection.fetch(_FIND_ACROSS_ACCOUNTS, image_ids)
    images = {place: Image(*columns) for place, *columns in rows}
    return [images.get(place) for place in range(1, len(image_ids) + 1)]


async def is_any_stored(connection: Connection) -> bool:
    """Returns whether any image is stored: False if there are no tables yet."""
    if await connection.fetchval("select to_regclass('images') is null"):
        return False
    return bool(await connection.fetchval("select exists (select from images where state <> 'failed')"))


async def is_any_known(connection: Connection) -> bool:
    """Returns whether there is a row of an image, or of a pending file removal: False if there are no tables yet."""
    if await connection.fetchval("select to_regclass('images') is null"):
        return False
    return bool(await connection.fetchval("select exists (select from images) or exists (select from removals)"))


async def needs_files(connection: Connection) -> bool:
    """Returns whether images are stored, or files of deleted ones still have to be removed."""
    if await is_any_stored(connection):
        return True
    if await connection.fetchval("select to_regclass('removals') is null"):
        return False
    return bool(await connection.fetchval("select exists (select from removals)"))


_EXISTING = "select id from images where id = any($1) and state <> 'failed'"


async def list_existing(connection: Connection, image_ids: Sequence[ImageId]) -> set[ImageId]:
    """Returns the ids whose images are stored, i.e. ready or pending."""
    return {ImageId(row[0]) for row in await connection.fetch(_EXISTING, image_ids)}


class OverdueImage(NamedTuple):
    created_at: datetime
    id: ImageId
    account_id: AccountId


# A time in the future was written before the clock of PostgreSQL was set back.
_OVERDUE = """
select created_at, id, account_id from images
where state = 'pending'
    and (created_at < now() - $1::float8 * interval '1 second' or created_at > now() + interval '1 minute')
    and ($3::timestamptz is null or (created_at, id) > ($3, $4))
order by created_at, id limit $2
"""


async def list_overdue(
    connection: Connection, age_s: float, limit: int, after: OverdueImage | None = None
) -> list[OverdueImage]:
    """Returns the oldest images that have been pending for longer than `age_s`, in order, that come after `after`."""
    rows = await connection.fetch(_OVERDUE, age_s, limit, *(after[:2] if after else (None, None)))
    return [OverdueImage(*row) for row in rows]
