"""`daguerre accounts`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from service.cli.common import DATA, SOON, print_table, with_database
from service.config.values import parse_size

_MAX_NAME_CHARACTERS = 200

Result = TypeVar("Result")


@click.group()
def accounts() -> None:
    """Create, list, show, set, suspend and delete accounts."""


@accounts.command("create")
@click.argument("name")
@click.option("--max-storage", default="2GB", show_default=True, help="Bytes, or e.g. 500MB or 2GB.")
@DATA
def accounts_create(name: str, max_storage: str, data: Path | None) -> None:
    """Create the account NAME with a first API key, and print the key, alone on the last line."""
    from service.accounts.accounts import (  # noqa: PLC0415
        AccountExists,
        create_account,
        create_key,
    )

    if not 1 <= len(name) <= _MAX_NAME_CHARACTERS or not name.isprintable():
        raise click.BadParameter(f"a name has 1 to {_MAX_NAME_CHARACTERS} printable characters.", param_hint="NAME")
    max_bytes = _parse_storage(max_storage)

    async def create(connection: Any) -> str:
        async with connection.transaction():
            try:
                await create_account(connection, name, max_bytes)
            except AccountExists:
                raise click.ClickException(f"Account {name!r} already exists.") from None
            return await create_key(connection, name)

    key = with_database(data, create)
    click.echo(f"Account {name!r} may store {max_bytes} bytes. Its key is shown only now:", err=True)
    click.echo(key)


def _parse_storage(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--max-storage") from None


def _describe_state(account: Any) -> str:
    if account.is_being_deleted:
        return "being deleted"
    if account.is_suspended:
        return "suspended" if account.is_delivered else "suspended, delivery stopped"
    return "active"


@accounts.command("list")
@DATA
def accounts_list(data: Path | None) -> None:
    """List the accounts and what they store."""
    from service.accounts.accounts import list_accounts  # noqa: PLC0415
    from service.config.values import format_size  # noqa: PLC0415

    rows = [
        (
            account.name,
            str(account.num_images),
            format_size(account.used_bytes),
            format_size(account.max_bytes),
            _describe_state(account),
        )
        for account in with_database(data, list_accounts)
    ]
    print_table(("NAME", "IMAGES", "USED", "MAX", "STATE"), rows)


@accounts.command("show")
@click.argument("name")
@DATA
def accounts_show(name: str, data: Path | None) -> None:
    """Show what the account NAME stores, and how its pictures are delivered."""
    from service.accounts.accounts import Account, find_account  # noqa: PLC0415
    from service.accounts.policies import Policy, load_policy  # noqa: PLC0415
    from service.config.values import format_size  # noqa: PLC0415

    async def find(connection: Any) -> tuple[Account, Policy]:
        account = await find_account(connection, name)
        return account, await load_policy(connection, account.id)

    account, policy = with_database(data, find)
    print_table(
        ("NAME", account.name),
        [
            ("IMAGES", str(account.num_images)),
            ("USED", format_size(account.used_bytes)),
            ("MAX", format_size(account.max_bytes)),
            ("STATE", _describe_state(account)),
            ("SIGNATURE", "required" if policy.require_signature else "not required"),
            ("LOCATION", "stripped" if policy.strip_location else "kept"),
            ("SIGNING KEYS", str(len(policy.secrets))),
            ("PRESETS", str(len(policy.presets))),
        ],
    )


@accounts.command("set")
@click.argument("name")
@click.option("--max-storage", help="Maximum that it may store: bytes, or e.g. 500MB or 5GB.")
@click.option(
    "--require-signature/--no-require-signature",
    default=None,
    help="Whether pictures need signed URLs.",
)
@click.option(
    "--strip-location/--keep-location",
    default=None,
    help="Whether pictures are delivered without GPS data.",
)
@DATA
def accounts_set(
    name: str,
    *,
    max_storage: str | None,
    require_signature: bool | None,
    strip_location: bool | None,
    data: Path | None,
) -> None:
    """Set how much the account NAME may store, and how its pictures are delivered.

    Options that are not given stay unchanged.
    """
    from service.accounts.accounts import Account, find_account, set_max_bytes  # noqa: PLC0415
    from service.accounts.policies import Policy, load_policy, set_policy  # noqa: PLC0415
    from service.config.values import format_size  # noqa: PLC0415

    if max_storage is None and require_signature is None and strip_location is None:
        raise click.UsageError(
            "Nothing to set: give --max-storage, --[no-]require-signature, --strip-location or --keep-location."
        )
    max_bytes = None if max_storage is None else _parse_storage(max_storage)

    async def change(connection: Any) -> tuple[Account, Policy]:
        async with connection.transaction():
            if max_bytes is not None:
                await set_max_bytes(connection, name, max_bytes)
            await set_policy(connection, name, require_signature=require_signature, strip_location=strip_location)
        account = await find_account(connection, name)
        return account, await load_policy(connection, account.id)

    account, policy = with_database(data, change)
    click.echo(f"Account {name!r} is changed, {SOON}. See `accounts show`.", err=True)
    if max_bytes is not None and account.used_bytes > max_bytes:
        click.echo(
            f"It stores {format_size(account.used_bytes)}, which is more than that: uploads are refused until images"
            " are deleted.",
            err=True,
        )
    if policy.require_signature and not policy.secrets:
        click.echo(
            "It has no signing key, so no picture of it is delivered: create one with `signing-keys create`.", err=True
        )


@accounts.command("suspend")
@click.argument("name")
@click.option(
    "--stop-delivery/--keep-delivery", default=None, help="Whether its pictures are refused too.  [default: keep]"
)
@DATA
def accounts_suspend(name: str, *, stop_delivery: bool | None, data: Path | None) -> None:
    """Refuse all requests with the API keys of the account NAME until it is resumed.

    Uploads in flight are refused at their end. If NAME is already suspended, its delivery stays unchanged without
    an option.
    """
    from service.accounts.accounts import suspend_account  # noqa: PLC0415

    is_stopped = _change_state(data, name, lambda c: suspend_account(c, name, stop_delivery=stop_delivery))
    delivery = "are refused too" if is_stopped else "are still delivered"
    click.echo(f"Account {name!r} is suspended, {SOON}; its pictures {delivery}.", err=True)


@accounts.command("resume")
@click.argument("name")
@DATA
def accounts_resume(name: str, data: Path | None) -> None:
    """Undo the suspension of the account NAME."""
    from service.accounts.accounts import resume_account  # noqa: PLC0415

    _change_state(data, name, lambda connection: resume_account(connection, name))
    click.echo(f"Account {name!r} is active, {SOON}.", err=True)


def _change_state(data: Path | None, name: str, change: Callable[[Any], Awaitable[Result]]) -> Result:
    from service.accounts.accounts import AccountBeingDeleted  # noqa: PLC0415

    try:
        return with_database(data, change)
    except AccountBeingDeleted:
        raise click.ClickException(
            f"Account {name!r} is being deleted: run `accounts delete` again to continue."
        ) from None
