"""The operator's commands, called in this process or run as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import structlog
from click.testing import CliRunner

from service.cli import cli


def daguerre(*arguments: str, database_url: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """In a thread, for a command runs a loop of its own. What is not told in a sentence is raised."""
    structlog.reset_defaults()  # `capture_logs` of another test leaves it configured, and then it is no command
    configured = dict.fromkeys(name for name in os.environ if name.startswith("DAGUERRE_"))
    given = {"DAGUERRE_DATABASE_URL": database_url} if database_url else {}
    with ThreadPoolExecutor(1) as thread:
        invoke = thread.submit(
            CliRunner().invoke, cli, arguments, env={**configured, **given, **environment}, catch_exceptions=False
        )
        done = invoke.result()
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def daguerre_process(*arguments: str, database_url: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"DAGUERRE_DATABASE_URL": database_url} if database_url else {}
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env={"PATH": os.environ["PATH"], **given, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
