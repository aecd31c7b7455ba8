"""`daguerre keys` and `daguerre signing-keys`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from service.cli.common import DATA, SOON, print_table, with_database

Key = TypeVar("Key")

_KEY_ID = click.argument("key_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))


@click.group()
def keys() -> None:
    """Create, list and revoke the API keys of accounts."""


@keys.command("create")
@click.argument("account")
@DATA
def keys_create(account: str, data: Path | None) -> None:
    """Create another API key of ACCOUNT and print it, alone on the last line."""
    from service.accounts.accounts import create_key  # noqa: PLC0415

    key = with_database(data, lambda connection: create_key(connection, account))
    click.echo(f"The new key of account {account!r}, shown only now:", err=True)
    click.echo(key)


@keys.command("list")
@click.argument("account")
@DATA
def keys_list(account: str, data: Path | None) -> None:
    """List the API keys of ACCOUNT by their first characters."""
    from service.accounts.accounts import list_keys  # noqa: PLC0415

    rows = [
        (
            *_describe(key),
            "never" if key.last_used_at is None else f"{key.last_used_at:%Y-%m-%d %H:00}",
            _describe_state(key.revoked_at),
        )
        for key in _list(data, account, list_keys)
    ]
    print_table(("ID", "KEY", "CREATED (UTC)", "LAST USED (UTC)", "STATE"), rows)


@keys.command("revoke")
@_KEY_ID
@DATA
def keys_revoke(key_id: int, data: Path | None) -> None:
    """Revoke the API key with this ID (see `keys list`); it stops working everywhere within 5 seconds."""
    from service.accounts.accounts import revoke_key  # noqa: PLC0415

    if not with_database(data, lambda connection: revoke_key(connection, key_id)):
        raise click.ClickException(f"There is no active key {key_id}; see `daguerre keys list ACCOUNT`.")
    click.echo(f"Key {key_id} is revoked, {SOON}.", err=True)


@click.group("signing-keys")
def signing_keys() -> None:
    """Create, list and revoke URL signing keys."""


@signing_keys.command("create")
@click.argument("account")
@DATA
def signing_keys_create(account: str, data: Path | None) -> None:
    """Create a signing key of ACCOUNT and print it, alone on the last line."""
    from service.accounts.signing_keys import MAX_ACTIVE, TooManySigningKeys, create_signing_key  # noqa: PLC0415

    try:
        secret = with_database(data, lambda connection: create_signing_key(connection, account))
    except TooManySigningKeys:
        raise click.ClickException(
            f"Account {account!r} already has {MAX_ACTIVE} active signing keys: revoke one of them first."
        ) from None
    click.echo(f"The new signing key of account {account!r}, {SOON}, shown only now:", err=True)
    click.echo(secret)


@signing_keys.command("list")
@click.argument("account")
@DATA
def signing_keys_list(account: str, data: Path | None) -> None:
    """List the signing keys of ACCOUNT by their first characters."""
    from service.accounts.signing_keys import list_signing_keys  # noqa: PLC0415

    rows = [(*_describe(key), _describe_state(key.revoked_at)) for key in _list(data, account, list_signing_keys)]
    print_table(("ID", "KEY", "CREATED (UTC)", "STATE"), rows)


@signing_keys.command("revoke")
@_KEY_ID
@DATA
def signing_keys_revoke(key_id: int, data: Path | None) -> None:
    """Revoke the signing key with this ID (see `signing-keys list`), and with it all URLs that it signed."""
    from service.accounts.signing_keys import revoke_signing_key  # noqa: PLC0415

    if not with_database(data, lambda connection: revoke_signing_key(connection, key_id)):
        raise click.ClickException(
            f"There is no active signing key {key_id}; see `daguerre signing-keys list ACCOUNT`."
        )
    click.echo(f"Signing key {key_id} is revoked, {SOON}.", err=True)


def _list(data: Path | None, account: str, list_all: Callable[[Any, str], Awaitable[Sequence[Key]]]) -> Sequence[Key]:
    """Returns the keys of the account. Exits with a sentence if the account does not exist."""
    from service.accounts.accounts import find_account  # noqa: PLC0415

    async def find(connection: Any) -> Sequence[Key]:
        await find_account(connection, account)
        return await list_all(connection, account)

    return with_database(data, find)


def _describe(key: Any) -> tuple[str, str, str]:
    return str(key.id), f"{key.hint}…", f"{key.created_at:%Y-%m-%d %H:%M}"


def _describe_state(revoked_at: datetime | None) -> str:
    return "active" if revoked_at is None else f"revoked {revoked_at:%Y-%m-%d %H:%M}"
