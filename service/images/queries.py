"""Images by their ids, and those that are unfinished."""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import datetime
from typing import NamedTuple

from service.database import Connection, Database
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.images.models import ALL, COLUMNS, Image, Include


class ImageQuery(NamedTuple):
    """An image that a client of this account asks for."""

    image_id: ImageId
    account_id: AccountId
    include: Include = ALL


# Each is found by the primary key, whatever the planner would make of a join.
_FIND = f"""
select wanted.place, {COLUMNS}, case when wanted.exif then images.exif::text end,
    case when wanted.mini_preview then images.mini_preview end
from unnest($1::text[], $2::bigint[], $3::bool[], $4::bool[]) with ordinality
    as wanted (id, account_id, exif, mini_preview, place)
cross join lateral (
    select * from images where id = wanted.id and account_id = wanted.account_id limit 1
) images
"""


async def find_images(connection: Connection, wanted: Sequence[ImageQuery]) -> list[Image | None]:
    """In order; None for an unknown id and for one of another account alike."""
    rows = await connection.fetch(
        _FIND,
        [each.image_id for each in wanted],
        [each.account_id for each in wanted],
        [each.include.exif for each in wanted],
        [each.include.mini_preview for each in wanted],
    )
    found = {place: Image(*columns) for place, *columns in rows}
    return [found.get(place) for place in range(1, len(wanted) + 1)]


async def find_image_batch(database: Database, wanted: Sequence[ImageQuery]) -> list[Image | None]:
    """`find_images` for a Batcher: what is answered is the rows as they are after all of these were asked for."""
    async with database.connection() as connection:
        return await find_images(connection, wanted)


_LOAD = f"select {COLUMNS}, images.exif::text, images.mini_preview from images where id = $1"


async def load_image(connection: Connection, image_id: ImageId) -> Image | None:
    """Any account's image, whole: for the worker, never for a client."""
    row = await connection.fetchrow(_LOAD, image_id)
    return None if row is None else Image(*row)


_FIND_ANY = f"""
select wanted.place, {COLUMNS} from unnest($1::text[]) with ordinality as wanted (id, place)
cross join lateral (select * from images where id = wanted.id limit 1) images
"""


async def find_across_accounts(connection: Connection, image_ids: Sequence[ImageId]) -> list[Image | None]:
    """Any account's images, for their delivery, without what is large; in order, None for an unknown id."""
    rows = await connection.fetch(_FIND_ANY, image_ids)
    found = {place: Image(*columns) for place, *columns in rows}
    return [found.get(place) for place in range(1, len(image_ids) + 1)]


def require_all(asked: Sequence[ImageId], found: Container[ImageId], code: str) -> None:
    """Raises `code`, naming the first image that is missing; one of another account is missing like any other."""
    for image_id in asked:
        if image_id not in found:
            raise ServiceError(code, f"There is no image {image_id} in your account; nothing was changed.")


async def is_any_stored(connection: Connection) -> bool:
    """Also where there are no tables yet."""
    if await connection.fetchval("select to_regclass('images') is null"):
        return False
    return bool(await connection.fetchval("select exists (select from images where state <> 'failed')"))


async def is_any_known(connection: Connection) -> bool:
    """Whether there is any row of an image, or of the removal of one. Also where there are no tables yet."""
    if await connection.fetchval("select to_regclass('images') is null"):
        return False
    return bool(await connection.fetchval("select exists (select from images) or exists (select from removals)"))


async def needs_files(connection: Connection) -> bool:
    """Whether images are stored, or files of deleted ones are still to be removed."""
    if await is_any_stored(connection):
        return True
    if await connection.fetchval("select to_regclass('removals') is null"):
        return False
    return bool(await connection.fetchval("select exists (select from removals)"))


class OverdueImage(NamedTuple):
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


async def list_overdue(
    connection: Connection, age_s: float, limit: int, after: OverdueImage | None = None
) -> list[OverdueImage]:
    """The oldest images that have been pending for longer than `age_s`, in order; those behind `after`."""
    rows = await connection.fetch(_OVERDUE, age_s, limit, *(after[:2] if after else (None, None)))
    return [OverdueImage(*row) for row in rows]


_PURGE_FAILED = """
delete from images where id in (
    select id from images where state = 'failed' and failed_at < now() - $1::float8 * interval '1 second' limit $2
)
"""


async def purge_failed(connection: Connection, age_s: float, limit: int) -> int:
    """Drop rows that have told of their failure for longer than `age_s`; returns how many."""
    status = await connection.execute(_PURGE_FAILED, age_s, limit)
    return int(status.rpartition(" ")[2])
