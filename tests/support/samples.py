"""Sample bodies, rows and tags, and the files of the storage."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from service.config.settings import Settings
from service.storage.local.disk import ID_FILE

if TYPE_CHECKING:
    from tests.conftest import Tenant


def jpeg(width: int = 64, height: int = 48, *, quality: int = 80, exif: dict[int, object] | None = None) -> bytes:
    """Returns a JPEG of noise, which does not compress well."""
    return _jpeg(width, height, quality, tuple((exif or {}).items()))


@functools.cache
def _jpeg(width: int, height: int, quality: int, tags: tuple[tuple[int, object], ...]) -> bytes:
    exif = Image.Exif()
    for tag, value in tags:
        exif[tag] = value
    out = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(out, "JPEG", quality=quality, exif=exif)
    return out.getvalue()


def slow_svg(filters: int) -> bytes:
    """Returns a picture that takes a decoder about a twentieth of a second per filter."""
    return (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="380" height="290"><filter id="slow">'
        + b'<feTurbulence baseFrequency="0.05" numOctaves="10"/>' * filters
        + b'</filter><rect width="380" height="290" filter="url(#slow)"/></svg>'
    )


def stored_files(settings: Settings) -> list[Path]:
    """Returns every file of the storage except the one with its id."""
    return sorted(path for path in settings.storage_folder.rglob("*") if path.is_file() and path.name != ID_FILE)


async def insert_image(
    connection: Any,
    tenant: Tenant,
    image_id: str,
    *,
    tags: Sequence[str] = (),
    state: str = "ready",
    size: int = 10,
    format: str = "jpeg",  # noqa: A002
    sha256: bytes = bytes(32),
    created_at: datetime | None = None,
) -> None:
    """Inserts the row of an upload and adds it to the counters of its account. There is no file."""
    await connection.execute(
        """
        with charged as (
            update accounts set used_bytes = used_bytes + $4, num_images = num_images + 1
            where id = $2 and $3 <> 'failed'
        )
        insert into images (id, account_id, state, size, tags, format, sha256, created_at, error, failed_at,
            width, height, orientation, pages, has_alpha, exif, mini_preview)
        values ($1, $2, $3, $4, $5, $6, $7, coalesce($8, now()),
            case when $3 = 'failed' then 'damaged-image' end, now(), 40, 30, 1, 1, false, '{"Make": "Daguerre"}', 'x')
        """,
        image_id,
        tenant.id,
        state,
        size,
        list(tags),
        format,
        sha256,
        created_at,
    )


ODD_TAGS = [
    'it\'s "quoted"',
    "back\\slash",
    "100%",
    "{curly}",
    "NULL",
    "Grüße",
    "猫",
    "🐈",
    "a b",
    "$1",
    "a;b",
    "x=y&z",
]


JPEG_TYPE = {"Content-Type": "image/jpeg"}
