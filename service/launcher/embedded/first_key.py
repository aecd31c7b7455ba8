"""The first account and its key, which is kept in a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import asyncpg

_ACCOUNT = "default"
_MAX_BYTES = 10 << 30


def path(folder: Path) -> Path:
    """Where the key is kept, for who may read the data folder."""
    return folder / "first-key"


@dataclass(frozen=True, slots=True)
class FirstKey:
    """`key` is None if it was revoked or deleted, and if the accounts were made elsewhere, as in a restored backup.

    `account` is the name of an account whose keys the operator may look at.
    """

    key: str | None
    is_revoked: bool = False
    account: str = _ACCOUNT


async def prepare(database_url: str, folder: Path) -> FirstKey:
    """Applies the schema, makes the first account where there is none, and returns its key.

    The key lies in `first-key`, and in `first-key.new` from before the commit until it counts: so a key that was
    revoked differs from one that a crash kept out of the database.
    """
    from service import database  # noqa: PLC0415  not needed to find or stop a server
    from service.accounts import accounts, api_keys  # noqa: PLC0415

    await database.apply_schema(database_url)
    file, fresh = path(folder), folder / "first-key.new"
    connection = await asyncpg.connect(database_url)
    try:
        if (key := _read(fresh)) and await api_keys.is_key_active(connection, key):
            fresh.replace(file)
        if key := _read(file):
            is_active = await api_keys.is_key_active(connection, key)
            if is_active is not None:
                return FirstKey(key) if is_active else FirstKey(None, is_revoked=True)
        if names := [account.name for account in await accounts.list_accounts(connection)]:
            return FirstKey(None, account=_ACCOUNT if _ACCOUNT in names else names[0])
        async with connection.transaction():
            try:
                async with connection.transaction():
                    await accounts.create_account(connection, _ACCOUNT, _MAX_BYTES)
            except accounts.AccountExists:
                return FirstKey(None)
            key = await api_keys.create_key(connection, _ACCOUNT)
            _write(fresh, key)
        fresh.replace(file)
        return FirstKey(key)
    finally:
        await connection.close()


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip() or None
    except FileNotFoundError:
        return None


def _write(file: Path, key: str) -> None:
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(f"{key}\n")
        stream.flush()
        os.fsync(stream.fileno())
