"""The group of all commands."""

from __future__ import annotations

import importlib
import os

import click

from service.cli.account_deletion import delete_account
from service.cli.accounts import accounts
from service.cli.backups import backup, psql, restore
from service.cli.health import health
from service.cli.keys import keys, signing_keys
from service.cli.presets import presets
from service.cli.schema import schema
from service.cli.serving import serve, worker
from service.cli.settings import settings
from service.cli.sign import sign
from service.cli.storage import storage
from service.cli.verify import verify


class _LazyGroup(click.Group):
    """Imports `up`, and with it the embedded servers, only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "up"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "up":
            command: click.Command = importlib.import_module("service.launcher.embedded.up").up
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="daguerre")
def cli() -> None:
    """Daguerre, a self-hosted image host."""


accounts.add_command(delete_account)
for command in (
    *(serve, worker, schema, health, verify, backup, restore, storage, psql),
    *(accounts, keys, signing_keys, presets, sign, settings),
):
    cli.add_command(command)


def main() -> None:
    cli(prog_name=os.environ.get("DAGUERRE_COMMAND", "daguerre"))
