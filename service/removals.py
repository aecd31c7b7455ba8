"""Files to remove: noted by the statement that ends an image's row, cleared once the file is gone."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from service.database import Connection, Database
from service.ids import ImageId
from service.storage.disk import DiskStorage

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


async def remove_files(database: Database, storage: DiskStorage, image_ids: Sequence[ImageId]) -> None:
    """Remove the files of images whose removal is noted. One that cannot be removed now is left to the sweep."""
    removed = []
    for image_id in image_ids:
        try:
            await storage.remove(image_id)
            removed.append(image_id)
        except OSError as error:
            log.warning("removal.failed", image_id=image_id, error=repr(error))
    if removed:
        async with database.connection() as connection:
            await connection.execute(_CLEAR, removed)
