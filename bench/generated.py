"""Inserts many images as rows without files, all in one statement."""

from __future__ import annotations

from datetime import UTC, datetime

from service.database import Connection
from service.ids import AccountId

START = datetime(2026, 1, 1, tzinfo=UTC)
PER_MINUTE = 3

# All images have the tag "common", and "even" or "odd" alternately; the first half has "early", the second "late"; 20
# have "rare". 20 others are GIFs, the rest are JPEGs. The ids are as randomly distributed as those of uploads.
_INSERT_IMAGES = """
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
_ADD_TO_COUNTERS = """
update accounts set used_bytes = used_bytes + 1000 * $2::bigint, num_images = num_images + $2, changed_at = now()
where id = $1
"""
_TIMEOUT_S = 1200


async def insert_images(connection: Connection, account_id: AccountId, count: int, *, after: int = 0) -> None:
    """Inserts `count` images of the account and adds them to its counters. `after` is the number inserted before."""
    async with connection.transaction():
        await connection.execute(_INSERT_IMAGES, account_id, count, START, PER_MINUTE, after, timeout=_TIMEOUT_S)
        await connection.execute(_ADD_TO_COUNTERS, account_id, count)


async def vacuum(connection: Connection) -> None:
    """Vacuums and analyzes the database, as autovacuum does while a real one grows."""
    await connection.execute("vacuum analyze", timeout=_TIMEOUT_S)
