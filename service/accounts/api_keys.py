"""API keys: several for an account, stored as hashes, revocable."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from service.accounts.accounts import COLUMNS, Account, AccountUnknown
from service.batcher import Batcher
from service.database import Connection, Database
from service.errors import ServiceError
from service.expiring_cache import TRUST_S, ExpiringCache
from service.ids import KEY_PATTERN, AccountId, new_key

_MAX_CACHED_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Key:
    """One row of a key list. The key itself is not stored."""

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
    """Returns a new key in plain text, which is not stored. Raises AccountUnknown."""
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
    """Returns False if there is no such key, or if it is revoked already."""
    return await connection.fetchval(_REVOKE, key_id) is not None


_IS_ACTIVE = "select revoked_at is null from api_keys where key_hash = $1"


async def is_key_active(connection: Connection, key: str) -> bool | None:
    """Returns False for a revoked key, and None for an unknown one."""
    is_active: bool | None = await connection.fetchval(_IS_ACTIVE, hash_key(key))
    return is_active


# The statement also records the hour of the last use. It skips a key that another one is updating, so that none waits.
# The lateral join makes PostgreSQL look up each key by the index, whatever its planner estimates.
_FIND_ACCOUNTS = f"""
with active as materialized (
    select query.place, key.* from unnest($1::bytea[]) with ordinality as query (key_hash, place)
    cross join lateral (
        select id, account_id, last_used_at from api_keys
        where key_hash = query.key_hash and revoked_at is null limit 1
    ) key
), recorded as (
    update api_keys set last_used_at = date_trunc('hour', now()) where id = any(array(
        select id from api_keys
        where id in (select id from active where last_used_at is distinct from date_trunc('hour', now()))
        for no key update skip locked
    ))
)
select active.place, {COLUMNS}
from active join accounts on accounts.id = active.account_id
"""


async def find_accounts_by_keys(connection: Connection, keys: Sequence[str]) -> list[Account | None]:
    """Returns the accounts of the keys, in order, and None for a key that is unknown or revoked."""
    accounts: list[Account | None] = [None] * len(keys)
    for row in await connection.fetch(_FIND_ACCOUNTS, [hash_key(key) for key in keys]):
        accounts[row[0] - 1] = Account(AccountId(row[1]), *row[2:])
    return accounts


class KeyRing:
    """Finds the account of a key. Asks PostgreSQL once in `TRUST_S` for each key in use.

    Requests that have to ask do so together, on one connection, so that a flood of invented keys does not delay others.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._owners: ExpiringCache[str, Account] = ExpiringCache(_MAX_CACHED_KEYS, clock=clock)
        self._asking: Batcher[str, Account | None] = Batcher(self._look_up)

    async def run(self) -> None:
        """Looks keys up until it is cancelled. Runs once, as a task of the ring's owner."""
        await self._asking.run()

    async def find_account(self, key: str) -> Account:
        """Returns the account as it was at most `TRUST_S` ago. Raises `unauthorized`."""
        account = self._owners.get(key)
        if account is None and KEY_PATTERN.fullmatch(key):
            account = await self._asking.submit(key)
        if account is None:
            raise ServiceError("unauthorized")
        return account

    async def _look_up(self, keys: Sequence[str]) -> list[Account | None]:
        looked_at = self._clock()
        async with self._database.connection() as connection:
            owners = await find_accounts_by_keys(connection, keys)
        for key, account in zip(keys, owners, strict=True):
            if account is None:
                self._owners.remove(key)
            else:
                self._owners.put(key, account, looked_at + TRUST_S)
        return owners
