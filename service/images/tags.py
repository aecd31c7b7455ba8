"""The tags of images that are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.database import Connection
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.images.models import COLUMNS, SLIM, Image, Large
from service.images.queries import require_all
from service.images.tag_rules import MAX_TAGS

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
    large: Large = SLIM,
) -> list[Image]:
    """Add tags behind those that are there, and remove some, for all of these different images or for none.

    Answers the images as they are then, in this order. Raises `image-not-found` and `too-many-tags`.
    """
    rows = await connection.fetch(_CHANGE, image_ids, account_id, add, remove, *large)
    changed = {image.id: image for image in (replace(Image(*row[1:]), tags=row[0]) for row in rows)}
    require_all(image_ids, changed, "image-not-found")
    for image in changed.values():
        if len(image.tags) > MAX_TAGS:
            raise ServiceError(
                "too-many-tags", f"Image {image.id} would have more than {MAX_TAGS} tags; nothing was changed."
            )
    return [changed[image_id] for image_id in image_ids]
