"""Inserts of images in batches, and the quota that they must fit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from typing import TypeGuard

import asyncpg

from service.accounts.accounts import AccountUnknown, load_account
from service.database import Connection, Database
from service.errors import ServiceError
from service.ids import AccountId
from service.images.idempotency import ScopedKey, find_used_keys, release_if_expired
from service.images.models import NewImage


class IdTaken(Exception):
    """Another image has this id: try again with a new one."""


class KeyTaken(Exception):
    """The account has, or had a moment ago, an image under this Idempotency-Key."""


_KEY_INDEX = "images_idempotency_key"

# Images are inserted one by one until one insert has waited this long and failed because the database is unavailable:
# each of the others would wait as long, and the next batch behind them.
_MAX_OUTAGE_WAIT_S = 1.0

# All or nothing for each account: its share of the batch fits the quota, or none of it is inserted. The accounts' rows
# are locked in the order of their ids, so that two batches cannot deadlock. The quota is decided on the locked rows.
# Tags contain no commas, so the tags of a row are sent as one text.
_INSERT = """
with new as (
    select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bytea[], $5::text[], $6::text[], $7::bytea[])
    as new (id, account_id, size, sha256, tags, idempotency_key, idempotency_url)
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
        and accounts.suspended_at is null
    returning accounts.id
)
insert into images (id, account_id, size, sha256, tags, idempotency_key, idempotency_url)
select new.id, new.account_id, new.size, new.sha256, string_to_array(new.tags, ','),
    new.idempotency_key, new.idempotency_url
from new join charged on charged.id = new.account_id
returning id
"""


async def _insert(connection: Connection, images: Sequence[NewImage]) -> set[str]:
    keys = [image.idempotency_key for image in images]
    rows = await connection.fetch(
        _INSERT,
        [image.id for image in images],
        [image.account_id for image in images],
        [image.size for image in images],
        [image.sha256 for image in images],
        [",".join(image.tags) for image in images],
        [key and key.text for key in keys],
        [key and key.url_sha256 for key in keys],
    )
    return {row[0] for row in rows}


def _scoped_key(image: NewImage) -> ScopedKey | None:
    key = image.idempotency_key
    return None if key is None else (image.account_id, key.text)


async def insert_pending(
    database: Database, images: Sequence[NewImage], *, max_outage_wait_s: float = _MAX_OUTAGE_WAIT_S
) -> list[Exception | None]:
    """Inserts a batch of images in one commit and charges their accounts.

    Returns for each image, in order, None, `quota-exceeded`, `account-suspended`, `unauthorized` if the account was
    deleted, IdTaken or KeyTaken. If an account's share of the batch does not fit, its images are inserted one by one,
    in order.
    """
    async with database.connection() as connection:
        inserted, used_keys = await _insert_together(connection, images)
    results: list[Exception | None] = []
    outage: ServiceError | None = None
    for image in images:
        key = _scoped_key(image)
        result: Exception | None = None
        if image.id in inserted:
            pass
        elif key in used_keys:
            result = KeyTaken(image.id)
        elif outage is not None:
            result = outage
        else:
            began = time.monotonic()
            result = await _insert_alone(database, image)
            if _is_outage(result) and time.monotonic() - began > max_outage_wait_s:
                outage = result
        if key is not None and result is None:
            used_keys.add(key)
        results.append(result)
    return results


async def _insert_together(connection: Connection, images: Sequence[NewImage]) -> tuple[set[str], set[ScopedKey]]:
    """Returns the ids of the images that were inserted, and the keys of the batch that were in use before."""
    keys = [key for image in images if (key := _scoped_key(image))]
    used_keys: set[ScopedKey] = set()
    for _ in range(2 if keys else 1):
        if keys:
            used_keys = await find_used_keys(connection, keys)
        new = list(_skip_used_keys(images, used_keys))
        # An id is taken, or a key since it was looked up; or another transaction ends an image with a key of this batch
        # and holds it while it waits for the account.
        with suppress(asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError):
            return (await _insert(connection, new) if new else set()), used_keys
    return set(), used_keys


def _skip_used_keys(images: Sequence[NewImage], used_keys: Set[ScopedKey]) -> Iterator[NewImage]:
    """Yields the images whose keys are not in use; of several with the same key the first."""
    seen = set(used_keys)
    for image in images:
        key = _scoped_key(image)
        if key not in seen:
            yield image
        if key is not None:
            seen.add(key)


async def _insert_alone(database: Database, image: NewImage) -> Exception | None:
    key = _scoped_key(image)
    try:
        async with database.connection() as connection:
            try:
                inserted = await _insert(connection, [image])
            except asyncpg.UniqueViolationError as violation:
                if key is None or violation.constraint_name != _KEY_INDEX:
                    return IdTaken(image.id)
                if not await release_if_expired(connection, key):
                    return KeyTaken(image.id)
                inserted = await _insert(connection, [image])
            # The image that fills the account may be the one that this request repeats.
            if not inserted and key is not None and await find_used_keys(connection, [key]):
                return KeyTaken(image.id)
            return None if inserted else await _find_refusal(connection, image.account_id)
    except asyncpg.UniqueViolationError:  # another request took the key that was released
        return KeyTaken(image.id)
    except Exception as error:  # it concerns this image alone: others are inserted already
        return error


def _is_outage(result: Exception | None) -> TypeGuard[ServiceError]:
    return isinstance(result, ServiceError) and result.code == "database-unavailable"


async def _find_refusal(connection: Connection, account_id: AccountId) -> ServiceError:
    """Returns why an image of this account was not inserted."""
    try:
        account = await load_account(connection, account_id)
    except AccountUnknown:
        return ServiceError("unauthorized")
    return ServiceError("account-suspended" if account.is_suspended else "quota-exceeded")
