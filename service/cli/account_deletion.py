"""`daguerre accounts delete`."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import click

from service.cli.common import DATA, describe, locate, readable_errors, with_database
from service.config.settings import Settings, SettingsError

_PROGRESS_INTERVAL_S = 1.0
# A batch may wait for the account's row, which uploads and deletions of its images lock.
_COMMAND_TIMEOUT_S = 60


@click.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@DATA
def delete_account(name: str, *, yes: bool, data: Path | None) -> None:
    """Delete the account NAME, its keys, and all its images with their files.

    This cannot be undone. The account is suspended and its delivery is stopped first. If the command is interrupted,
    run it again: it continues. Run it on a machine that has the storage.
    """
    from service.accounts.accounts import Account, find_account  # noqa: PLC0415
    from service.config.values import format_size  # noqa: PLC0415
    from service.storage.backends import open_setup  # noqa: PLC0415

    settings = locate(data)
    try:
        storage = open_setup(settings)
        storage.require()
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    account: Account = with_database(data, lambda connection: find_account(connection, name))
    stored = f"{_count(account.num_images)} ({format_size(account.used_bytes)})"
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(
                f"This would delete {stored} permanently. There is no terminal to confirm it on: add --yes."
            )
        click.confirm(f"Delete the account {name!r} with {stored} permanently?", abort=True, err=True)
    with readable_errors():
        missing = _run(settings, account)
    click.echo(f"Account {name!r} is deleted.", err=True)
    if missing:
        click.echo(
            f"{missing} files of deleted images were not in {storage.location}. The workers search for them"
            " within a minute.",
            err=True,
        )


def _count(images: int) -> str:
    return f"{images:,} image{'' if images == 1 else 's'}"


def _run(settings: Settings, account: Any) -> int:
    from service.errors import ServiceError  # noqa: PLC0415

    try:
        return asyncio.run(_delete(settings, account))
    except ServiceError as error:
        reason = error.code + ("" if error.__cause__ is None else f" ({describe(error.__cause__)})")
    except OSError as error:
        reason = describe(error)
    except KeyboardInterrupt:
        raise click.ClickException("Interrupted. Run the command again to continue.") from None
    raise click.ClickException(f"Interrupted: {reason}. Run the command again to continue, when that is fixed.")


async def _delete(settings: Settings, account: Any) -> int:
    """Returns the number of files that were not in the storage."""
    from service.accounts.accounts import start_deletion  # noqa: PLC0415
    from service.database import Database  # noqa: PLC0415
    from service.deletion.accounts import AccountDeletion  # noqa: PLC0415
    from service.storage.backends import open_originals, open_renditions  # noqa: PLC0415
    from service.storage.identity import load_id  # noqa: PLC0415

    async with Database.open(
        settings.database_url, connections=1, command_timeout_s=_COMMAND_TIMEOUT_S, pooler=settings.database_pooler
    ) as database:
        async with database.connection() as connection:
            if not await start_deletion(connection, account.id):
                raise click.ClickException(f"Account {account.name!r} was deleted by another command meanwhile.")
        storage = open_originals(settings, database, partial(load_id, database))
        deletion = AccountDeletion(database, storage, open_renditions(settings))
        deleted, shown_at = 0, time.monotonic()
        async with aclosing(deletion.run(account.id)) as progress:
            async for deleted in progress:
                if time.monotonic() - shown_at >= _PROGRESS_INTERVAL_S:
                    shown_at = time.monotonic()
                    click.echo(f"{deleted:,} of {_count(account.num_images)} deleted", err=True)
        click.echo(f"{_count(deleted)} deleted", err=True)
        return await deletion.remove_remaining()
