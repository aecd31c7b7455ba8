"""Finds images by the Idempotency-Key of the request that stored them. All times are from PostgreSQL's clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from service.database import Connection
from service.ids import AccountId, ImageId
from service.images.models import COLUMNS, IdempotencyKey, Image

# A key is unique within its account only.
ScopedKey: TypeAlias = tuple[AccountId, str]

# An expired key stays in its row until the sweep releases it, and is ignored.
_LIVE = "images.created_at > now() - interval '24 hours'"


class KeyedImage(NamedTuple):
    """The image that was stored under a key, with all columns, and the SHA-256 of its URL if it was downloaded."""

    image: Image
    url_sha256: bytes | None

    def matches(self, key: IdempotencyKey, sha256: bytes | None) -> bool:
        """Returns whether a request with this key repeats the upload: the same URL, or a body of this SHA-256."""
        if self.url_sha256 is None and key.url_sha256 is None:
            return self.image.sha256 == sha256
        return self.url_sha256 == key.url_sha256


_FIND = f"""
select {COLUMNS}, images.exif::text, images.mini_preview, images.idempotency_url from images
where account_id = $1 and idempotency_key = $2 and {_LIVE}
"""


async def find_by_key(connection: Connection, account_id: AccountId, key: str) -> KeyedImage | None:
    row = await connection.fetchrow(_FIND, account_id, key)
    return None if row is None else KeyedImage(Image(*row[:-1]), row[-1])


# The lateral join makes PostgreSQL look up each key by the index, whatever its planner estimates.
_FIND_USED = f"""
select query.account_id, query.key from unnest($1::bigint[], $2::text[]) as query (account_id, key)
cross join lateral (
    select from images where account_id = query.account_id and idempotency_key = query.key and {_LIVE} limit 1
) as images
"""


async def find_used_keys(connection: Connection, keys: Sequence[ScopedKey]) -> set[ScopedKey]:
    """Returns the keys that an image is stored under."""
    rows = await connection.fetch(_FIND_USED, [account_id for account_id, _ in keys], [key for _, key in keys])
    return {(AccountId(row[0]), row[1]) for row in rows}


_RELEASE_IF_EXPIRED = f"""
update images set idempotency_key = null, idempotency_url = null
where account_id = $1 and idempotency_key = $2 and not {_LIVE}
returning id
"""


async def release_if_expired(connection: Connection, key: ScopedKey) -> bool:
    """Releases a key that has expired. Returns whether there was one."""
    return await connection.fetchval(_RELEASE_IF_EXPIRED, *key) is not None


# Rows that another transaction has locked are skipped until the next call. Nothing waits, so locks need no order.
_RELEASE_EXPIRED = f"""
update images set idempotency_key = null, idempotency_url = null
where id = any(array(
    select id from images where idempotency_key is not null and not {_LIVE}
    order by created_at limit $1 for no key update skip locked
))
"""


async def release_expired_keys(connection: Connection, limit: int) -> int:
    """Releases up to `limit` expired keys, the oldest first. Returns how many."""
    status = await connection.execute(_RELEASE_EXPIRED, limit)
    return int(status.rpartition(" ")[2])


_RELEASE = "update images set idempotency_key = null, idempotency_url = null where id = $1"


async def release_key(connection: Connection, image_id: ImageId) -> None:
    """Releases the key of this image, so that another one can be stored under it."""
    await connection.execute(_RELEASE, image_id)
