"""Runs the operator's commands, in this process or as processes, and other programs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog
from click.testing import CliRunner

from service.cli import cli


def daguerre(*arguments: str, database_url: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in this process, in a thread because it has its own event loop. Raises unexpected errors."""
    structlog.reset_defaults()  # a real command does not inherit the configuration by `capture_logs` of another test
    configured = dict.fromkeys(name for name in os.environ if name.startswith("DAGUERRE_"))
    urls = {"DAGUERRE_DATABASE_URL": database_url} if database_url else {}
    with ThreadPoolExecutor(1) as thread:
        invoke = thread.submit(
            CliRunner().invoke, cli, arguments, env={**configured, **urls, **environment}, catch_exceptions=False
        )
        result = invoke.result()
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def daguerre_process(*arguments: str, database_url: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as a process."""
    urls = {"DAGUERRE_DATABASE_URL": database_url} if database_url else {}
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env={"PATH": os.environ["PATH"], **urls, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def run_program(*command: str, folder: Path, timeout_s: float) -> str:
    """Returns the stdout of a program. Fails with its stderr if the exit code is not 0, or after `timeout_s`."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return output.decode()
