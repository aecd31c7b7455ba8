"""Images by their ids."""

from __future__ import annotations

from collections.abc import Container, Sequence

from service.database import Connection
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.images.records import COLUMNS, WHOLE, Image, Large

_FIND = f"""
select {COLUMNS}, case when $3 then images.exif::text end, case when $4 then images.mini_preview end
from images where id = $1 and account_id = $2
"""


async def find_image(
    connection: Connection, image_id: ImageId, account_id: AccountId, large: Large = WHOLE
) -> Image | None:
    """None for an unknown id and for one of another account alike."""
    row = await connection.fetchrow(_FIND, image_id, account_id, *large)
    return None if row is None else Image(*row)


_LOAD = f"select {COLUMNS}, images.exif::text, images.mini_preview from images where id = $1"


async def load_image(connection: Connection, image_id: ImageId) -> Image | None:
    """Any account's image, whole: for the worker, never for a client."""
    row = await connection.fetchrow(_LOAD, image_id)
    return None if row is None else Image(*row)


def require_all(asked: Sequence[ImageId], found: Container[ImageId], code: str) -> None:
    """Raises `code`, naming the first image that is missing; one of another account is missing like any other."""
    for image_id in asked:
        if image_id not in found:
            raise ServiceError(code, f"There is no image {image_id} in your account; nothing was changed.")
