"""Files to remove: noted by the statement that ends an image's row, cleared once the file is gone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import structlog

from service.database import Connection, Database
from service.delivery.rows import forget_renditions, list_of_images
from service.ids import ImageId
from service.storage.disk import DiskStorage
from service.storage.files import in_thread
from service.storage.renditions import RenditionFiles

log = structlog.get_logger("service")

# Not of an image that has got the id anew.
_LIST = """
select image_id from removals where removed_at < now() - $1::float8 * interval '1 second'
    and not exists (select from images where images.id = removals.image_id and images.state <> 'failed')
order by removed_at limit $2
"""


async def list_removals(connection: Connection, age_s: float, limit: int) -> list[ImageId]:
    """Images that have been gone for longer than `age_s` but whose files may still be there."""
    return [ImageId(row[0]) for row in await connection.fetch(_LIST, age_s, limit)]


_CLEAR = "delete from removals where image_id = any($1)"


async def remove_files(
    database: Database, storage: DiskStorage, renditions: RenditionFiles, image_ids: Sequence[ImageId]
) -> None:
    """Remove the files of images whose removal is noted, and before them what was made of them. What cannot be removed
    now is left to the sweep.
    """
    if not image_ids:
        return
    async with database.connection() as connection:
        made = await list_of_images(connection, image_ids)
    try:
        await in_thread(partial(renditions.remove_of_images, image_ids))
        await in_thread(partial(renditions.remove, made))
    except OSError as error:
        log.warning("removal.failed", renditions=len(made), error=repr(error))
        return
    removed = []
    for image_id in image_ids:
        try:
            await storage.remove(image_id)
            removed.append(image_id)
        except OSError as error:
            log.warning("removal.failed", image_id=image_id, error=repr(error))
    async with database.connection() as connection:
        await forget_renditions(connection, made)
        await connection.execute(_CLEAR, removed)
