"""Images as rows without files, thousands in a statement."""

from __future__ import annotations

from datetime import UTC, datetime

from service.database import Connection
from service.ids import AccountId

START = datetime(2026, 1, 1, tzinfo=UTC)
PER_MINUTE = 3

# In each fill 20 of the images are rare and 20 others are GIFs; every second one is even and every other odd; the
# first half is early and the second late. The ids are as scattered as those of uploads.
_FILL = """
insert into images (id, account_id, state, size, sha256, tags, created_at, format, width, height, orientation, pages,
    has_alpha, exif, mini_preview)
select left(translate(encode(sha256(($1::bigint || '/' || n)::bytea), 'base64'), '+/', 'Zz'), 11), $1, 'ready', 1000,
    sha256(n::text::bytea),
    array['common', case when n % 2 = 0 then 'even' else 'odd' end, case when k < $2 / 2 then 'early' else 'late' end]
        || case when k % greatest($2 / 20, 20) = 7 then array['rare'] else '{}' end,
    $3::timestamptz + n / $4::int * interval '1 minute',
    case when k % greatest($2 / 20, 20) = 9 then 'gif' else 'jpeg' end,
    2000, 1500, 1, 1, false, '{}', sha256(n::text::bytea)
from generate_series(1, $2::int) as k cross join lateral (select $5::int + k) as numbered (n)
"""
_CHARGE = """
update accounts set used_bytes = used_bytes + 1000 * $2::bigint, num_images = num_images + $2, changed_at = now()
where id = $1
"""
_TIMEOUT_S = 1200


async def fill(connection: Connection, account_id: AccountId, images: int, *, after: int = 0) -> None:
    """Adds `images` images to the account and its counters. `after` is the number added before."""
    async with connection.transaction():
        await connection.execute(_FILL, account_id, images, START, PER_MINUTE, after, timeout=_TIMEOUT_S)
        await connection.execute(_CHARGE, account_id, images)


async def settle(connection: Connection) -> None:
    """Does what autovacuum would have done by the time a database has this size."""
    await connection.execute("vacuum analyze", timeout=_TIMEOUT_S)
