"""The first account and its key, which is stored in a file of the data folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_ACCOUNT = "default"
_MAX_BYTES = 10 << 30


def path(folder: Path) -> Path:
    """Returns the path of the key file. Users who can read the data folder can read it."""
    return folder / "first-key"


@dataclass(frozen=True, slots=True)
class FirstKey:
    """`key` is None if it was revoked or deleted, or if the accounts come from elsewhere, e.g. a restored backup.

    `account` is the name of an account whose keys the operator can list.
    """

    key: str | None
    is_revoked: bool = False
    account: str = _ACCOUNT


async def prepare(database_url: str, folder: Path) -> FirstKey:
    """Creates the first account if there is none, and returns its key. The tables must exist.

    The key is written to `first-key.new` before the commit and renamed to `first-key` after it. So a revoked key
    differs from a key that never reached the database because of a crash.
    """
    from service import pooling  # noqa: PLC0415  slow to import, and commands use only `path`
    from service.accounts import accounts  # noqa: PLC0415

    file, new_file = path(folder), folder / "first-key.new"
    connection = await pooling.connect(database_url)
    try:
        if (key := _read(new_file)) and await accounts.is_key_active(connection, key):
            new_file.replace(file)
        if key := _read(file):
            is_active = await accounts.is_key_active(connection, key)
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
            key = await accounts.create_key(connection, _ACCOUNT)
            _write(new_file, key)
        new_file.replace(file)
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
