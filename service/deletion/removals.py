"""The table `removals`, an outbox of files to remove: the statement that deletes or fails an image inserts a row, which
is deleted once the file is removed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

import structlog

from service.database import Connection, Database
from service.dependencies.outages import STORAGE
from service.ids import ImageId
from service.renditions.queries import DerivedRendition, delete_renditions, list_by_images
from service.storage.interface import OriginalStorage, RenditionKey, RenditionStorage

log = structlog.get_logger("service")


class Removal(NamedTuple):
    removed_at: datetime
    image_id: ImageId


# Excludes ids that a new image has. A time in the future was written before PostgreSQL's clock was set back.
_LIST = """
select removed_at, image_id from removals
where (removed_at < now() - $1::float8 * interval '1 second' or removed_at > now() + interval '1 minute')
    and not exists (select from images where images.id = removals.image_id and images.state <> 'failed')
    and ($3::timestamptz is null or (removed_at, image_id) > ($3, $4))
order by removed_at, image_id limit $2
"""


async def list_removals(
    connection: Connection, age_s: float, limit: int, after: Removal | None = None
) -> list[Removal]:
    """Returns removals that are older than `age_s`, whose files may still exist, in order, after the row `after`."""
    rows = await connection.fetch(_LIST, age_s, limit, *(after or (None, None)))
    return [Removal(row[0], ImageId(row[1])) for row in rows]


_CLEAR = "delete from removals where image_id = any($1)"


async def remove_files(
    database: Database, storage: OriginalStorage, renditions: RenditionStorage, image_ids: Sequence[ImageId]
) -> None:
    """Removes the files of images that are in `removals`. Removes their renditions first.

    If a file cannot be removed, the sweep retries its image; the others are not affected.
    """
    if not image_ids:
        return
    async with database.connection() as connection:
        derived = await list_by_images(connection, image_ids)
    stuck = await _remove_renditions(renditions, image_ids, derived)
    removed = await _remove_originals(storage, image_ids)
    async with database.connection() as connection:
        await delete_renditions(connection, [one.key for one in derived if one.key not in stuck.keys])
        await connection.execute(_CLEAR, [image_id for image_id in removed if image_id not in stuck.image_ids])


class _Stuck(NamedTuple):
    """Renditions that could not be removed, and their images."""

    keys: Collection[RenditionKey]
    image_ids: Collection[ImageId]


async def _remove_renditions(
    renditions: RenditionStorage, image_ids: Sequence[ImageId], derived: Sequence[DerivedRendition]
) -> _Stuck:
    """If the storage cannot be reached, all are stuck, because they still exist there."""
    keys = [one.key for one in derived]
    try:
        stuck_ids = await renditions.remove_for_images(image_ids)
        stuck_keys = await renditions.remove(keys)
    except OSError as error:
        level = logging.DEBUG if STORAGE.is_under_way else logging.WARNING  # usually they are on the same disk
        log.log(level, "removal.failed", images=len(image_ids), first_error=repr(error))
        return _Stuck(keys, image_ids)
    for one in derived:
        if one.key in stuck_keys:
            stuck_ids |= {one.key.image_id} | ({one.watermark_id} if one.watermark_id else set())
    return _Stuck(stuck_keys, stuck_ids)


async def _remove_originals(storage: OriginalStorage, image_ids: Sequence[ImageId]) -> list[ImageId]:
    """Returns the images whose files are removed. Logs one line for all failures, or the outage of the storage."""
    try:
        failures = await storage.remove(image_ids)
    except OSError as error:
        STORAGE.report(error)
        return []
    if failures:
        image_id, first = next(iter(failures.items()))
        log.warning("removal.failed", images=len(failures), image_id=image_id, first_error=repr(first))
    return [image_id for image_id in image_ids if image_id not in failures]
