"""Changes of image rows by clients: tags and deletion.

A statement that locks several rows locks the images in the order of their ids, and then the account. The commit that
deletes a row also records the removal of its file.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from service.database import Connection
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.images.models import COLUMNS, NO_BLOBS, Image, Include
from service.images.pending import FILE_MISSING
from service.images.tag_rules import MAX_TAGS

# All or nothing, decided on the locked rows. These may be newer than the statement's snapshot, so the former tags are
# read from `locked` only. Images whose tags stay the same are not written. Tags that were stored before tags were
# normalised become NFC here, if the encoding of the database allows it.
_CHANGE_TAGS = f"""
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
    """Appends and removes tags of all of these distinct images, or of none.

    Returns the changed images in this order. Raises `image-not-found` and `too-many-tags`.
    """
    rows = await connection.fetch(_CHANGE_TAGS, image_ids, account_id, add, remove, *include)
    changed = {image.id: image for image in (replace(Image(*row[1:]), tags=row[0]) for row in rows)}
    _require_all(image_ids, changed, "image-not-found")
    for image in changed.values():
        if len(image.tags) > MAX_TAGS:
            raise ServiceError(
                "too-many-tags", f"Image {image.id} would have more than {MAX_TAGS} tags; nothing was changed."
            )
    return [changed[image_id] for image_id in image_ids]


# All or nothing, decided on the locked rows.
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
), credited as (
    update accounts set
        used_bytes = accounts.used_bytes - share.bytes,
        num_images = accounts.num_images - share.images,
        changed_at = now()
    from share where accounts.id = $2
), recorded as (
    insert into removals (image_id) select id from deleted on conflict do nothing
)
select locked.id, deleted.* from locked left join deleted on deleted.id = locked.id
"""


async def delete_images(
    connection: Connection, image_ids: Sequence[ImageId], account_id: AccountId, include: Include = NO_BLOBS
) -> list[Image]:
    """Deletes all of these distinct images, or none. Returns the deleted images in this order.

    The caller removes the files (`removals.remove_files`); the sweep does if the caller crashes. Raises `invalid-id`
    for an image that is not stored in this account.
    """
    rows = await connection.fetch(_DELETE, image_ids, account_id, *include)
    columns = {ImageId(row[0]): row[1:] for row in rows}
    _require_all(image_ids, columns, "invalid-id")
    return [Image(*columns[image_id]) for image_id in image_ids]


def _require_all(image_ids: Sequence[ImageId], present: Container[ImageId], code: str) -> None:
    """Raises `code` for the first id that is not `present`. An image of another account counts as missing."""
    for image_id in image_ids:
        if image_id not in present:
            raise ServiceError(code, f"There is no image {image_id} in your account; nothing was changed.")


# A failed image does not count, and the removal of its file was recorded when it failed, unless the file was missing.
# If such a file was restored, it is removed now.
_DELETE_BATCH = """
with chosen as materialized (
    {chosen}
), locked as materialized (
    select images.id from images join chosen using (id) order by images.id for update of images
), deleted as (
    delete from images using locked where images.id = locked.id
    returning images.id, images.size, images.state, images.error
), share as (
    select sum(size)::bigint as bytes, count(*) as images from deleted where state <> 'failed' having count(*) > 0
), credited as (
    update accounts set
        used_bytes = accounts.used_bytes - share.bytes,
        num_images = accounts.num_images - share.images,
        changed_at = now()
    from share where accounts.id = $1
), recorded as (
    insert into removals (image_id) select id from deleted where state <> 'failed' or error = '{file_missing}'
    on conflict do nothing
)
select id from deleted
"""
# The first walks the index of the search, the second that of images that are not ready.
_DELETE_STORED = _DELETE_BATCH.format(
    chosen="select id from images where account_id = $1 and state <> 'failed' order by created_at, id limit $2",
    file_missing=FILE_MISSING,
)
_DELETE_FAILED = _DELETE_BATCH.format(
    chosen="select id from images where account_id = $1 and state = 'failed' order by created_at limit $2",
    file_missing=FILE_MISSING,
)


async def delete_stored_batch(connection: Connection, account_id: AccountId, limit: int) -> list[ImageId]:
    """Deletes up to `limit` images that the account stores, in one commit. Returns their ids; none if none remain.

    The caller removes the files, as after `delete_images`.
    """
    return [ImageId(row[0]) for row in await connection.fetch(_DELETE_STORED, account_id, limit)]


async def delete_failed_batch(connection: Connection, account_id: AccountId, limit: int) -> list[ImageId]:
    """Deletes up to `limit` failed images, as `delete_stored_batch` does."""
    return [ImageId(row[0]) for row in await connection.fetch(_DELETE_FAILED, account_id, limit)]
