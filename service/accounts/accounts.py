"""Accounts: who owns images, and how much they may store."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from service.database import Connection
from service.ids import AccountId


@dataclass(frozen=True, slots=True)
class Account:
    """`used_bytes` and `num_images` count pending and ready images. An account that is being deleted is suspended too,
    and not delivered.
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
    """There is an account of this name already."""


class AccountUnknown(Exception):
    """There is no account of this name."""


_CREATE = "insert into accounts (name, max_bytes) values ($1, $2) returning id"


async def create_account(connection: Connection, name: str, max_bytes: int) -> AccountId:
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
    row = await connection.fetchrow(f"{_SELECT} where id = $1", account_id)
    if row is None:
        raise AccountUnknown(account_id)
    return Account(*row)


async def find_account(connection: Connection, name: str) -> Account:
    row = await connection.fetchrow(f"{_SELECT} where name = $1", name)
    if row is None:
        raise AccountUnknown(name)
    return Account(*row)


# The time is that of the statement, after it has waited for the row: what was inserted under the quota before is older.
_SET_MAX = """
update accounts set max_bytes = $2, max_bytes_set_at = clock_timestamp(), changed_at = now() where name = $1
returning used_bytes
"""


async def set_max_bytes(connection: Connection, name: str, max_bytes: int) -> int:
    """Set the quota; returns what the account stores, which may be more. Raises AccountUnknown."""
    used_bytes = await connection.fetchval(_SET_MAX, name, max_bytes)
    if used_bytes is None:
        raise AccountUnknown(name)
    return int(used_bytes)


_LOCK = "select id from accounts where name = $1 for no key update"


async def lock_account(connection: Connection, name: str) -> AccountId:
    """Until the transaction ends: so that what is counted in its next statement still holds in the one after."""
    account_id = await connection.fetchval(_LOCK, name)
    if account_id is None:
        raise AccountUnknown(name)
    return AccountId(account_id)


async def list_accounts(connection: Connection) -> list[Account]:
    return [Account(*row) for row in await connection.fetch(f"{_SELECT} order by name")]
