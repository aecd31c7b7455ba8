"""The `daguerre` command. Each side is imported only by the command that runs it."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from service.processes import StartError, listening
from service.processes.connection_counts import ConnectionCounts
from service.settings import Settings, SettingsError, load, parse_size

Result = TypeVar("Result")

_DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    envvar="DAGUERRE_DATA",
    help="Data folder of a running `daguerre up`.",
)


class _LazyGroup(click.Group):
    """Imports `up`, and the embedded servers with it, only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "up"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "up":
            command: click.Command = importlib.import_module("service.embedded.up").up
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="daguerre")
def cli() -> None:
    """Daguerre, a self-hosted image host."""


@cli.command()
@click.option("--fd", type=int, help="Serve on this inherited listening socket, as one process.")
@click.option(
    "--counts", type=int, nargs=2, help="Share it with others: a descriptor, and the place in it.", hidden=True
)
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on.")
@click.option("--processes", type=click.IntRange(1, 64), help="API processes (also DAGUERRE_API_PROCESSES).")
def serve(
    fd: int | None, counts: tuple[int, int] | None, host: str | None, port: int | None, processes: int | None
) -> None:
    """Run the API, as several processes behind one port."""
    settings = _settings(host=host, port=port, api_processes=processes)
    try:
        with _listen(settings, fd) as listener:
            if fd is None and settings.api_processes > 1:
                from service.processes import serving  # noqa: PLC0415

                serving.serve(settings, listener)
            else:
                from service.api import server  # noqa: PLC0415

                server.serve(settings, listener, ConnectionCounts(*counts) if counts else ConnectionCounts.alone())
    except (SettingsError, StartError) as error:
        raise click.ClickException(str(error)) from None


def _listen(settings: Settings, fd: int | None) -> socket.socket:
    return listening.bind(settings.host, settings.port) if fd is None else socket.socket(fileno=fd)


@cli.command()
def worker() -> None:
    """Run one worker process."""
    from worker.main import run  # noqa: PLC0415

    try:
        run(_settings())
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


@cli.command()
@click.option("--wait", "patience_s", default=30.0, show_default=True, help="Seconds to wait for a server.")
def schema(patience_s: float) -> None:
    """Create or update the tables in DAGUERRE_DATABASE_URL, once a server is there."""
    import asyncpg  # noqa: PLC0415

    from service.database import apply_schema  # noqa: PLC0415

    settings = _settings()
    try:
        asyncio.run(apply_schema(settings.database_url, patience_s=patience_s))
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        reason = str(error) or "it does not answer"
        raise click.ClickException(f"DAGUERRE_DATABASE_URL: the database cannot be used: {reason}") from None
    click.echo("The schema is up to date.", err=True)


@cli.command()
@click.argument("part", type=click.Choice(["api", "worker"]))
def health(part: str) -> None:
    """Tell whether the API, or a worker, of this machine lives; exit code 1 if not."""
    from service import liveness  # noqa: PLC0415

    find_problem = liveness.find_api_problem if part == "api" else liveness.find_worker_problem
    if problem := asyncio.run(find_problem(_settings())):
        raise click.ClickException(problem)


@cli.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended without a loss.")
@click.option("--drop-missing", is_flag=True, help="Delete images whose files are missing, as after a restore.")
@click.option("--quick", is_flag=True, help="Compare the sizes of files only, instead of reading them all.")
@click.option("--expect", type=click.File(), help="Lines `ID SHA256` of images that must be there; - for stdin.")
@_DATA
def verify(*, repair: bool, drop_missing: bool, quick: bool, expect: TextIO | None, data: Path | None) -> None:
    """Hold images, files and counters against each other; exit code 1 if something is wrong and was not mended.

    It may run at any time. What is uploaded or deleted meanwhile is not held against anyone.
    """
    from service.errors import ServiceError  # noqa: PLC0415
    from service.verification import report  # noqa: PLC0415

    try:
        expected = report.parse_expected(expect or ())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--expect") from None
    settings = _located(data)
    try:
        is_well = asyncio.run(
            report.verify(
                settings,
                read=not quick,
                repair=repair,
                drop_missing=drop_missing,
                expected=expected,
                tell=click.echo,
            )
        )
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    except ServiceError as error:
        raise click.ClickException(f"It could not be finished: {error.code}. Run it again once that works.") from None
    except OSError as error:
        raise click.ClickException(f"It could not be finished: {error}") from None
    if not is_well:
        sys.exit(1)


@cli.group()
def accounts() -> None:
    """Create and list accounts."""


@accounts.command("create")
@click.argument("name")
@click.option("--max-storage", default="2GB", show_default=True, help="Bytes, or like 500MB or 2GB.")
@_DATA
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

    key = _with_database(data, create)
    click.echo(f"Account {name!r} may store {max_bytes} bytes. Its key is shown this once:", err=True)
    click.echo(key)


@accounts.command("list")
@_DATA
def accounts_list(data: Path | None) -> None:
    """List the accounts and what they store."""
    from service.accounts import list_accounts  # noqa: PLC0415
    from service.sizes import readable  # noqa: PLC0415

    rows = [
        (account.name, str(account.num_images), readable(account.used_bytes), readable(account.max_bytes))
        for account in _with_database(data, list_accounts)
    ]
    _print_table(("NAME", "IMAGES", "USED", "MAX"), rows)


@cli.group()
def keys() -> None:
    """Create, list and revoke the keys of accounts."""


@keys.command("create")
@click.argument("account")
@_DATA
def keys_create(account: str, data: Path | None) -> None:
    """Create one more key of ACCOUNT; it is printed alone on the last line."""
    from service.keys import create_key  # noqa: PLC0415

    key = _with_database(data, lambda connection: create_key(connection, account))
    click.echo(f"A key of account {account!r}, shown this once:", err=True)
    click.echo(key)


@keys.command("list")
@click.argument("account")
@_DATA
def keys_list(account: str, data: Path | None) -> None:
    """List the keys of ACCOUNT by their first characters."""
    from service.accounts import find_account  # noqa: PLC0415
    from service.keys import list_keys  # noqa: PLC0415

    async def find(connection: Any) -> list[tuple[str, ...]]:
        await find_account(connection, account)
        return [
            (
                str(key.id),
                f"{key.hint}…",
                f"{key.created_at:%Y-%m-%d %H:%M}",
                "never" if key.last_used_at is None else f"{key.last_used_at:%Y-%m-%d %H:00}",
                "active" if key.revoked_at is None else f"revoked {key.revoked_at:%Y-%m-%d %H:%M}",
            )
            for key in await list_keys(connection, account)
        ]

    _print_table(("ID", "KEY", "CREATED (UTC)", "LAST USED (UTC)", "STATE"), _with_database(data, find))


@keys.command("revoke")
@click.argument("key_id", metavar="ID", type=int)
@_DATA
def keys_revoke(key_id: int, data: Path | None) -> None:
    """Revoke the key with this ID (see `keys list`); it stops within 5 seconds everywhere."""
    from service.keys import revoke_key  # noqa: PLC0415

    if not _with_database(data, lambda connection: revoke_key(connection, key_id)):
        raise click.ClickException(f"There is no active key {key_id}; see `daguerre keys list ACCOUNT`.")
    click.echo(f"Key {key_id} is revoked.", err=True)


def _settings(**overrides: object) -> Settings:
    try:
        return load(**overrides)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def _with_database(data: Path | None, work: Callable[[Any], Awaitable[Result]]) -> Result:
    """Do `work` on a connection to the configured database, or to that of a running `up` on the data folder."""
    import asyncpg  # noqa: PLC0415

    from service.accounts import AccountUnknown  # noqa: PLC0415

    async def connect_and_work() -> Result:
        try:
            connection = await asyncpg.connect(_located(data).database_url, timeout=10)
        except (OSError, asyncpg.PostgresError) as error:
            raise click.ClickException(f"The database cannot be reached: {error}") from None
        try:
            return await work(connection)
        except AccountUnknown as unknown:
            raise click.ClickException(f"There is no account {str(unknown)!r}.") from None
        finally:
            await connection.close()

    return asyncio.run(connect_and_work())


def _located(data: Path | None) -> Settings:
    """The settings, with the servers of the `up` that runs on the data folder where none are configured."""
    settings = _settings(data=data)
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
    return settings.model_copy(update={"database_url": found.database_url, "redis_url": found.redis_url})


def _print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    cli(prog_name=os.environ.get("DAGUERRE_COMMAND", "daguerre"))


if __name__ == "__main__":
    main()
