"""What commands work on: the settings, and the database that they or a running `up` name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from service.processes import StartError
from service.settings import Settings, SettingsError, load

Result = TypeVar("Result")

DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    envvar="DAGUERRE_DATA",
    help="Data folder of a running `daguerre up`.",
)
# For what processes trust for four seconds after they looked it up.
SOON = "known everywhere within 5 seconds"


def load_settings(**overrides: object) -> Settings:
    try:
        return load(**overrides)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def with_database(data: Path | None, work: Callable[[Any], Awaitable[Result]]) -> Result:
    """Do `work` on a connection to the configured database, or to that of a running `up` on the data folder."""
    import asyncpg  # noqa: PLC0415

    from service.accounts.records import AccountUnknown  # noqa: PLC0415

    async def connect_and_work() -> Result:
        try:
            connection = await asyncpg.connect(locate(data).database_url, timeout=10)
        except (OSError, asyncpg.PostgresError) as error:
            raise click.ClickException(f"The database cannot be reached: {error}") from None
        try:
            return await work(connection)
        except AccountUnknown as unknown:
            raise click.ClickException(f"There is no account {str(unknown)!r}.") from None
        finally:
            await connection.close()

    return asyncio.run(connect_and_work())


def locate(data: Path | None) -> Settings:
    """The settings; what they leave open of servers and address is that of the `up` that runs on the data folder."""
    settings = load_settings(data=data)
    if "database_url" in settings.model_fields_set:
        return settings
    from service.embedded import running  # noqa: PLC0415

    try:
        found = running.find(settings.data)
    except StartError as error:
        raise click.ClickException(str(error)) from None
    if found is None:
        raise click.ClickException(
            f"No Daguerre is running on {settings.data}: start it with `./run up --data {settings.data}`, "
            "or set DAGUERRE_DATABASE_URL."
        )
    servers = {"database_url": found.database_url, "redis_url": found.redis_url}
    public = {} if "public_url" in settings.model_fields_set else {"public_url": found.public_url}
    return settings.model_copy(update=servers | public)
