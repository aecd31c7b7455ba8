"""`daguerre health`."""

from __future__ import annotations

import asyncio

import click

from service.cli.configuration import load_settings
from service.config.settings import SettingsError


@click.command()
@click.argument("part", type=click.Choice(["api", "worker"]))
def health(part: str) -> None:
    """Tell whether the API, or a worker, of this machine lives; exit code 1 if not."""
    from service.cli import liveness  # noqa: PLC0415

    find_problem = liveness.find_api_problem if part == "api" else liveness.find_worker_problem
    try:
        problem = asyncio.run(find_problem(load_settings()))
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    if problem:
        raise click.ClickException(problem)
