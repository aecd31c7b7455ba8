"""`daguerre storage`: moves the originals to another storage."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path

import click

from service.cli.common import DATA, describe, locate, readable_errors
from service.config.settings import SettingsError
from service.config.values import StoreUrl, parse_storage


class _Storage(click.ParamType[Path | StoreUrl]):
    name = "storage"

    def convert(
        self, value: str | Path | StoreUrl, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | StoreUrl:
        if not isinstance(value, str):
            return value
        try:
            return parse_storage(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group()
def storage() -> None:
    """Move the images to another storage."""


@storage.command()
@click.option("--from", "source", type=_Storage(), help="Folder or s3://… to copy; by default DAGUERRE_STORAGE.")
@click.option("--to", "target", type=_Storage(), required=True, help="Folder or s3://… that gets the copies.")
@DATA
def copy(*, source: Path | StoreUrl | None, target: Path | StoreUrl, data: Path | None) -> None:
    """Copy all images to another storage. Daguerre may be running.

    Run it again until few files are copied, stop Daguerre, run it once more, set DAGUERRE_STORAGE, and start Daguerre.
    The exit code is 1 if the file of an image is missing or damaged.
    """
    from service.errors import ServiceError  # noqa: PLC0415
    from service.transfers.storage_copy import copy_storage  # noqa: PLC0415

    settings = locate(data)
    if source is not None:
        settings = settings.model_copy(update={"storage": source})
    with readable_errors():
        try:
            is_complete = asyncio.run(copy_storage(settings, target, write=partial(click.echo, err=True)))
        except SettingsError as error:
            raise click.ClickException(str(error)) from None
        except ServiceError as error:
            raise click.ClickException(f"Not finished: {error.code}. Run it again when that is fixed.") from None
        except OSError as error:
            raise click.ClickException(f"Not finished: {describe(error)}. Run it again when that is fixed.") from None
    if not is_complete:
        sys.exit(1)
