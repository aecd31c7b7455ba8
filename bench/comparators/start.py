"""Installs and starts the comparators, for the benchmark and the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from service.launcher.exit_reasons import wait_ready
from service.launcher.process import Program, start, stop

_FOLDER = Path(__file__).parent
_MIN_NODE_VERSION = (20, 10)

_NODE_NAMES = ("fastify_sharp", "bare_sharp")
NAMES = (*_NODE_NAMES, "fastapi_pillow", "bare_aiohttp", "thumbor")


class UnavailableError(Exception):
    """Node is missing or too old, or npm or pip failed. The message says which."""


def command(name: str, install_folder: Path) -> list[str]:
    """Returns the command that starts a comparator.

    Installs its additional packages in `install_folder` first, unless they are there. Raises UnavailableError.
    """
    if name in _NODE_NAMES:
        return _node_command(name, install_folder / name)
    if name == "thumbor":
        return _thumbor_command(name, install_folder / name)
    return [sys.executable, "-m", f"bench.comparators.{name}"]


def _node_command(name: str, folder: Path) -> list[str]:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise UnavailableError(f"{name} needs Node with npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(map(int, version[1:].split(".")[:2])) < _MIN_NODE_VERSION:
        raise UnavailableError(f"{name} needs Node 20.10 or newer, and this is {version}")
    npm = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"]
    _install(name, _FOLDER / name / "package.json", folder, [npm])
    script, copy = _FOLDER / name / "server.js", folder / "server.js"  # Node looks for modules next to the script
    if not copy.exists() or copy.read_bytes() != script.read_bytes():  # another process may be about to run it
        shutil.copy(script, copy)
    return [node, str(copy)]


def _thumbor_command(name: str, folder: Path) -> list[str]:
    """Installs thumbor in its own virtual environment, because it needs other versions of Daguerre's packages."""
    create = [sys.executable, "-m", "venv", "--clear", str(folder / "venv")]
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", "requirements.txt"]
    _install(name, _FOLDER / name / "requirements.txt", folder, [create, pip])
    return [str(python), str(_FOLDER / name / "serve.py")]


def _install(name: str, requirements: Path, folder: Path, commands: Sequence[Sequence[str]]) -> None:
    """Runs the commands in the folder, next to a copy of `requirements`, unless they succeeded with the same before.

    Raises UnavailableError if one fails.
    """
    installed = folder / requirements.name
    if installed.exists() and installed.read_text() == requirements.read_text():
        return
    installed.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(requirements, installed)
    with ExitStack() as on_error:
        on_error.callback(installed.unlink)
        for argv in commands:
            result = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise UnavailableError(f"{name} could not be installed: {result.stderr or result.stdout}")
        on_error.pop_all()


@contextmanager
def running(
    argv: list[str], *, port: int, dsn: str, files: Path, key: str, log: Path, processes: int = 2, fsync: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command `argv` and yields when it listens. `log` is overwritten with its output."""
    settings = {
        "BENCH_PORT": str(port),
        "BENCH_DSN": dsn,
        "BENCH_FILES": str(files),
        "BENCH_KEY": key,
        "BENCH_PROCESSES": str(processes),
        "BENCH_FSYNC": "1" if fsync else "",
        "PYTHONPATH": str(_FOLDER.parents[1]),
    }
    program = Program(
        name=Path(argv[-1]).name,
        argv=argv,
        env=os.environ | settings,
        log=log,
        grace_s=10,
        ready=lambda _: "is listening on" in log.read_text(),
    )
    log.unlink(missing_ok=True)
    process = start(program)
    try:
        wait_ready(program, process)
        yield process
    finally:
        stop(program, process)
