"""Images by the Idempotency-Key of the request that made them. All clocks are PostgreSQL's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from service.database import Connection
from service.ids import AccountId, ImageId
from service.images.models import COLUMNS, IdempotencyKey, Image

# A key by itself tells nothing: tenants do not share keys.
ScopedKey: TypeAlias = tuple[AccountId, str]

# Until the sweep has forgotten it, a key that is older is still written down and counts for nothing.
_LIVE = "images.created_at > now() - interval '24 hours'"


class KeyedImage(NamedTuple):
    """The image that a key stands for, whole, and the SHA-256 of the URL that it came from, if it came from one."""

    image: Image
    url_sha256: bytes | None

    def matches(self, key: IdempotencyKey, sha256: bytes | None) -> bool:
        """Whether a request with this key brings the same again: the same URL, or a body of this SHA-256."""
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


# Each is found by the index, whatever the planner would make of a join.
_FIND_TAKEN = f"""
select asked.account_id, asked.key from unnest($1::bigint[], $2::text[]) as asked (account_id, key)
cross join lateral (
    select from images where account_id = asked.account_id and idempotency_key = asked.key and {_LIVE} limit 1
) as images
"""


async def find_used_keys(connection: Connection, claims: Sequence[ScopedKey]) -> set[ScopedKey]:
    """Those that stand for an image."""
    rows = await connection.fetch(_FIND_TAKEN, [account_id for account_id, _ in claims], [key for _, key in claims])
    return {(AccountId(row[0]), row[1]) for row in rows}


_FREE = f"""
update images set idempotency_key = null, idempotency_url = null
where account_id = $1 and idempotency_key = $2 and not {_LIVE}
returning id
"""


async def release_if_expired(connection: Connection, claim: ScopedKey) -> bool:
    """Whether the key had expired, and was still written down."""
    return await connection.fetchval(_FREE, *claim) is not None


# What another transaction holds is left for the next time: nothing is waited for, so the order of locks is no matter.
_FORGET = f"""
update images set idempotency_key = null, idempotency_url = null
where id = any(array(
    select id from images where idempotency_key is not null and not {_LIVE}
    order by created_at limit $1 for no key update skip locked
))
"""


async def release_expired_keys(connection: Connection, limit: int) -> int:
    """Forget the oldest keys that have expired; returns how many."""
    status = await connection.execute(_FORGET, limit)
    return int(status.rpartition(" ")[2])


_FREE_OF = "update images set idempotency_key = null, idempotency_url = null where id = $1"


async def release_key(connection: Connection, image_id: ImageId) -> None:
    """The key of this image may stand for another one."""
    await connection.execute(_FREE_OF, image_id)
