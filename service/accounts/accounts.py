"""Accounts: who owns images, how much they may store, and whether they are suspended or being deleted; their API keys.

An account has several keys, which are stored as hashes and can be revoked.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

import asyncpg

from service.batcher import Batcher
from service.database import Connection, Database
from service.errors import ServiceError
from service.expiring_cache import LOOKUP_TTL_S, ExpiringCache
from service.ids import BASE62, KEY_LENGTH, KEY_PATTERN, AccountId


@dataclass(frozen=True, slots=True)
class Account:
    """`used_bytes` and `num_images` count pending and ready images. An account that is being deleted is suspended, too,
    and its images are not delivered.
    """

    id: AccountId
    name: str
    max_bytes: int
    used_bytes: int
    num_images: int
    is_suspended: bool = False
    is_delivered: bool = True
    is_being_deleted: bool = False

    @property
    def remaining_bytes(self) -> int:
        return max(0, self.max_bytes - self.used_bytes)


class AccountExists(Exception):
    """An account of this name exists already."""


class AccountUnknown(Exception):
    """There is no account of this name."""


_CREATE = "insert into accounts (name, max_bytes) values ($1, $2) returning id"


async def create_account(connection: Connection, name: str, max_bytes: int) -> AccountId:
    """Returns the new account's id. Raises AccountExists."""
    try:
        return AccountId(await connection.fetchval(_CREATE, name, max_bytes))
    except asyncpg.UniqueViolationError:
        raise AccountExists(name) from None


COLUMNS = """
accounts.id, name, max_bytes, used_bytes, num_images,
suspended_at is not null, not delivery_stopped, deletion_began_at is not null
"""
_SELECT = f"select {COLUMNS} from accounts"


async def load_account(connection: Connection, account_id: AccountId) -> Account:
    """Raises AccountUnknown."""
    row = await connection.fetchrow(f"{_SELECT} where id = $1", account_id)
    if row is None:
        raise AccountUnknown(account_id)
    return Account(*row)


async def find_account(connection: Connection, name: str) -> Account:
    """Raises AccountUnknown."""
    row = await connection.fetchrow(f"{_SELECT} where name = $1", name)
    if row is None:
        raise AccountUnknown(name)
    return Account(*row)


# clock_timestamp() is the time after the statement has waited for the row, so images inserted under the former quota
# are older.
_SET_MAX_BYTES = """
update accounts set max_bytes = $2, max_bytes_set_at = clock_timestamp(), changed_at = now() where name = $1
returning used_bytes
"""


async def set_max_bytes(connection: Connection, name: str, max_bytes: int) -> int:
    """Sets the quota. Returns the bytes that the account stores, which may be more. Raises AccountUnknown."""
    used_bytes = await connection.fetchval(_SET_MAX_BYTES, name, max_bytes)
    if used_bytes is None:
        raise AccountUnknown(name)
    return int(used_bytes)


_LOCK = "select id from accounts where name = $1 for no key update"


async def lock_account(connection: Connection, name: str) -> AccountId:
    """Locks the account until the transaction ends, so that a count of its rows holds for the statements that follow.

    Raises AccountUnknown.
    """
    account_id = await connection.fetchval(_LOCK, name)
    if account_id is None:
        raise AccountUnknown(name)
    return AccountId(account_id)


async def list_accounts(connection: Connection) -> list[Account]:
    return [Account(*row) for row in await connection.fetch(f"{_SELECT} order by name")]


_SUSPEND = """
update accounts set suspended_at = coalesce(suspended_at, now()), delivery_stopped = coalesce($2, delivery_stopped)
where name = $1 and deletion_began_at is null
returning delivery_stopped
"""


class AccountBeingDeleted(Exception):
    """The deletion of this account has started."""


async def suspend_account(connection: Connection, name: str, *, stop_delivery: bool | None) -> bool:
    """Suspends an account: its API keys are refused. `stop_delivery` refuses its pictures, too; None changes nothing.

    No image is inserted after the commit. Returns whether delivery is stopped. Raises AccountUnknown and
    AccountBeingDeleted.
    """
    is_stopped = await connection.fetchval(_SUSPEND, name, stop_delivery)
    if is_stopped is None:
        await _raise_refusal(connection, name)
    return bool(is_stopped)


_RESUME = """
update accounts set suspended_at = null, delivery_stopped = false
where name = $1 and deletion_began_at is null
returning id
"""


async def resume_account(connection: Connection, name: str) -> None:
    """Undoes the suspension of an account. Raises AccountUnknown and AccountBeingDeleted."""
    if await connection.fetchval(_RESUME, name) is None:
        await _raise_refusal(connection, name)


async def _raise_refusal(connection: Connection, name: str) -> NoReturn:
    """Raises the reason why a statement did not change the account."""
    if await connection.fetchval("select count(*) from accounts where name = $1", name):
        raise AccountBeingDeleted(name)
    raise AccountUnknown(name)


# After this commit no image is inserted for the account, so its deletion can finish.
_START_DELETION = """
update accounts set
    suspended_at = coalesce(suspended_at, now()), delivery_stopped = true,
    deletion_began_at = coalesce(deletion_began_at, now())
where id = $1
returning id
"""


async def start_deletion(connection: Connection, account_id: AccountId) -> bool:
    """Suspends the account permanently. Returns False if it no longer exists.

    Takes the id, because another account may have the same name by now.
    """
    return await connection.fetchval(_START_DELETION, account_id) is not None


async def finish_deletion(connection: Connection, account_id: AccountId) -> bool:
    """Deletes the account with its keys, signing keys and presets, if it still exists.

    Returns False, and changes nothing, if it has an image: a process of an older version may have inserted one.
    """
    try:
        await connection.execute("delete from accounts where id = $1", account_id)
    except (asyncpg.ForeignKeyViolationError, asyncpg.RestrictViolationError):  # the latter since PostgreSQL 18
        return False
    return True


_MAX_CACHED_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Key:
    """One row of a key list. The key itself is not stored."""

    id: int
    hint: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


def new_key() -> str:
    """Returns an API key: 40 characters of base62, 238 bits."""
    return "".join(secrets.choice(BASE62) for _ in range(KEY_LENGTH))


def hash_key(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


_CREATE_KEY = """
insert into api_keys (account_id, key_hash, hint)
select id, $2, $3 from accounts where name = $1 returning id
"""


async def create_key(connection: Connection, account_name: str) -> str:
    """Returns a new key in plain text, which is not stored. Raises AccountUnknown."""
    key = new_key()
    if await connection.fetchval(_CREATE_KEY, account_name, hash_key(key), key[:6]) is None:
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
    """Finds the account of a key. Queries PostgreSQL once in `LOOKUP_TTL_S` for each key in use.

    Cache misses share one query on one connection, so that a flood of invalid keys does not delay other requests.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._owners: ExpiringCache[str, Account] = ExpiringCache(_MAX_CACHED_KEYS, clock=clock)
        self._lookups: Batcher[str, Account | None] = Batcher(self._look_up)

    async def run(self) -> None:
        """Looks keys up until it is cancelled. Runs once, as a task of the ring's owner."""
        await self._lookups.run()

    async def find_account(self, key: str) -> Account:
        """Returns the account as it was at most `LOOKUP_TTL_S` ago. Raises `unauthorized`."""
        account = self._owners.get(key)
        if account is None and KEY_PATTERN.fullmatch(key):
            account = await self._lookups.submit(key)
        if account is None:
            raise ServiceError("unauthorized")
        return account

    async def _look_up(self, keys: Sequence[str]) -> list[Account | None]:
        looked_up_at = self._clock()
        async with self._database.connection() as connection:
            owners = await find_accounts_by_keys(connection, keys)
        for key, account in zip(keys, owners, strict=True):
            if account is None:
                self._owners.remove(key)
            else:
                self._owners.put(key, account, looked_up_at + LOOKUP_TTL_S)
        return owners
