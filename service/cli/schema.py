"""`daguerre schema`: the tables of a new database, and upgrades of an older one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import click

from service.cli.common import SECONDS, describe, load_settings
from service.config.settings import SettingsError

_WAIT = click.option(
    "--wait", "patience_s", type=SECONDS, default=30.0, show_default=True, help="Seconds to wait for the server."
)


@click.group(invoke_without_command=True)
@_WAIT
@click.pass_context
def schema(context: click.Context, patience_s: float) -> None:
    """Create the tables in DAGUERRE_DATABASE_URL.

    Tables of an older version are not changed: the exit code is 1, and the pending steps are named.
    """
    from service.schema.changes import create_schema  # noqa: PLC0415

    if context.invoked_subcommand is None:
        _run(create_schema(load_settings().database_url, patience_s=patience_s))
    else:
        context.default_map = {"upgrade": {"patience_s": patience_s}}


@schema.command()
@_WAIT
def upgrade(patience_s: float) -> None:
    """Bring the tables of an older version to this one.

    Daguerre may be running. An interrupted upgrade is continued by the next one. In a new database it creates the
    tables.
    """
    from service.schema.changes import upgrade_schema  # noqa: PLC0415

    _run(upgrade_schema(load_settings().database_url, patience_s=patience_s, report=_write))


def _write(text: str) -> None:
    click.echo(text, err=True)


def _run(work: Coroutine[None, None, int]) -> None:
    import asyncpg  # noqa: PLC0415

    from service.schema.applied import SchemaMismatch  # noqa: PLC0415

    try:
        version = asyncio.run(work)
    except (SchemaMismatch, SettingsError) as error:
        raise click.ClickException(str(error)) from None
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        reason = describe(error)
        raise click.ClickException(f"DAGUERRE_DATABASE_URL: the database cannot be used: {reason}") from None
    _write(f"The schema is up to date (version {version}).")
