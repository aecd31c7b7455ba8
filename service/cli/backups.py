"""`daguerre backup`, `daguerre restore` and `daguerre psql`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click

from service.cli.common import DATA, describe, load_settings, locate, readable_errors
from service.config.settings import Settings, SettingsError
from service.launcher import StartError

Result = TypeVar("Result")

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("folder", type=_FOLDER)
@DATA
def backup(folder: Path, data: Path | None) -> None:
    """Copy the database and images into FOLDER. Daguerre may be running.

    An earlier backup in FOLDER is updated: files that it already has are not copied again. The exit code is 1 if the
    file of an image is missing or damaged.
    """
    from service.backups.backup import make_backup  # noqa: PLC0415
    from service.launcher.embedded import first_key  # noqa: PLC0415

    settings = load_settings(data=data)
    with _error_sentences(), _existing_servers(settings) as located:
        faults = _run(make_backup(located, folder.expanduser(), first_key=first_key.path(located.data), write=_write))
    if faults:
        raise click.ClickException(
            f"The backup in {folder} is complete except for the files of {faults} images; see `verify`."
        )
    click.echo(f"The backup in {folder} is complete.", err=True)


@click.command()
@click.argument("folder", type=_FOLDER)
@DATA
def restore(folder: Path, data: Path | None) -> None:
    """Restore the backup in FOLDER into a new data folder.

    With DAGUERRE_DATABASE_URL it is restored into that database, which must be empty, and into the storage folder. The
    result is verified at the end. The exit code is 1 if problems remain.
    """
    from service.backups.restore import check_backup, restore_backup  # noqa: PLC0415

    settings = load_settings(data=data)
    with _error_sentences():
        check_backup(folder.expanduser())
        with _new_servers(settings) as located:
            succeeded = _run(restore_backup(located, folder.expanduser(), write=_write))
    click.echo(f"The backup in {folder} is restored.", err=True)
    if not succeeded:
        sys.exit(1)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@DATA
def psql(arguments: tuple[str, ...], data: Path | None) -> None:
    """Open psql on the database. ARGUMENTS are passed to psql, e.g. -c 'select …'."""
    from service.backups import programs  # noqa: PLC0415

    with _error_sentences():
        url = locate(data).database_url
        program, environment = programs.find_program("psql", url), programs.environment(url)
    sys.stdout.flush()
    os.execve(program, [str(program), *arguments], environment)  # noqa: S606  no shell is wanted


def _write(text: str) -> None:
    click.echo(text, err=True)


def _run(work: Coroutine[None, None, Result]) -> Result:
    with readable_errors():
        try:
            return asyncio.run(work)
        except (ConnectionError, TimeoutError, socket.gaierror):  # errors of the database
            raise
        except OSError as error:
            raise click.ClickException(f"Not finished: {describe(error)}") from None


@contextmanager
def _error_sentences() -> Iterator[None]:
    from service.backups import BackupError  # noqa: PLC0415
    from service.errors import ServiceError  # noqa: PLC0415
    from service.schema.applied import SchemaMismatch  # noqa: PLC0415

    try:
        yield
    except (BackupError, StartError, SettingsError, SchemaMismatch) as error:
        raise click.ClickException(str(error)) from None
    except ServiceError as error:
        raise click.ClickException(f"Not finished: {error.code}") from None
    except OSError as error:
        raise click.ClickException(f"Not finished: {describe(error)}") from None


@contextmanager
def _existing_servers(settings: Settings) -> Iterator[Settings]:
    """Yields the settings with the address of the database: the configured one or the one of a running `up`.

    If neither is there, the server of the data folder is started for the block.
    """
    from service.launcher.embedded import data_folder, instance  # noqa: PLC0415
    from service.launcher.embedded.postgres import Postgres, server_user  # noqa: PLC0415

    data = settings.data.absolute()
    is_stopped = "database_url" not in settings.model_fields_set and instance.find(data) is None
    if not is_stopped or not (data / "postgres" / "cluster").is_dir():
        yield locate(settings.data)
        return
    with (
        data_folder.claim(data, server_user()) as folder,
        Postgres(folder.postgres, socket_folder=folder.run / "postgres", log=folder.logs / "postgres.log") as postgres,
    ):
        yield settings.model_copy(update={"database_url": postgres.dsn})


@contextmanager
def _new_servers(settings: Settings) -> Iterator[Settings]:
    """Yields the settings with the addresses of the servers: the configured ones, or new ones in a new data folder."""
    from service.launcher.embedded import data_folder  # noqa: PLC0415
    from service.launcher.embedded.postgres import Postgres, server_user  # noqa: PLC0415
    from service.launcher.embedded.valkey import Valkey  # noqa: PLC0415

    if "database_url" in settings.model_fields_set:
        yield settings
        return
    with (
        data_folder.claim_new(settings.data, server_user()) as folder,
        Postgres(folder.postgres, socket_folder=folder.run / "postgres", log=folder.logs / "postgres.log") as postgres,
        Valkey(folder.valkey, socket_path=folder.run / "valkey.sock", log=folder.logs / "valkey.log") as valkey,
    ):
        redis_url = settings.redis_url if "redis_url" in settings.model_fields_set else valkey.url
        yield settings.model_copy(update={"database_url": postgres.dsn, "redis_url": redis_url, "data": folder.path})
