"""The `daguerre` command. Each side is imported only by the command that runs it."""

from __future__ import annotations

from service.cli.commands import cli, main

__all__ = ["cli", "main"]
