"""`daguerre accounts`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.cli.configuration import DATA, with_database
from service.cli.tables import print_table
from service.settings import parse_size


@click.group()
def accounts() -> None:
    """Create and list accounts."""


@accounts.command("create")
@click.argument("name")
@click.option("--max-storage", default="2GB", show_default=True, help="Bytes, or like 500MB or 2GB.")
@DATA
def accounts_create(name: str, max_storage: str, data: Path | None) -> None:
    """Create the account NAME with a first key, which is printed alone on the last line."""
    from service.accounts import AccountExists, create_account  # noqa: PLC0415
    from service.keys import create_key  # noqa: PLC0415

    try:
        max_bytes = parse_size(max_storage)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--max-storage") from None

    async def create(connection: Any) -> str:
        async with connection.transaction():
            try:
                await create_account(connection, name, max_bytes)
            except AccountExists:
                raise click.ClickException(f"There is an account {name!r} already.") from None
            return await create_key(connection, name)

    key = with_database(data, create)
    click.echo(f"Account {name!r} may store {max_bytes} bytes. Its key is shown this once:", err=True)
    click.echo(key)


@accounts.command("list")
@DATA
def accounts_list(data: Path | None) -> None:
    """List the accounts and what they store."""
    from service.accounts import list_accounts  # noqa: PLC0415
    from service.sizes import readable  # noqa: PLC0415

    rows = [
        (account.name, str(account.num_images), readable(account.used_bytes), readable(account.max_bytes))
        for account in with_database(data, list_accounts)
    ]
    print_table(("NAME", "IMAGES", "USED", "MAX"), rows)
