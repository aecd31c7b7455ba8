"""Accounts: who owns images, how much they may store, and whether they are suspended or being deleted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import asyncpg

from service.database import Connection
from service.ids import AccountId


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
    """The deletion of this account has begun."""


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
    """Ends the suspension of an account, if it is suspended. Raises AccountUnknown and AccountBeingDeleted."""
    if await connection.fetchval(_RESUME, name) is None:
        await _raise_refusal(connection, name)


async def _raise_refusal(connection: Connection, name: str) -> NoReturn:
    """Raises why a statement did not find the account."""
    if await connection.fetchval("select count(*) from accounts where name = $1", name):
        raise AccountBeingDeleted(name)
    raise AccountUnknown(name)


# After this commit no image is inserted for the account, so its deletion comes to an end.
_BEGIN_DELETION = """
update accounts set
    suspended_at = coalesce(suspended_at, now()), delivery_stopped = true,
    deletion_began_at = coalesce(deletion_began_at, now())
where id = $1
returning id
"""


async def begin_deletion(connection: Connection, account_id: AccountId) -> bool:
    """Suspends the account for good. Returns False if it does not exist any more.

    Takes the id, because another account may have the name by now.
    """
    return await connection.fetchval(_BEGIN_DELETION, account_id) is not None


async def end_deletion(connection: Connection, account_id: AccountId) -> bool:
    """Deletes the account with its keys, signing keys and presets, if it still exists.

    Returns False, and changes nothing, if it has an image: a process of an older version may have inserted one.
    """
    try:
        await connection.execute("delete from accounts where id = $1", account_id)
    except (asyncpg.ForeignKeyViolationError, asyncpg.RestrictViolationError):  # the latter since PostgreSQL 18
        return False
    return True
