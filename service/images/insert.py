"""New rows, in groups, and the quota they are held to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress

import asyncpg

from service.accounts.accounts import AccountUnknown, load_account
from service.database import Connection, Database
from service.errors import ServiceError
from service.ids import AccountId
from service.images.idempotency import ScopedKey, find_used_keys, release_if_expired
from service.images.models import NewImage


class IdTaken(Exception):
    """Another image has this id: take a new one and try again."""


class KeyTaken(Exception):
    """The account has, or had a moment ago, an image under this Idempotency-Key."""


_KEYS = "images_idempotency_key"  # the index that keeps keys apart

# Images are tried one by one until one has waited this long to hear that the database is away: each of the others would
# wait as long again, and the next batch behind them all.
_PATIENCE_S = 1.0

# All or nothing for each account: its share of the batch fits the quota, or none of it is inserted. The accounts'
# rows are locked in the order of their ids, so that two batches cannot deadlock; the quota is decided on the rows as
# they are then. Tags have no commas, so that they travel as one text a row.
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


def _claim(image: NewImage) -> ScopedKey | None:
    key = image.idempotency_key
    return None if key is None else (image.account_id, key.text)


async def insert_pending(database: Database, images: Sequence[NewImage]) -> list[Exception | None]:
    """Insert a batch of rows in one commit, charging their accounts.

    Returns for each image, in order, None, `quota-exceeded`, `account-suspended`, `unauthorized` if the account was
    deleted, IdTaken or KeyTaken. An account whose share of the batch does not fit has its images tried one by one, in
    order.
    """
    inserted: set[str] = set()
    taken: set[ScopedKey] = set()
    claims = [claim for image in images if (claim := _claim(image))]
    async with database.connection() as connection:
        for _ in range(2 if claims else 1):
            if claims:
                taken = await find_used_keys(connection, claims)
            fresh = list(_leave_out_repeats(images, taken))
            # One of the ids is taken, or one of the keys since it was looked for; or somebody ends an image whose key
            # is in the batch, holding it while waiting for its account.
            with suppress(asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError):
                inserted = await _insert(connection, fresh) if fresh else set()
                break
    outcomes: list[Exception | None] = []
    away: ServiceError | None = None
    for image in images:
        claim = _claim(image)
        outcome: Exception | None = None
        if image.id in inserted:
            pass
        elif claim in taken:
            outcome = KeyTaken(image.id)
        elif away is not None:
            outcome = away
        else:
            began = time.monotonic()
            outcome = await _insert_alone(database, image)
            if isinstance(outcome, ServiceError) and time.monotonic() - began > _PATIENCE_S:
                away = outcome if outcome.code == "database-unavailable" else None
        if claim is not None and outcome is None:
            taken.add(claim)
        outcomes.append(outcome)
    return outcomes


def _leave_out_repeats(images: Sequence[NewImage], taken: Set[ScopedKey]) -> Iterator[NewImage]:
    """Of those that share a key the first one."""
    seen = set(taken)
    for image in images:
        claim = _claim(image)
        if claim not in seen:
            yield image
        if claim is not None:
            seen.add(claim)


async def _insert_alone(database: Database, image: NewImage) -> Exception | None:
    claim = _claim(image)
    try:
        async with database.connection() as connection:
            try:
                inserted = await _insert(connection, [image])
            except asyncpg.UniqueViolationError as violation:
                if claim is None or violation.constraint_name != _KEYS:
                    return IdTaken(image.id)
                if not await release_if_expired(connection, claim):
                    return KeyTaken(image.id)
                inserted = await _insert(connection, [image])
            # What fills the account may be the image that this one repeats.
            if not inserted and claim is not None and await find_used_keys(connection, [claim]):
                return KeyTaken(image.id)
            return None if inserted else await _find_refusal(connection, image.account_id)
    except asyncpg.UniqueViolationError:  # somebody else made use of the key that was freed
        return KeyTaken(image.id)
    except Exception as error:  # it must not speak for those that are inserted
        return error


async def _find_refusal(connection: Connection, account_id: AccountId) -> ServiceError:
    """Why a row of this account was not inserted."""
    try:
        account = await load_account(connection, account_id)
    except AccountUnknown:
        return ServiceError("unauthorized")
    return ServiceError("account-suspended" if account.is_suspended else "quota-exceeded")
