"""The search: an account's ready images, newest first, one page at a time.

Each filter has an index in the order of the results. So a page is a scan of one of these indexes from the end of the
previous page, and costs the same at any position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from service.database import Connection
from service.ids import AccountId, ImageId
from service.images.models import COLUMNS, NO_BLOBS, Image, Include

_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of a search, which must all match. `created_after` is inclusive, `created_before` exclusive."""

    tags: Sequence[str] = ()
    format: str | None = None
    sha256: bytes | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the order of the results: after this image, which may be deleted by now."""

    created_at: datetime
    id: ImageId


# A page is a walk along one index. Each entry's other tags are looked up in image_tags before its image. The format, if
# the walk does not follow it, is compared in the image. `offset 0` keeps the planner from turning the walk into a join
# with a sort, e.g. without statistics or with a plan made for other values. The subquery compares the id alone, so that
# no other index of ready images looks equally good.
_PAGE = f"""
select {COLUMNS}, case when $6 then images.exif::text end, case when $7 then images.mini_preview end
from {{walk}} as walk cross join lateral (
    select * from images where images.id = walk.id offset 0
) as images
where images.state = 'ready' {{format_filter}}
and walk.account_id = $1 and (walk.created_at, walk.id) < ($2, $3) and walk.created_at >= $4 and (
    select count(*) from image_tags where image_tags.account_id = $1 and image_tags.tag = any($5)
        and image_tags.created_at = walk.created_at and image_tags.image_id = walk.id
) = cardinality($5)
order by walk.created_at desc, walk.id desc limit $8
"""
_WALKS = {
    "all": "(select account_id, created_at, id from images where state <> 'failed')",
    "format": "(select account_id, created_at, id from images where state = 'ready' and format = $9)",
    "sha256": "(select account_id, created_at, id from images where state = 'ready' and sha256 = $9)",
    "tag": "(select account_id, created_at, image_id as id from image_tags where tag = $9)",
}


async def search_images(
    connection: Connection,
    account_id: AccountId,
    filters: Filters,
    after: Position | None,
    limit: int,
    *,
    include: Include = NO_BLOBS,
) -> list[Image]:
    """Returns up to `limit` images after the position, or the first ones if it is None."""
    start = after or Position(filters.created_before or _LAST, ImageId(""))
    walk = await _choose_walk(connection, account_id, filters, start)
    filtered = filters.format is not None and walk.name != "format"
    rows = await connection.fetch(
        _PAGE.format(walk=_WALKS[walk.name], format_filter="and images.format = $10" if filtered else ""),
        account_id,
        start.created_at,
        start.id,
        walk.oldest,
        [tag for tag in filters.tags if (walk.name, walk.value) != ("tag", tag)],
        *include,
        limit,
        *([] if walk.value is None else [walk.value]),
        *([filters.format] if filtered else []),
    )
    return [Image(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class _Walk:
    name: str
    value: str | bytes | None
    oldest: datetime


# With several terms, the walk follows the one that is rarest around this position: the one whose next `_SAMPLE_SIZE`
# entries reach furthest back in time. It ends at the latest of the oldest entries of the terms.
_SAMPLE_SIZE = 256
_SAMPLE_TERMS = f"""
select 'tag', tag,
    (select created_at from image_tags where account_id = $1 and image_tags.tag = terms.tag
        order by created_at, image_id limit 1),
    (select created_at from image_tags where account_id = $1 and image_tags.tag = terms.tag
        and (created_at, image_id) < ($2, $3) and created_at >= $4
        order by created_at desc, image_id desc offset {_SAMPLE_SIZE} limit 1) as reach
from unnest($5::text[]) as terms (tag)
union all
select 'format', format,
    (select created_at from images where account_id = $1 and state = 'ready' and images.format = terms.format
        order by created_at, id limit 1),
    (select created_at from images where account_id = $1 and state = 'ready' and images.format = terms.format
        and (created_at, id) < ($2, $3) and created_at >= $4
        order by created_at desc, id desc offset {_SAMPLE_SIZE} limit 1)
from unnest($6::text[]) as terms (format)
order by reach nulls first
"""


async def _choose_walk(connection: Connection, account_id: AccountId, filters: Filters, start: Position) -> _Walk:
    oldest = filters.created_after or _FIRST
    if filters.sha256 is not None:
        return _Walk("sha256", filters.sha256, oldest)
    if filters.format is not None and not filters.tags:
        return _Walk("format", filters.format, oldest)
    if not filters.tags:
        return _Walk("all", None, oldest)
    if filters.format is None and len(filters.tags) == 1:
        return _Walk("tag", filters.tags[0], oldest)
    formats = [] if filters.format is None else [filters.format]
    terms = await connection.fetch(_SAMPLE_TERMS, account_id, start.created_at, start.id, oldest, filters.tags, formats)
    name, value, _, _ = terms[0]
    return _Walk(name, value, max(oldest, *(first or _LAST for _, _, first, _ in terms)))
