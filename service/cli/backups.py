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

from service.cli.configuration import DATA, describe, explained_errors, load_settings, locate
from service.config.settings import Settings, SettingsError
from service.launcher import StartError

Result = TypeVar("Result")

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("folder", type=_FOLDER)
@DATA
def backup(folder: Path, data: Path | None) -> None:
    """Copy the database and the images into FOLDER, while Daguerre runs or not.

    An earlier backup in FOLDER is brought up to date: files that it has are not copied again. Exit code 1 if an image
    has no whole file in it.
    """
    from service.backups.backup import make_backup  # noqa: PLC0415
    from service.launcher.embedded import first_key  # noqa: PLC0415

    settings = load_settings(data=data)
    with _explained(), _existing_servers(settings) as located:
        faults = _run(
            make_backup(
                located.database_url,
                located.storage_folder,
                folder.expanduser(),
                first_key=first_key.path(located.data),
                write=_write,
            )
        )
    if faults:
        raise click.ClickException(
            f"The backup in {folder} is complete, but for the files of {faults} of the images; see `verify`."
        )
    click.echo(f"The backup in {folder} is complete.", err=True)


@click.command()
@click.argument("folder", type=_FOLDER)
@DATA
def restore(folder: Path, data: Path | None) -> None:
    """Bring the backup in FOLDER back, into a data folder that holds nothing yet.

    With DAGUERRE_DATABASE_URL it goes into that database, which must be empty, and into the folder for the images. What
    was restored is verified at the end; exit code 1 if something is wrong and was not mended.
    """
    from service.backups.restore import check_backup, restore_backup  # noqa: PLC0415

    settings = load_settings(data=data)
    with _explained():
        check_backup(folder.expanduser())
        with _new_servers(settings) as located:
            is_well = _run(restore_backup(located, folder.expanduser(), write=_write))
    click.echo(f"The backup in {folder} is restored.", err=True)
    if not is_well:
        sys.exit(1)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@DATA
def psql(arguments: tuple[str, ...], data: Path | None) -> None:
    """Open psql on the database; ARGUMENTS are psql's own, such as -c 'select …'."""
    from service.backups import programs  # noqa: PLC0415

    with _explained():
        program, environment = programs.find_program("psql"), programs.environment(locate(data).database_url)
    sys.stdout.flush()
    os.execve(program, [str(program), *arguments], environment)  # noqa: S606  there is no shell to mean


def _write(text: str) -> None:
    click.echo(text, err=True)


def _run(work: Coroutine[None, None, Result]) -> Result:
    with explained_errors():
        try:
            return asyncio.run(work)
        except (ConnectionError, TimeoutError, socket.gaierror):  # of the database
            raise
        except OSError as error:
            raise click.ClickException(f"It could not be finished: {describe(error)}") from None


@contextmanager
def _explained() -> Iterator[None]:
    from service.backups import BackupError  # noqa: PLC0415
    from service.database import SchemaNewer  # noqa: PLC0415
    from service.errors import ServiceError  # noqa: PLC0415

    try:
        yield
    except (BackupError, StartError, SettingsError, SchemaNewer) as error:
        raise click.ClickException(str(error)) from None
    except ServiceError as error:
        raise click.ClickException(f"It could not be finished: {error.code}") from None
    except OSError as error:
        raise click.ClickException(f"It could not be finished: {describe(error)}") from None


@contextmanager
def _existing_servers(settings: Settings) -> Iterator[Settings]:
    """Yields the settings with the address of the database: the one given, that of a running `up`, or that of its data
    folder, whose server is started for the while.
    """
    from service.launcher.embedded import data_folder, running  # noqa: PLC0415
    from service.launcher.embedded.postgres import Postgres, server_user  # noqa: PLC0415

    data = settings.data.absolute()
    is_stopped = "database_url" not in settings.model_fields_set and running.find(data) is None
    if not is_stopped or not (data / "postgres" / "cluster").is_dir():
        yield locate(settings.data)
        return
    with (
        data_folder.claim(data, server_user()) as place,
        Postgres(place.postgres, socket_folder=place.run / "postgres", log=place.logs / "postgres.log") as postgres,
    ):
        yield settings.model_copy(update={"database_url": postgres.dsn})


@contextmanager
def _new_servers(settings: Settings) -> Iterator[Settings]:
    """Yields the settings with the addresses of the servers: those given, or new ones in a new data folder."""
    from service.launcher.embedded import data_folder  # noqa: PLC0415
    from service.launcher.embedded.postgres import Postgres, server_user  # noqa: PLC0415
    from service.launcher.embedded.valkey import Valkey  # noqa: PLC0415

    if "database_url" in settings.model_fields_set:
        yield settings
        return
    with (
        data_folder.claim_new(settings.data, server_user()) as place,
        Postgres(place.postgres, socket_folder=place.run / "postgres", log=place.logs / "postgres.log") as postgres,
        Valkey(place.valkey, socket_path=place.run / "valkey.sock", log=place.logs / "valkey.log") as valkey,
    ):
        redis_url = settings.redis_url if "redis_url" in settings.model_fields_set else valkey.url
        yield settings.model_copy(update={"database_url": postgres.dsn, "redis_url": redis_url, "data": place.path})
