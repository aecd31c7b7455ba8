"""Images that their owner deletes."""

from __future__ import annotations

from collections.abc import Sequence

from service.database import Connection
from service.ids import AccountId, ImageId
from service.images.lookups import require_all
from service.images.records import COLUMNS, SLIM, Image, Large

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
