"""Changes of rows: how a pending image ends, tags, and deletions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from service.database import Connection, Database
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.images.models import COLUMNS, NO_BLOBS, Image, Include
from service.images.probe import Probe
from service.images.queries import require_all
from service.images.tag_rules import MAX_TAGS

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
returning {COLUMNS}, images.exif::text, images.mini_preview
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
# that could not be found is not to be removed if it comes back. The Idempotency-Key is free: a refusal is not kept.
FILE_MISSING = "image-lost"
_MARK_FAILED = f"""
with failed as (
    update images set
        state = 'failed', error = $2, error_kind = $3, failed_at = now(), idempotency_key = null, idempotency_url = null
    where id = $1 and state = 'pending' returning {COLUMNS}
), uncharged as (
    update accounts set
        used_bytes = accounts.used_bytes - failed.size, num_images = accounts.num_images - 1, changed_at = now()
    from failed where accounts.id = failed.account_id
), noted as (
    insert into removals (image_id) select id from failed where error <> '{FILE_MISSING}' on conflict do nothing
)
select * from failed
"""


async def mark_failed(connection: Connection, image_id: ImageId, error: str, kind: str | None = None) -> Image | None:
    """Refuse a pending image: it is uncounted and its file is to be removed. None if it is pending no more.

    `kind` names what is not supported, as in `Rejected`.
    """
    row = await connection.fetchrow(_MARK_FAILED, image_id, error, kind)
    return None if row is None else Image(*row)


_COUNT_CRASH = "update images set crashes = crashes + 1 where id = $1 and state = 'pending' returning crashes"


async def count_crash(connection: Connection, image_id: ImageId) -> int:
    """How often this picture has taken its child process with it, this time included; 0 if it is pending no more."""
    return await connection.fetchval(_COUNT_CRASH, image_id) or 0


_PENDING_AGE = """
select extract(epoch from now() - created_at)::float8 from images where id = $1 and state = 'pending'
"""


async def find_pending_age_s(connection: Connection, image_id: ImageId) -> float | None:
    """How long ago the image was accepted, by the one clock that knows; None if it is pending no more."""
    age_s: float | None = await connection.fetchval(_PENDING_AGE, image_id)
    return age_s


_FORGET_FAILED = "delete from images where id = $1 and state = 'failed'"


async def delete_failed_image(connection: Connection, image_id: ImageId) -> None:
    """Drop a failed row whose client has been told."""
    await connection.execute(_FORGET_FAILED, image_id)


# Other requests with its Idempotency-Key may wait for it, in other processes: they look at the row once a second.
_FORGET_SOON = """
update images set failed_at = least(failed_at, now() - interval '24 hours' + interval '1 minute')
where id = $1 and state = 'failed'
"""


async def expire_failed_image(connection: Connection, image_id: ImageId) -> None:
    """Let the sweep, which drops failed rows after a day, drop this one in a minute."""
    await connection.execute(_FORGET_SOON, image_id)


# All or nothing, decided on the rows as they are once locked, which may be newer than what the statement sees
# elsewhere: so what was there before is taken from `locked` alone. Images that change in nothing are not written.
# Tags that were stored before tags were normalised become NFC here, as far as the encoding of the database lets them.
_CHANGE = f"""
with locked as materialized (
    select {COLUMNS}, case when $5 then images.exif::text end as exif,
        case when $6 then images.mini_preview end as mini_preview
    from images where id = any($1) and account_id = $2 and state <> 'failed' order by id for no key update
), changed as materialized (
    select id, tags as before, array(
        select tag from unnest(tags || $3::text[]) with ordinality as every (stored, place), lateral (
            select case when getdatabaseencoding() = 'UTF8' then normalize(stored, nfc) else stored end as tag
        ) as normalised
        where tag <> all($4::text[]) group by tag order by min(place)
    ) as after
    from locked
), written as (
    update images set tags = changed.after from changed
    where images.id = changed.id and changed.after <> changed.before
        and (select count(*) = cardinality($1) and max(cardinality(after)) <= {MAX_TAGS} from changed)
)
select changed.after, locked.* from locked join changed on changed.id = locked.id
"""


async def change_tags(
    connection: Connection,
    image_ids: Sequence[ImageId],
    account_id: AccountId,
    *,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    include: Include = NO_BLOBS,
) -> list[Image]:
    """Add tags behind those that are there, and remove some, for all of these different images or for none.

    Answers the images as they are then, in this order. Raises `image-not-found` and `too-many-tags`.
    """
    rows = await connection.fetch(_CHANGE, image_ids, account_id, add, remove, *include)
    changed = {image.id: image for image in (replace(Image(*row[1:]), tags=row[0]) for row in rows)}
    require_all(image_ids, changed, "image-not-found")
    for image in changed.values():
        if len(image.tags) > MAX_TAGS:
            raise ServiceError(
                "too-many-tags", f"Image {image.id} would have more than {MAX_TAGS} tags; nothing was changed."
            )
    return [changed[image_id] for image_id in image_ids]


# All or nothing, decided on the locked rows: the images in the order of their ids, then the account, as everywhere.
# The removal of the files is noted in the same commit.
_DELETE = f"""
with locked as materialized (
    select id from images where id = any($1) and account_id = $2 and state <> 'failed' order by id for update
), deleted as (
    delete from images using locked
    where images.id = locked.id and (select count(*) from locked) = cardinality($1)
    returning {COLUMNS}, case when $3 then images.exif::text end as exif,
        case when $4 then images.mini_preview end as mini_preview
), share as (
    select sum(size)::bigint as bytes, count(*) as images from deleted having count(*) > 0
), uncharged as (
    update accounts set
        used_bytes = accounts.used_bytes - share.bytes,
        num_images = accounts.num_images - share.images,
        changed_at = now()
    from share where accounts.id = $2
), noted as (
    insert into removals (image_id) select id from deleted on conflict do nothing
)
select locked.id, deleted.* from locked left join deleted on deleted.id = locked.id
"""


async def delete_images(
    connection: Connection, image_ids: Sequence[ImageId], account_id: AccountId, include: Include = NO_BLOBS
) -> list[Image]:
    """Delete all of these different images, or none; answers what they were, in this order.

    The files are the caller's to remove (`removals.remove_files`), and the sweep's if it dies. Raises `invalid-id` for
    one that is not stored in this account.
    """
    rows = await connection.fetch(_DELETE, image_ids, account_id, *include)
    found = {ImageId(row[0]): row[1:] for row in rows}
    require_all(image_ids, found, "invalid-id")
    return [Image(*found[image_id]) for image_id in image_ids]


# In the order of locks as above. An image that has failed is uncounted, and the removal of its file noted, unless the
# file was missing: should it come back, it goes now, too.
_DELETE_SOME = """
with chosen as materialized (
    {chosen}
), locked as materialized (
    select images.id from images join chosen using (id) order by images.id for update of images
), deleted as (
    delete from images using locked where images.id = locked.id
    returning images.id, images.size, images.state, images.error
), share as (
    select sum(size)::bigint as bytes, count(*) as images from deleted where state <> 'failed' having count(*) > 0
), uncharged as (
    update accounts set
        used_bytes = accounts.used_bytes - share.bytes,
        num_images = accounts.num_images - share.images,
        changed_at = now()
    from share where accounts.id = $1
), noted as (
    insert into removals (image_id) select id from deleted where state <> 'failed' or error = '{file_missing}'
    on conflict do nothing
)
select id from deleted
"""
# Each is a walk along an index: that of the search, and that of what is not ready.
_DELETE_STORED = _DELETE_SOME.format(
    chosen="select id from images where account_id = $1 and state <> 'failed' order by created_at, id limit $2",
    file_missing=FILE_MISSING,
)
_DELETE_FAILED = _DELETE_SOME.format(
    chosen="select id from images where account_id = $1 and state = 'failed' order by created_at limit $2",
    file_missing=FILE_MISSING,
)


async def delete_stored_batch(connection: Connection, account_id: AccountId, limit: int) -> list[ImageId]:
    """Delete up to `limit` images that the account stores, in one commit; returns none if none are left.

    Their files are the caller's to remove, as those of `delete_images`.
    """
    return [ImageId(row[0]) for row in await connection.fetch(_DELETE_STORED, account_id, limit)]


async def delete_failed_batch(connection: Connection, account_id: AccountId, limit: int) -> list[ImageId]:
    """Delete up to `limit` rows of images that were refused, as `delete_stored_batch` does."""
    return [ImageId(row[0]) for row in await connection.fetch(_DELETE_FAILED, account_id, limit)]
