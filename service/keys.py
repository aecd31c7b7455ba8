"""API keys: stored hashed, several an account, revocable."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from service.accounts import Account, AccountUnknown
from service.database import Connection, Database
from service.errors import ServiceError
from service.ids import KEY_PATTERN, AccountId, new_key

# A revoked key stops within 5 s everywhere: a process may trust its last look this long.
_TRUST_S = 4.0
_REMEMBERED_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Key:
    """One row of a key list; the key itself is not kept."""

    id: int
    hint: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


def hash_key(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


_CREATE = """
insert into api_keys (account_id, key_hash, hint)
select id, $2, $3 from accounts where name = $1 returning id
"""


async def create_key(connection: Connection, account_name: str) -> str:
    """A new key in plain text, this once."""
    key = new_key()
    if await connection.fetchval(_CREATE, account_name, hash_key(key), key[:6]) is None:
        raise AccountUnknown(account_name)
    return key


_LIST = """
select k.id, k.hint, k.created_at, k.last_used_at, k.revoked_at
from api_keys k join accounts a on a.id = k.account_id where a.name = $1 order by k.id
"""


async def list_keys(connection: Connection, account_name: str) -> list[Key]:
    return [Key(*row) for row in await connection.fetch(_LIST, account_name)]


_REVOKE = "update api_keys set revoked_at = now() where id = $1 and revoked_at is null returning id"


async def revoke_key(connection: Connection, key_id: int) -> bool:
    """False if there is no such key, or it was revoked before."""
    return await connection.fetchval(_REVOKE, key_id) is not None


_IS_ACTIVE = "select exists (select from api_keys where key_hash = $1 and revoked_at is null)"


async def key_is_active(connection: Connection, key: str) -> bool:
    return bool(await connection.fetchval(_IS_ACTIVE, hash_key(key)))


# The use is noted once an hour, by the one statement that looks the key up.
_OWNER = """
with key as (
    select id, account_id, last_used_at from api_keys where key_hash = $1 and revoked_at is null
), noted as (
    update api_keys set last_used_at = date_trunc('hour', now())
    where id in (select id from key where last_used_at is distinct from date_trunc('hour', now()))
)
select a.id, a.name, a.max_bytes, a.used_bytes, a.num_images
from key join accounts a on a.id = key.account_id
"""


class KeyRing:
    """Finds the account of a key, asking PostgreSQL once in a few seconds for each key in use."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: OrderedDict[str, tuple[float, Account]] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[Account]] = {}

    async def owner(self, key: str) -> Account:
        """The account as it was at most 4 s ago. Raises `unauthorized`."""
        seen = self._seen.get(key)
        if seen is not None and time.monotonic() - seen[0] < _TRUST_S:
            return seen[1]
        self._seen.pop(key, None)
        if KEY_PATTERN.fullmatch(key) is None:
            raise ServiceError("unauthorized")
        if key not in self._lookups:  # all that ask at once share one
            self._lookups[key] = asyncio.create_task(self._look_up(key))
            self._lookups[key].add_done_callback(partial(self._forget_lookup, key))
        return await asyncio.shield(self._lookups[key])

    def _forget_lookup(self, key: str, task: asyncio.Task[Account]) -> None:
        del self._lookups[key]
        if not task.cancelled():
            task.exception()  # heard of, even if all that asked were cancelled

    async def _look_up(self, key: str) -> Account:
        looked_at = time.monotonic()
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_OWNER, hash_key(key))
        if row is None:
            raise ServiceError("unauthorized")
        account = Account(AccountId(row[0]), *row[1:])
        self._seen[key] = (looked_at, account)
        if len(self._seen) > _REMEMBERED_KEYS:
            self._seen.popitem(last=False)
        return account
