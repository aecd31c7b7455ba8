"""How a pending image ends: ready or failed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from service.database import Connection, Database
from service.ids import ImageId
from service.images.models import COLUMNS, Image
from service.images.probe import Probe

# What the probe found can be found again, so this commit need not wait for the disk; the setting holds for this
# transaction alone. Rows are locked in the order of their ids, here and in every statement that locks several.
_MARK_READY = f"""
with found as (
    select * from unnest(
        $1::text[], $2::text[], $3::int[], $4::int[], $5::smallint[], $6::int[], $7::bool[], $8::text[], $9::bytea[]
    ) as found (id, format, width, height, orientation, pages, has_alpha, exif, mini_preview)
), locked as materialized (
    select images.id from images join found on found.id = images.id
    where images.state = 'pending' order by images.id for no key update of images
), relaxed as materialized (
    select set_config('synchronous_commit', 'off', true)
)
update images set
    state = 'ready', format = found.format, width = found.width, height = found.height,
    orientation = found.orientation, pages = found.pages, has_alpha = found.has_alpha,
    exif = found.exif::json, mini_preview = found.mini_preview
from found join locked on locked.id = found.id, relaxed
where images.id = found.id and images.state = 'pending'
returning {COLUMNS}, images.exif::text, images.mini_preview
"""


async def mark_ready(database: Database, found: Sequence[tuple[ImageId, Probe]]) -> list[Image | None]:
    """Write a batch of findings in one commit. None stands for a row that is gone or was finished before."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            _MARK_READY,
            [image_id for image_id, _ in found],
            [probe.format for _, probe in found],
            [probe.width for _, probe in found],
            [probe.height for _, probe in found],
            [probe.orientation for _, probe in found],
            [probe.pages for _, probe in found],
            [probe.has_alpha for _, probe in found],
            [msgspec.json.encode(probe.exif).decode() for _, probe in found],
            [probe.mini_preview for _, probe in found],
        )
    ready = {row[0]: Image(*row) for row in rows}
    return [ready.get(image_id) for image_id, _ in found]


# The image's row is locked before the account's, as everywhere; the file's removal is noted in the same commit. A file
# that could not be found is not to be removed if it comes back. The Idempotency-Key is free: a refusal is not kept.
FILE_MISSING = "image-lost"
_MARK_FAILED = f"""
with failed as (
    update images set
        state = 'failed', error = $2, error_kind = $3, failed_at = now(), idempotency_key = null, idempotency_url = null
    where id = $1 and state = 'pending' returning {COLUMNS}
), uncharged as (
    update accounts set
        used_bytes = accounts.used_bytes - failed.size, num_images = accounts.num_images - 1, changed_at = now()
    from failed where accounts.id = failed.account_id
), noted as (
    insert into removals (image_id) select id from failed where error <> '{FILE_MISSING}' on conflict do nothing
)
select * from failed
"""


async def mark_failed(connection: Connection, image_id: ImageId, error: str, kind: str | None = None) -> Image | None:
    """Refuse a pending image: it is uncounted and its file is to be removed. None if it is pending no more.

    `kind` names what is not supported, as in `Rejected`.
    """
    row = await connection.fetchrow(_MARK_FAILED, image_id, error, kind)
    return None if row is None else Image(*row)


_COUNT_CRASH = "update images set crashes = crashes + 1 where id = $1 and state = 'pending' returning crashes"


async def count_crash(connection: Connection, image_id: ImageId) -> int:
    """How often this picture has taken its child process with it, this time included; 0 if it is pending no more."""
    return await connection.fetchval(_COUNT_CRASH, image_id) or 0


_PENDING_AGE = """
select extract(epoch from now() - created_at)::float8 from images where id = $1 and state = 'pending'
"""


async def find_pending_age_s(connection: Connection, image_id: ImageId) -> float | None:
    """How long ago the image was accepted, by the one clock that knows; None if it is pending no more."""
    age_s: float | None = await connection.fetchval(_PENDING_AGE, image_id)
    return age_s


_FORGET_FAILED = "delete from images where id = $1 and state = 'failed'"


async def forget_failed(connection: Connection, image_id: ImageId) -> None:
    """Drop a failed row whose client has been told."""
    await connection.execute(_FORGET_FAILED, image_id)


# Other requests with its Idempotency-Key may wait for it, in other processes: they look at the row once a second.
_FORGET_SOON = """
update images set failed_at = least(failed_at, now() - interval '24 hours' + interval '1 minute')
where id = $1 and state = 'failed'
"""


async def forget_failed_soon(connection: Connection, image_id: ImageId) -> None:
    """Let the sweep, which drops failed rows after a day, drop this one in a minute."""
    await connection.execute(_FORGET_SOON, image_id)
