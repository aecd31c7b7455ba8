"""Starting the comparators, for the benchmark and the tests."""

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
_OLDEST_NODE = (20, 10)

_IN_NODE = ("fastify_sharp", "bare_sharp")
NAMES = (*_IN_NODE, "fastapi_pillow", "bare_aiohttp", "thumbor")


class UnavailableError(Exception):
    """Node is missing or too old, or npm or pip could not install; the message says so."""


def command(name: str, installed: Path) -> list[str]:
    """What starts a comparator. What it needs beyond Daguerre's own packages is put below `installed`, once."""
    if name in _IN_NODE:
        return _command_of_node(name, installed / name)
    if name == "thumbor":
        return _command_of_thumbor(name, installed / name)
    return [sys.executable, "-m", f"bench.comparators.{name}"]


def _command_of_node(name: str, folder: Path) -> list[str]:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise UnavailableError(f"{name} needs Node with npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(map(int, version[1:].split(".")[:2])) < _OLDEST_NODE:
        raise UnavailableError(f"{name} needs Node 20.10 or newer, and this is {version}")
    npm = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"]
    _install(name, _FOLDER / name / "package.json", folder, [npm])
    script, copy = _FOLDER / name / "server.js", folder / "server.js"  # Node looks for modules beside the script
    if not copy.exists() or copy.read_bytes() != script.read_bytes():  # another process may be about to run it
        shutil.copy(script, copy)
    return [node, str(copy)]


def _command_of_thumbor(name: str, folder: Path) -> list[str]:
    """In a virtual environment of its own: it wants other versions of what Daguerre has too."""
    make = [sys.executable, "-m", "venv", "--clear", str(folder / "venv")]
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", "requirements.txt"]
    _install(name, _FOLDER / name / "requirements.txt", folder, [make, pip])
    return [str(python), str(_FOLDER / name / "serve.py")]


def _install(name: str, wanted: Path, folder: Path, commands: Sequence[Sequence[str]]) -> None:
    """Run the commands in the folder, with a copy of `wanted` there, unless they were run for the same before."""
    installed = folder / wanted.name
    if installed.exists() and installed.read_text() == wanted.read_text():
        return
    installed.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(wanted, installed)
    with ExitStack() as undone:
        undone.callback(installed.unlink)
        for argv in commands:
            done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise UnavailableError(f"{name} could not be installed: {done.stderr or done.stdout}")
        undone.pop_all()


@contextmanager
def running(
    argv: list[str], *, port: int, dsn: str, files: Path, key: str, log: Path, processes: int = 2, fsync: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """What `command` named, while it listens. What it prints goes to `log`, which begins anew."""
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
