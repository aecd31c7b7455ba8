"""Images that their owner deletes, or that go with their account."""

from __future__ import annotations

from collections.abc import Sequence

from service.database import Connection
from service.ids import AccountId, ImageId
from service.images.models import COLUMNS, SLIM, Image, Large
from service.images.queries import require_all
from service.images.updates import FILE_MISSING

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
    connection: Connection, image_ids: Sequence[ImageId], account_id: AccountId, large: Large = SLIM
) -> list[Image]:
    """Delete all of these different images, or none; answers what they were, in this order.

    The files are the caller's to remove (`removals.remove_files`), and the sweep's if it dies. Raises `invalid-id` for
    one that is not stored in this account.
    """
    rows = await connection.fetch(_DELETE, image_ids, account_id, *large)
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


async def delete_some(connection: Connection, account_id: AccountId, limit: int) -> list[ImageId]:
    """Delete up to `limit` images that the account stores, in one commit; returns none if none are left.

    Their files are the caller's to remove, as those of `delete_images`.
    """
    return [ImageId(row[0]) for row in await connection.fetch(_DELETE_STORED, account_id, limit)]


async def delete_failed(connection: Connection, account_id: AccountId, limit: int) -> list[ImageId]:
    """Delete up to `limit` rows of images that were refused, as `delete_some` does."""
    return [ImageId(row[0]) for row in await connection.fetch(_DELETE_FAILED, account_id, limit)]
