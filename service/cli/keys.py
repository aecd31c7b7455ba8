"""`daguerre keys`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.cli.configuration import DATA, SOON, with_database
from service.cli.tables import print_table


@click.group()
def keys() -> None:
    """Create, list and revoke the keys of accounts."""


@keys.command("create")
@click.argument("account")
@DATA
def keys_create(account: str, data: Path | None) -> None:
    """Create one more key of ACCOUNT; it is printed alone on the last line."""
    from service.accounts.api_keys import create_key  # noqa: PLC0415

    key = with_database(data, lambda connection: create_key(connection, account))
    click.echo(f"A key of account {account!r}, shown this once:", err=True)
    click.echo(key)


@keys.command("list")
@click.argument("account")
@DATA
def keys_list(account: str, data: Path | None) -> None:
    """List the keys of ACCOUNT by their first characters."""
    from service.accounts.accounts import find_account  # noqa: PLC0415
    from service.accounts.api_keys import list_keys  # noqa: PLC0415

    async def find(connection: Any) -> list[tuple[str, ...]]:
        await find_account(connection, account)
        return [
            (
                str(key.id),
                f"{key.hint}…",
                f"{key.created_at:%Y-%m-%d %H:%M}",
                "never" if key.last_used_at is None else f"{key.last_used_at:%Y-%m-%d %H:00}",
                "active" if key.revoked_at is None else f"revoked {key.revoked_at:%Y-%m-%d %H:%M}",
            )
            for key in await list_keys(connection, account)
        ]

    print_table(("ID", "KEY", "CREATED (UTC)", "LAST USED (UTC)", "STATE"), with_database(data, find))


@keys.command("revoke")
@click.argument("key_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@DATA
def keys_revoke(key_id: int, data: Path | None) -> None:
    """Revoke the key with this ID (see `keys list`); it stops within 5 seconds everywhere."""
    from service.accounts.api_keys import revoke_key  # noqa: PLC0415

    if not with_database(data, lambda connection: revoke_key(connection, key_id)):
        raise click.ClickException(f"There is no active key {key_id}; see `daguerre keys list ACCOUNT`.")
    click.echo(f"Key {key_id} is revoked, {SOON}.", err=True)
