"""Images: the row of each, and every statement that touches them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import asyncpg
import msgspec

from service.database import Connection, Database
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.probes import Probe


@dataclass(frozen=True, slots=True)
class Image:
    """One row. What the probe finds is None until `state` is `ready`; `exif` is JSON text, and it and
    `mini_preview` are None too where a query did not ask for them."""

    id: ImageId
    account_id: AccountId
    state: Literal["pending", "ready", "failed"]
    size: int
    sha256: bytes
    tags: list[str]
    created_at: datetime
    format: str | None
    width: int | None
    height: int | None
    orientation: int | None
    pages: int | None
    has_alpha: bool | None
    error: str | None
    exif: str | None = None
    mini_preview: bytes | None = None


_COLUMNS = """
images.id, images.account_id, images.state, images.size, images.sha256, images.tags, images.created_at,
images.format, images.width, images.height, images.orientation, images.pages, images.has_alpha, images.error
"""


@dataclass(frozen=True, slots=True)
class NewImage:
    """An upload whose file is durable, before its row is."""

    id: ImageId
    account_id: AccountId
    size: int
    sha256: bytes
    tags: Sequence[str]


class IdTaken(Exception):
    """Another image has this id: take a new one and try again."""


# All or nothing for each account: its share of the batch fits the quota, or none of it is inserted. The accounts'
# rows are locked in the order of their ids, so that two batches cannot deadlock; the quota is decided on the rows as
# they are then. Tags have no commas, so that they travel as one text a row.
_INSERT = """
with new as (
    select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bytea[], $5::text[])
    as new (id, account_id, size, sha256, tags)
), shares as (
    select account_id, sum(size)::bigint as bytes, count(*) as images from new group by account_id
), locked as materialized (
    select id from accounts where id in (select account_id from shares) order by id for no key update
), charged as (
    update accounts set
        used_bytes = accounts.used_bytes + shares.bytes,
        num_images = accounts.num_images + shares.images,
        changed_at = now()
    from shares join locked on locked.id = shares.account_id
    where accounts.id = locked.id and accounts.used_bytes + shares.bytes <= accounts.max_bytes
    returning accounts.id
)
insert into images (id, account_id, size, sha256, tags)
select new.id, new.account_id, new.size, new.sha256, string_to_array(new.tags, ',')
from new join charged on charged.id = new.account_id
returning id
"""


async def _insert(connection: Connection, images: Sequence[NewImage]) -> set[str]:
    rows = await connection.fetch(
        _INSERT,
        [image.id for image in images],
        [image.account_id for image in images],
        [image.size for image in images],
        [image.sha256 for image in images],
        [",".join(image.tags) for image in images],
    )
    return {row[0] for row in rows}


async def insert_pending(database: Database, images: Sequence[NewImage]) -> list[Exception | None]:
    """Insert a batch of rows in one commit, charging their accounts.

    Answers, for each image in order, None, or `quota-exceeded`, or IdTaken. An account whose share of the batch
    does not fit has its images tried one by one, in order.
    """
    inserted: set[str] = set()
    with suppress(asyncpg.UniqueViolationError):  # one of the ids is taken
        async with database.connection() as connection:
            inserted = await _insert(connection, images)
    return [None if image.id in inserted else await _insert_alone(database, image) for image in images]


async def _insert_alone(database: Database, image: NewImage) -> Exception | None:
    try:
        async with database.connection() as connection:
            inserted = await _insert(connection, [image])
    except asyncpg.UniqueViolationError:
        return IdTaken(image.id)
    except ServiceError as error:  # it must not speak for those that are inserted
        return error
    return None if inserted else ServiceError("quota-exceeded")


_FIND = f"""
select {_COLUMNS}, case when $3 then images.exif::text end, case when $4 then images.mini_preview end
from images where id = $1 and account_id = $2
"""


async def find_image(
    connection: Connection,
    image_id: ImageId,
    account_id: AccountId,
    *,
    with_exif: bool = True,
    with_mini_preview: bool = True,
) -> Image | None:
    """None for an unknown id and for one of another account alike."""
    row = await connection.fetchrow(_FIND, image_id, account_id, with_exif, with_mini_preview)
    return None if row is None else Image(*row)


_LOAD = f"select {_COLUMNS}, images.exif::text, images.mini_preview from images where id = $1"


async def load_image(connection: Connection, image_id: ImageId) -> Image | None:
    """Any account's image, whole: for the worker, never for a client."""
    row = await connection.fetchrow(_LOAD, image_id)
    return None if row is None else Image(*row)


# What the probe found can be found again, so this commit need not wait for the disk; the setting holds for this
# transaction alone. Rows are locked in the order of their ids, here and in every statement that locks several.
_MARK_READY = f"""
with found as (
    select * from unnest(
        $1::text[], $2::text[], $3::int[], $4::int[], $5::smallint[], $6::int[], $7::bool[], $8::text[], $9::bytea[]
    ) as found (id, format, width, height, orientation, pages, has_alpha, exif, mini_preview)
), locked as materialized (
    select images.id from images join found on found.id = images.id
    where images.state = 'pending' order by images.id for no key update of images
), relaxed as materialized (
    select set_config('synchronous_commit', 'off', true)
)
update images set
    state = 'ready', format = found.format, width = found.width, height = found.height,
    orientation = found.orientation, pages = found.pages, has_alpha = found.has_alpha,
    exif = found.exif::json, mini_preview = found.mini_preview
from found join locked on locked.id = found.id, relaxed
where images.id = found.id and images.state = 'pending'
returning {_COLUMNS}, images.exif::text, images.mini_preview
"""


async def mark_ready(database: Database, found: Sequence[tuple[ImageId, Probe]]) -> list[Image | None]:
    """Write a batch of findings in one commit. None stands for a row that is gone or was finished before."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            _MARK_READY,
            [image_id for image_id, _ in found],
            [probe.format for _, probe in found],
            [probe.width for _, probe in found],
            [probe.height for _, probe in found],
            [probe.orientation for _, probe in found],
            [probe.pages for _, probe in found],
            [probe.has_alpha for _, probe in found],
            [msgspec.json.encode(probe.exif).decode() for _, probe in found],
            [probe.mini_preview for _, probe in found],
        )
    ready = {row[0]: Image(*row) for row in rows}
    return [ready.get(image_id) for image_id, _ in found]


# The image's row is locked before the account's, as everywhere; the file's removal is noted in the same commit. A file
# that could not be found is not to be removed if it comes back.
FILE_MISSING = "image-lost"
_MARK_FAILED = f"""
with failed as (
    update images set state = 'failed', error = $2, failed_at = now()
    where id = $1 and state = 'pending' returning {_COLUMNS}
), uncharged as (
    update accounts set
        used_bytes = accounts.used_bytes - failed.size, num_images = accounts.num_images - 1, changed_at = now()
    from failed where accounts.id = failed.account_id
), noted as (
    insert into removals (image_id) select id from failed where error <> '{FILE_MISSING}' on conflict do nothing
)
select * from failed
"""


async def mark_failed(connection: Connection, image_id: ImageId, error: str) -> Image | None:
    """Refuse a pending image: it is uncounted and its file is to be removed. None if it is pending no more."""
    row = await connection.fetchrow(_MARK_FAILED, image_id, error)
    return None if row is None else Image(*row)


_COUNT_CRASH = "update images set crashes = crashes + 1 where id = $1 and state = 'pending' returning crashes"


async def count_crash(connection: Connection, image_id: ImageId) -> int:
    """How often this picture has taken its child process with it, this time included; 0 if it is pending no more."""
    return await connection.fetchval(_COUNT_CRASH, image_id) or 0


_FORGET_FAILED = "delete from images where id = $1 and state = 'failed'"


async def forget_failed(connection: Connection, image_id: ImageId) -> None:
    """Drop a failed row whose client has been told."""
    await connection.execute(_FORGET_FAILED, image_id)


_EXISTING = "select id from images where id = any($1) and state <> 'failed'"


async def list_existing(connection: Connection, image_ids: Sequence[ImageId]) -> set[ImageId]:
    """Those of the ids whose images are stored, ready or pending."""
    return {ImageId(row[0]) for row in await connection.fetch(_EXISTING, image_ids)}


_OVERDUE = """
select id from images where state = 'pending' and created_at < now() - $1::float8 * interval '1 second'
order by created_at limit $2
"""


async def list_overdue(connection: Connection, age_s: float, limit: int) -> list[ImageId]:
    """The oldest images that have been pending for longer than `age_s`."""
    return [ImageId(row[0]) for row in await connection.fetch(_OVERDUE, age_s, limit)]


_PURGE_FAILED = """
delete from images where id in (
    select id from images where state = 'failed' and failed_at < now() - $1::float8 * interval '1 second' limit $2
)
"""


async def purge_failed(connection: Connection, age_s: float, limit: int) -> None:
    """Drop rows that have told of their failure for longer than `age_s`."""
    await connection.execute(_PURGE_FAILED, age_s, limit)
