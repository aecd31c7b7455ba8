"""Pending images: inserted in batches within their account's quota, and ready or failed after the probe."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from typing import TypeGuard

import asyncpg
import msgspec

from service.accounts.accounts import AccountUnknown, load_account
from service.database import Connection, Database
from service.errors import ServiceError
from service.ids import BASE62, AccountId, ImageId
from service.images.idempotency import ScopedKey, find_used_keys, release_if_expired
from service.images.models import COLUMNS, Image, NewImage
from service.images.probe import Probe
from service.storage.interface import IdTaken


class KeyTaken(Exception):
    """The account has or just had an image under this Idempotency-Key."""


_IMAGE_ID_LENGTH = 7
_KEY_INDEX = "images_idempotency_key"

# Images are inserted one by one until an insert has waited this long and failed because the database is unavailable.
# Each of the others would wait as long, and so would the next batch.
_MAX_OUTAGE_WAIT_S = 1.0


def new_image_id() -> ImageId:
    """Returns 7 characters of base62, as in the API's example. The table's primary key makes it unique."""
    number, letters = secrets.randbelow(len(BASE62) ** _IMAGE_ID_LENGTH), []
    for _ in range(_IMAGE_ID_LENGTH):
        number, letter = divmod(number, len(BASE62))
        letters.append(BASE62[letter])
    return ImageId("".join(letters))


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
            started_at = time.monotonic()
            result = await _insert_alone(database, image)
            if _is_outage(result) and time.monotonic() - started_at > max_outage_wait_s:
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
        # An id is taken, or a key was taken after the lookup; or another transaction deletes an image with a key of
        # this batch and holds its lock while it waits for the account.
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
    except Exception as error:  # it concerns this image only: others are already inserted
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


# A probe can be repeated, so this commit need not wait for the disk. The setting applies to this transaction only.
_MARK_READY = f"""
with probe as (
    select * from unnest(
        $1::text[], $2::text[], $3::int[], $4::int[], $5::smallint[], $6::int[], $7::bool[], $8::text[], $9::bytea[]
    ) as probe (id, format, width, height, orientation, pages, has_alpha, exif, mini_preview)
), locked as materialized (
    select images.id from images join probe on probe.id = images.id
    where images.state = 'pending' order by images.id for no key update of images
), relaxed as materialized (
    select set_config('synchronous_commit', 'off', true)
)
update images set
    state = 'ready', format = probe.format, width = probe.width, height = probe.height,
    orientation = probe.orientation, pages = probe.pages, has_alpha = probe.has_alpha,
    exif = probe.exif::json, mini_preview = probe.mini_preview
from probe join locked on locked.id = probe.id, relaxed
where images.id = probe.id and images.state = 'pending'
returning {COLUMNS}
"""


async def mark_ready(database: Database, probes: Sequence[tuple[ImageId, Probe]]) -> list[Image | None]:
    """Writes a batch of probes in one commit. Returns the images, and None for one that is no longer pending."""
    exifs = [msgspec.json.encode(probe.exif).decode() for _, probe in probes]
    async with database.connection() as connection:
        rows = await connection.fetch(
            _MARK_READY,
            [image_id for image_id, _ in probes],
            [probe.format for _, probe in probes],
            [probe.width for _, probe in probes],
            [probe.height for _, probe in probes],
            [probe.orientation for _, probe in probes],
            [probe.pages for _, probe in probes],
            [probe.has_alpha for _, probe in probes],
            exifs,
            [probe.mini_preview for _, probe in probes],
        )
    rows_by_id = {row[0]: row for row in rows}
    return [
        Image(*(*row, exif, probe.mini_preview)) if (row := rows_by_id.get(image_id)) else None
        for (image_id, probe), exif in zip(probes, exifs, strict=True)
    ]


# A missing file is not removed, because it may be restored. The Idempotency-Key is released, so that the client can
# retry with it.
FILE_MISSING = "image-lost"
_MARK_FAILED = f"""
with failed as (
    update images set
        state = 'failed', error = $2, error_kind = $3, failed_at = now(), idempotency_key = null, idempotency_url = null
    where id = $1 and state = 'pending' returning {COLUMNS}
), credited as (
    update accounts set
        used_bytes = accounts.used_bytes - failed.size, num_images = accounts.num_images - 1, changed_at = now()
    from failed where accounts.id = failed.account_id
), recorded as (
    insert into removals (image_id) select id from failed where error <> '{FILE_MISSING}' on conflict do nothing
)
select * from failed
"""


async def mark_failed(connection: Connection, image_id: ImageId, error: str, kind: str | None = None) -> Image | None:
    """Marks a pending image as failed: it no longer counts, and the removal of its file is recorded. `kind` is that of
    `Rejected`.

    Returns the image, or None if it is no longer pending.
    """
    row = await connection.fetchrow(_MARK_FAILED, image_id, error, kind)
    return None if row is None else Image(*row)


_COUNT_CRASH = "update images set crashes = crashes + 1 where id = $1 and state = 'pending' returning crashes"


async def count_crash(connection: Connection, image_id: ImageId) -> int:
    """Returns how often this picture has crashed a decoder, including this time; 0 if it is not pending."""
    return await connection.fetchval(_COUNT_CRASH, image_id) or 0


_PENDING_AGE = """
select extract(epoch from now() - created_at)::float8 from images where id = $1 and state = 'pending'
"""


async def find_pending_age_s(connection: Connection, image_id: ImageId) -> float | None:
    """Returns how long ago the image was accepted, by PostgreSQL's clock; None if it is no longer pending."""
    age_s: float | None = await connection.fetchval(_PENDING_AGE, image_id)
    return age_s


_DELETE_FAILED_IMAGE = "delete from images where id = $1 and state = 'failed'"


async def delete_failed_image(connection: Connection, image_id: ImageId) -> None:
    """Deletes a failed row after its client has received the error."""
    await connection.execute(_DELETE_FAILED_IMAGE, image_id)


# Other requests with its Idempotency-Key may wait for it in other processes, which poll the row twice a second.
_EXPIRE_FAILED_IMAGE = """
update images set failed_at = least(failed_at, now() - interval '24 hours' + interval '1 minute')
where id = $1 and state = 'failed'
"""


async def expire_failed_image(connection: Connection, image_id: ImageId) -> None:
    """Lets the sweep, which deletes failed rows after a day, delete this one after a minute."""
    await connection.execute(_EXPIRE_FAILED_IMAGE, image_id)


_PURGE_FAILED = """
delete from images where id in (
    select id from images where state = 'failed' and failed_at < now() - $1::float8 * interval '1 second' limit $2
)
"""


async def purge_failed(connection: Connection, age_s: float, limit: int) -> int:
    """Deletes up to `limit` rows that failed longer than `age_s` ago. Returns how many."""
    status = await connection.execute(_PURGE_FAILED, age_s, limit)
    return int(status.rpartition(" ")[2])
