"""What commands work on: the settings, and the database that they or a running `up` name."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from service.config.settings import Settings, SettingsError, load
from service.launcher import StartError

Result = TypeVar("Result")

_CONNECT_S = 10
# A statement waits for a row that another command has locked.
_COMMAND_S = 30
_CLOSE_S = 2

DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    envvar="DAGUERRE_DATA",
    help="Data folder of a running `daguerre up`.",
)
# For what processes trust for four seconds after they looked it up.
SOON = "known everywhere within 5 seconds"


class _Seconds(click.FloatRange):
    """Without nan, which is in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds


SECONDS = _Seconds(0, 86400)


def load_settings(**overrides: object) -> Settings:
    try:
        return load(**overrides)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def with_database(data: Path | None, work: Callable[[Any], Awaitable[Result]]) -> Result:
    """Do `work` on a connection to the configured database, or to that of a running `up` on the data folder."""
    return asyncio.run(_connect_and_work(locate(data).database_url, work))


async def _connect_and_work(url: str, work: Callable[[Any], Awaitable[Result]]) -> Result:
    import asyncpg  # noqa: PLC0415

    from service.accounts.accounts import AccountUnknown  # noqa: PLC0415

    try:
        connection = await asyncpg.connect(url, timeout=_CONNECT_S, command_timeout=_COMMAND_S)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise click.ClickException(f"The database cannot be reached: {describe(error)}") from None
    try:
        with explained_errors():
            return await work(connection)
    except AccountUnknown as unknown:
        raise click.ClickException(f"There is no account {str(unknown)!r}.") from None
    finally:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # the server may be away
            await connection.close(timeout=_CLOSE_S)


@contextmanager
def explained_errors() -> Iterator[None]:
    """What PostgreSQL refuses, and that it went away, becomes a sentence."""
    import asyncpg  # noqa: PLC0415

    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError) as error:
        raise click.ClickException(
            "The database does not have the tables of this version: run `daguerre schema` first, or start `up` anew"
            f" ({describe(error)})."
        ) from None
    except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
        raise click.ClickException(f"The database refuses a value: {describe(error)}") from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise click.ClickException(f"The database cannot be used: {describe(error)}") from None


def describe(error: BaseException) -> str:
    """In one line."""
    return " ".join(str(error).split()) or "it does not answer"


def locate(data: Path | None) -> Settings:
    """The settings; what they leave open of servers and address is that of the `up` that runs on the data folder."""
    settings = load_settings(data=data)
    if "database_url" in settings.model_fields_set:
        return settings
    from service.launcher.embedded import running  # noqa: PLC0415

    try:
        found = running.find(settings.data)
    except StartError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"DAGUERRE_DATA: {settings.data} cannot be used: {describe(error)}") from None
    if found is None:
        raise click.ClickException(
            f"No Daguerre is running on {settings.data}: start it with `./run up --data {settings.data}`, "
            "or set DAGUERRE_DATABASE_URL."
        )
    servers = {"database_url": found.database_url, "redis_url": found.redis_url}
    public = {} if "public_url" in settings.model_fields_set else {"public_url": found.public_url}
    return settings.model_copy(update=servers | public)
