"""`daguerre presets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.cli.common import DATA, SOON, print_table, with_database


@click.group()
def presets() -> None:
    """Set, list and delete presets of accounts. A preset is a name for rendition parameters."""


@presets.command("set")
@click.argument("account")
@click.argument("name")
@click.argument("parameters")
@DATA
def presets_set(account: str, name: str, parameters: str, data: Path | None) -> None:
    """Set the preset NAME to PARAMETERS, e.g. `width=300&height=300&fit=cover`, for the URLs of ACCOUNT."""
    from service.accounts.presets import MAX_PRESETS, TooManyPresets, set_preset  # noqa: PLC0415
    from service.errors import ServiceError  # noqa: PLC0415
    from service.renditions.parsing import check_preset  # noqa: PLC0415

    try:
        checked = check_preset(parameters)
        with_database(data, lambda connection: set_preset(connection, account, name, checked))
    except ServiceError as error:
        raise click.ClickException(error.message) from None
    except TooManyPresets:
        raise click.ClickException(
            f"Account {account!r} already has {MAX_PRESETS} presets: delete one of them first."
        ) from None
    click.echo(f"Preset {name!r} of account {account!r} is set, {SOON}.", err=True)


@presets.command("list")
@click.argument("account")
@DATA
def presets_list(account: str, data: Path | None) -> None:
    """List the presets of ACCOUNT."""
    from service.accounts.accounts import find_account  # noqa: PLC0415
    from service.accounts.presets import list_presets  # noqa: PLC0415

    async def find(connection: Any) -> list[tuple[str, ...]]:
        await find_account(connection, account)
        return [
            (preset.name, f"{preset.changed_at:%Y-%m-%d %H:%M}", preset.parameters)
            for preset in await list_presets(connection, account)
        ]

    print_table(("NAME", "CHANGED (UTC)", "PARAMETERS"), with_database(data, find))


@presets.command("delete")
@click.argument("account")
@click.argument("name")
@DATA
def presets_delete(account: str, name: str, data: Path | None) -> None:
    """Delete the preset NAME of ACCOUNT. URLs that use it are then refused."""
    from service.accounts.accounts import find_account  # noqa: PLC0415
    from service.accounts.presets import delete_preset  # noqa: PLC0415

    async def delete(connection: Any) -> bool:
        await find_account(connection, account)
        return await delete_preset(connection, account, name)

    if not with_database(data, delete):
        raise click.ClickException(f"Account {account!r} has no preset {name!r}.")
    click.echo(f"Preset {name!r} of account {account!r} is deleted, {SOON}.", err=True)
