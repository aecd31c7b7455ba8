"""Helpers of the commands: settings, the database connection, error messages and tables."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from service.config.settings import Settings, SettingsError, load
from service.launcher import StartError

Result = TypeVar("Result")

_CONNECT_TIMEOUT_S = 10
# A statement may wait for a row that another command has locked.
_COMMAND_TIMEOUT_S = 30
_CLOSE_TIMEOUT_S = 2

DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    envvar="DAGUERRE_DATA",
    help="Data folder of a running `daguerre up`.",
)
# For changes of values that processes cache for 4 seconds.
SOON = "effective everywhere within 5 seconds"


class _Seconds(click.FloatRange):
    """A range that refuses nan, which click accepts in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


SECONDS = _Seconds(0, 86400)


def load_settings(**overrides: object) -> Settings:
    try:
        return load(**overrides)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def with_database(data: Path | None, work: Callable[[Any], Awaitable[Result]]) -> Result:
    """Runs `work` on a connection to the configured database, or to the database of a running `up` on the data folder.

    Errors become ClickExceptions of one sentence.
    """
    return asyncio.run(_connect_and_work(locate(data).database_url, work))


async def _connect_and_work(url: str, work: Callable[[Any], Awaitable[Result]]) -> Result:
    import asyncpg  # noqa: PLC0415

    from service.accounts.accounts import AccountUnknown  # noqa: PLC0415
    from service.pooling import connect  # noqa: PLC0415

    try:
        connection = await connect(url, timeout=_CONNECT_TIMEOUT_S, command_timeout=_COMMAND_TIMEOUT_S)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise click.ClickException(f"The database cannot be reached: {describe(error)}") from None
    try:
        with readable_errors():
            return await work(connection)
    except AccountUnknown as unknown:
        raise click.ClickException(f"There is no account {str(unknown)!r}.") from None
    finally:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # the server may be away
            await connection.close(timeout=_CLOSE_TIMEOUT_S)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turns errors of PostgreSQL in the block into one sentence each."""
    import asyncpg  # noqa: PLC0415

    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError) as error:
        raise click.ClickException(
            "The database does not have the tables of this version: run `daguerre schema`, or restart `daguerre up`"
            f" ({describe(error)})."
        ) from None
    except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
        raise click.ClickException(f"The database refuses a value: {describe(error)}") from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise click.ClickException(f"The database cannot be used: {describe(error)}") from None


def describe(error: BaseException) -> str:
    """Returns the error's message in one line."""
    return " ".join(str(error).split()) or "it does not answer"


def locate(data: Path | None) -> Settings:
    """Returns the settings. If no database is configured, the addresses are those of the `up` on the data folder.

    Raises ClickException if no `up` runs there.
    """
    settings = load_settings(data=data)
    if "database_url" in settings.model_fields_set:
        return settings
    from service.launcher.embedded import instance  # noqa: PLC0415

    try:
        running = instance.find(settings.data)
    except StartError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"DAGUERRE_DATA: {settings.data} cannot be used: {describe(error)}") from None
    if running is None:
        raise click.ClickException(
            f"No Daguerre is running on {settings.data}: start it with `./run up --data {settings.data}`, "
            "or set DAGUERRE_DATABASE_URL."
        )
    servers = {"database_url": running.database_url, "redis_url": running.redis_url}
    public = {} if "public_url" in settings.model_fields_set else {"public_url": running.public_url}
    return running.storage_settings(settings.model_copy(update=servers | public))


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
