"""New rows, in groups, and the quota they are held to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import asyncpg

from service.database import Connection, Database
from service.errors import ServiceError
from service.images.records import NewImage


class IdTaken(Exception):
    """Another image has this id: take a new one and try again."""


# All or nothing for each account: its share of the batch fits the quota, or none of it is inserted. The accounts'
# rows are locked in the order of their ids, so that two batches cannot deadlock; the quota is decided on the rows as
# they are then. Tags have no commas, so that they travel as one text a row.
_INSERT = """
with new as (
    select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bytea[], $5::text[])
    as new (id, account_id, size, sha256, tags)
), shares as (
    select account_id, sum(size)::bigint as bytes, count(*) as images from new group by account_id
), locked as materialized (
    select id from accounts where id in (select account_id from shares) order by id for no key update
), charged as (
    update accounts set
        used_bytes = accounts.used_bytes + shares.bytes,
        num_images = accounts.num_images + shares.images,
        changed_at = now()
    from shares join locked on locked.id = shares.account_id
    where accounts.id = locked.id and accounts.used_bytes + shares.bytes <= accounts.max_bytes
    returning accounts.id
)
insert into images (id, account_id, size, sha256, tags)
select new.id, new.account_id, new.size, new.sha256, string_to_array(new.tags, ',')
from new join charged on charged.id = new.account_id
returning id
"""


async def _insert(connection: Connection, images: Sequence[NewImage]) -> set[str]:
    rows = await connection.fetch(
        _INSERT,
        [image.id for image in images],
        [image.account_id for image in images],
        [image.size for image in images],
        [image.sha256 for image in images],
        [",".join(image.tags) for image in images],
    )
    return {row[0] for row in rows}


async def insert_pending(database: Database, images: Sequence[NewImage]) -> list[Exception | None]:
    """Insert a batch of rows in one commit, charging their accounts.

    Answers, for each image in order, None, or `quota-exceeded`, or IdTaken. An account whose share of the batch
    does not fit has its images tried one by one, in order.
    """
    inserted: set[str] = set()
    with suppress(asyncpg.UniqueViolationError):  # one of the ids is taken
        async with database.connection() as connection:
            inserted = await _insert(connection, images)
    return [None if image.id in inserted else await _insert_alone(database, image) for image in images]


async def _insert_alone(database: Database, image: NewImage) -> Exception | None:
    try:
        async with database.connection() as connection:
            inserted = await _insert(connection, [image])
    except asyncpg.UniqueViolationError:
        return IdTaken(image.id)
    except Exception as error:  # it must not speak for those that are inserted
        return error
    return None if inserted else ServiceError("quota-exceeded")
