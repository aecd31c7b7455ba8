"""`daguerre signing-keys`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.cli.configuration import DATA, SOON, with_database
from service.cli.tables import print_table


@click.group("signing-keys")
def signing_keys() -> None:
    """Create, list and revoke the keys that accounts sign URLs with."""


@signing_keys.command("create")
@click.argument("account")
@DATA
def signing_keys_create(account: str, data: Path | None) -> None:
    """Create a signing key of ACCOUNT; it is printed alone on the last line."""
    from service.accounts.signing_keys import MAX_LIVE, TooManySigningKeys, create_signing_key  # noqa: PLC0415

    try:
        secret = with_database(data, lambda connection: create_signing_key(connection, account))
    except TooManySigningKeys:
        raise click.ClickException(
            f"Account {account!r} has {MAX_LIVE} live signing keys already: revoke one of them first."
        ) from None
    click.echo(f"A signing key of account {account!r}, {SOON}, shown this once:", err=True)
    click.echo(secret)


@signing_keys.command("list")
@click.argument("account")
@DATA
def signing_keys_list(account: str, data: Path | None) -> None:
    """List the signing keys of ACCOUNT by their first characters."""
    from service.accounts.accounts import find_account  # noqa: PLC0415
    from service.accounts.signing_keys import list_signing_keys  # noqa: PLC0415

    async def find(connection: Any) -> list[tuple[str, ...]]:
        await find_account(connection, account)
        return [
            (
                str(key.id),
                f"{key.hint}…",
                f"{key.created_at:%Y-%m-%d %H:%M}",
                "active" if key.revoked_at is None else f"revoked {key.revoked_at:%Y-%m-%d %H:%M}",
            )
            for key in await list_signing_keys(connection, account)
        ]

    print_table(("ID", "KEY", "CREATED (UTC)", "STATE"), with_database(data, find))


@signing_keys.command("revoke")
@click.argument("key_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@DATA
def signing_keys_revoke(key_id: int, data: Path | None) -> None:
    """Revoke the signing key with this ID (see `signing-keys list`), and every URL that was signed with it."""
    from service.accounts.signing_keys import revoke_signing_key  # noqa: PLC0415

    if not with_database(data, lambda connection: revoke_signing_key(connection, key_id)):
        raise click.ClickException(
            f"There is no active signing key {key_id}; see `daguerre signing-keys list ACCOUNT`."
        )
    click.echo(f"Signing key {key_id} is revoked, {SOON}.", err=True)
