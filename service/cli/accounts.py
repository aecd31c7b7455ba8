"""`daguerre accounts`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.cli.configuration import DATA, SOON, with_database
from service.cli.tables import print_table
from service.settings import parse_size

_MAX_NAME_CHARACTERS = 200


@click.group()
def accounts() -> None:
    """Create, list and show accounts, and set how their pictures are delivered."""


@accounts.command("create")
@click.argument("name")
@click.option("--max-storage", default="2GB", show_default=True, help="Bytes, or like 500MB or 2GB.")
@DATA
def accounts_create(name: str, max_storage: str, data: Path | None) -> None:
    """Create the account NAME with a first key, which is printed alone on the last line."""
    from service.accounts.keys import create_key  # noqa: PLC0415
    from service.accounts.records import AccountExists, create_account  # noqa: PLC0415

    if not 1 <= len(name) <= _MAX_NAME_CHARACTERS or not name.isprintable():
        raise click.BadParameter(f"it has 1 to {_MAX_NAME_CHARACTERS} printable characters.", param_hint="NAME")
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
    from service.accounts.records import list_accounts  # noqa: PLC0415
    from service.sizes import readable  # noqa: PLC0415

    rows = [
        (account.name, str(account.num_images), readable(account.used_bytes), readable(account.max_bytes))
        for account in with_database(data, list_accounts)
    ]
    print_table(("NAME", "IMAGES", "USED", "MAX"), rows)


@accounts.command("show")
@click.argument("name")
@DATA
def accounts_show(name: str, data: Path | None) -> None:
    """Show what the account NAME stores, and how its pictures are delivered."""
    from service.accounts.records import Account, find_account  # noqa: PLC0415
    from service.delivery.policies import Policy, find_policies  # noqa: PLC0415
    from service.sizes import readable  # noqa: PLC0415

    async def find(connection: Any) -> tuple[Account, Policy]:
        account = await find_account(connection, name)
        [policy] = await find_policies(connection, [account.id])
        return account, policy

    account, policy = with_database(data, find)
    print_table(
        ("NAME", account.name),
        [
            ("IMAGES", str(account.num_images)),
            ("USED", readable(account.used_bytes)),
            ("MAX", readable(account.max_bytes)),
            ("SIGNATURE", "required" if policy.require_signature else "not required"),
            ("LOCATION", "stripped" if policy.strip_location else "kept"),
            ("SIGNING KEYS", str(len(policy.secrets))),
            ("PRESETS", str(len(policy.presets))),
        ],
    )


@accounts.command("set")
@click.argument("name")
@click.option(
    "--require-signature/--no-require-signature", default=None, help="Whether pictures are shown by signed URLs only."
)
@click.option(
    "--strip-location/--keep-location",
    default=None,
    help="Whether pictures are delivered without GPS data.",
)
@DATA
def accounts_set(name: str, *, require_signature: bool | None, strip_location: bool | None, data: Path | None) -> None:
    """Set how the pictures of the account NAME are delivered; what is not named stays as it is."""
    from service.accounts.records import find_account  # noqa: PLC0415
    from service.delivery.policies import Policy, find_policies, set_policy  # noqa: PLC0415

    if require_signature is None and strip_location is None:
        raise click.UsageError("Name what to set: --require-signature or --strip-location, or their opposites.")

    async def change(connection: Any) -> Policy:
        await set_policy(connection, name, require_signature=require_signature, strip_location=strip_location)
        [policy] = await find_policies(connection, [(await find_account(connection, name)).id])
        return policy

    policy = with_database(data, change)
    click.echo(f"Account {name!r} is changed, {SOON}; see `accounts show`.", err=True)
    if policy.require_signature and not policy.secrets:
        click.echo("It has no signing key, so nothing of it is shown: make one with `signing-keys create`.", err=True)
