"""`daguerre schema`."""

from __future__ import annotations

import asyncio

import click

from service.cli.configuration import SECONDS, describe, load_settings
from service.config.settings import SettingsError


@click.command()
@click.option(
    "--wait", "patience_s", type=SECONDS, default=30.0, show_default=True, help="Seconds to wait for a server."
)
def schema(patience_s: float) -> None:
    """Create or update the tables in DAGUERRE_DATABASE_URL, once a server is there."""
    import asyncpg  # noqa: PLC0415

    from service.database import SchemaNewer, apply_schema  # noqa: PLC0415

    settings = load_settings()
    try:
        asyncio.run(apply_schema(settings.database_url, patience_s=patience_s))
    except (SchemaNewer, SettingsError) as error:
        raise click.ClickException(str(error)) from None
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        reason = describe(error)
        raise click.ClickException(f"DAGUERRE_DATABASE_URL: the database cannot be used: {reason}") from None
    click.echo("The schema is up to date.", err=True)
