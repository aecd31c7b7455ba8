"""Starting the comparators, for the benchmark and the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.processes.process import Program, start, stop, wait_ready

_FOLDER = Path(__file__).parent
_OLDEST_NODE = (20, 10)

NAMES = ("fastify_sharp", "fastapi_pillow", "bare_aiohttp")


class UnavailableError(Exception):
    """Node is missing or too old, or npm could not install; the message says so."""


def command(name: str, node_folder: Path) -> list[str]:
    """What starts a comparator. What Node needs is installed into `node_folder`, once."""
    if name != "fastify_sharp":
        return [sys.executable, "-m", f"bench.comparators.{name}"]
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise UnavailableError("fastify_sharp needs Node with npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(map(int, version[1:].split(".")[:2])) < _OLDEST_NODE:
        raise UnavailableError(f"fastify_sharp needs Node 20.10 or newer, and this is {version}")
    _install(_FOLDER / name / "package.json", node_folder)
    shutil.copy(_FOLDER / name / "server.js", node_folder)  # Node looks for modules beside the script
    return [node, str(node_folder / "server.js")]


def _install(package: Path, folder: Path) -> None:
    installed = folder / package.name
    if installed.exists() and installed.read_text() == package.read_text():
        return
    installed.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(package, installed)
    npm = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"]
    done = subprocess.run(npm, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        installed.unlink()
        raise UnavailableError(f"npm could not install fastify_sharp: {done.stderr}")


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
