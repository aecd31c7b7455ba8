"""The `daguerre` command. The API and the worker are imported only by the commands that run them."""

from __future__ import annotations

from service.cli.commands import cli, main

__all__ = ["cli", "main"]
