"""`daguerre verify`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TextIO

import click

from service.cli.common import DATA, describe, locate, readable_errors
from service.config.settings import SettingsError


@click.command()
@click.option("--repair", is_flag=True, help="Repair what can be repaired without losing data.")
@click.option("--drop-missing", is_flag=True, help="Delete images whose files are missing, e.g. after a restore.")
@click.option("--force", is_flag=True, help="Continue even if more than a tenth of all images or files are affected.")
@click.option(
    "--read/--quick", default=True, help="Read all files and compare their SHA-256 (the default), or only their sizes."
)
@click.option("--expect", type=click.File(), help="File with lines `ID SHA256` of images that must exist; - for stdin.")
@DATA
def verify(
    *, repair: bool, drop_missing: bool, force: bool, read: bool, expect: TextIO | None, data: Path | None
) -> None:
    """Compare images, files and counters. The exit code is 1 if problems remain.

    It can run at any time, also while images are uploaded and deleted.
    """
    from service.verification import report  # noqa: PLC0415
    from service.verification.context import Options  # noqa: PLC0415

    try:
        expected = report.parse_expected(expect or ())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--expect") from None
    settings = locate(data)
    options = Options(read=read, repair=repair, drop_missing=drop_missing, force=force)
    with readable_errors():
        succeeded = _run(report.verify(settings, options, expected, write=click.echo))
    if not succeeded:
        sys.exit(1)


def _run(verification: Coroutine[None, None, bool]) -> bool:
    from service.database import SETUP_ERRORS  # noqa: PLC0415
    from service.errors import ServiceError  # noqa: PLC0415

    try:
        return asyncio.run(verification)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    except ServiceError as error:
        if isinstance(error.__cause__, SETUP_ERRORS):
            raise error.__cause__ from None
        reason = "" if error.__cause__ is None else f" ({describe(error.__cause__)})"
        message = f"Not finished: {error.code}{reason}. Run it again when that is fixed."
        raise click.ClickException(message) from None
    except OSError as error:
        raise click.ClickException(f"Not finished: {describe(error)}") from None
