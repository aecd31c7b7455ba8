"""Accounts that the operator suspends, resumes or deletes."""

from __future__ import annotations

from typing import NoReturn

import asyncpg

from service.accounts.accounts import AccountUnknown
from service.database import Connection
from service.ids import AccountId

_SUSPEND = """
update accounts set suspended_at = coalesce(suspended_at, now()), delivery_stopped = coalesce($2, delivery_stopped)
where name = $1 and deletion_began_at is null
returning delivery_stopped
"""


class AccountBeingDeleted(Exception):
    """The deletion of the account of this name has begun."""


async def suspend_account(connection: Connection, name: str, *, stop_delivery: bool | None) -> bool:
    """Refuse uploads, and the account's keys; with `stop_delivery` its pictures too. None leaves that as it is.

    No image is inserted after the commit. Returns whether delivery is stopped. Raises AccountUnknown and
    AccountBeingDeleted.
    """
    is_stopped = await connection.fetchval(_SUSPEND, name, stop_delivery)
    if is_stopped is None:
        await _refuse(connection, name)
    return bool(is_stopped)


_RESUME = """
update accounts set suspended_at = null, delivery_stopped = false
where name = $1 and deletion_began_at is null
returning id
"""


async def resume_account(connection: Connection, name: str) -> None:
    """Undo a suspension, if there is one. Raises AccountUnknown and AccountBeingDeleted."""
    if await connection.fetchval(_RESUME, name) is None:
        await _refuse(connection, name)


async def _refuse(connection: Connection, name: str) -> NoReturn:
    """Raises what kept a statement from finding the account."""
    if await connection.fetchval("select count(*) from accounts where name = $1", name):
        raise AccountBeingDeleted(name)
    raise AccountUnknown(name)


# From this commit on no image is inserted for the account, so that its deletion comes to an end.
_BEGIN_DELETION = """
update accounts set
    suspended_at = coalesce(suspended_at, now()), delivery_stopped = true,
    deletion_began_at = coalesce(deletion_began_at, now())
where id = $1
returning id
"""


async def begin_deletion(connection: Connection, account_id: AccountId) -> bool:
    """Suspend the account for good. False if it is gone.

    Not by its name: another account may have it by now.
    """
    return await connection.fetchval(_BEGIN_DELETION, account_id) is not None


async def end_deletion(connection: Connection, account_id: AccountId) -> bool:
    """Drop the account, and with it its keys, signing keys and presets; it is no error if it is gone.

    Returns False, and changes nothing, if it has an image: a process of an older version may have inserted one.
    """
    try:
        await connection.execute("delete from accounts where id = $1", account_id)
    except (asyncpg.ForeignKeyViolationError, asyncpg.RestrictViolationError):  # the latter since PostgreSQL 18
        return False
    return True
