"""Starts the systems under test: Daguerre, by `./run up`, and the comparators."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.comparators import start as start_comparator
from bench.wrk import BenchError
from service.launcher.embedded.postgres import Postgres
from service.launcher.process import Program, start, stop

_ROOT = Path(__file__).parents[1]
INSTALL_FOLDER = _ROOT / ".venv" / "bench"
_START_TIMEOUT_S = 60

DAGUERRE = "Daguerre"
DAGUERRE_S3 = "Daguerre on S3"
FASTIFY = "fastify + sharp"
FASTAPI = "FastAPI + Pillow"
BARE = "bare aiohttp"
SHARP = "sharp"
THUMBOR = "thumbor"
_MODULES = {
    FASTIFY: "fastify_sharp",
    FASTAPI: "fastapi_pillow",
    BARE: "bare_aiohttp",
    SHARP: "bare_sharp",
    THUMBOR: "thumbor",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A system that listens on a port of 127.0.0.1. `roots` are the processes whose descendants are measured."""

    name: str
    port: int
    key: str
    roots: tuple[int, ...]
    folder: Path


@contextlib.contextmanager
def daguerre(
    folder: Path, *, workers: int = 1, env: Mapping[str, str] | None = None, on_s3: bool = False
) -> Iterator[Target]:
    """Runs `./run up` in its own folder, with the settings in `env`. Raises BenchError if it does not start."""
    port, data = _free_port(), folder / ("daguerre-s3" if on_s3 else "daguerre")
    argv = [sys.executable, "-m", "service.cli", "up", "--port", str(port), "--data", str(data), "--workers", workers]
    argv += ["--storage", "s3"] if on_s3 else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAGUERRE_")}
    with _running(DAGUERRE, [str(argument) for argument in argv], {**environment, **(env or {})}, folder) as process:
        _wait_ready(process, port, folder)
        key = (data / "first-key").read_text().strip()
        yield Target(DAGUERRE_S3 if on_s3 else DAGUERRE, port, key, (process.pid,), data)


@contextlib.contextmanager
def comparator(
    name: str, folder: Path, postgres: Postgres | None, *, processes: int = 2, fsync: bool = False
) -> Iterator[Target]:
    """Runs one of bench/comparators. `postgres` has the same settings as Daguerre's.

    Raises BenchError if the comparator cannot be installed.
    """
    port, key, files = _free_port(), secrets.token_hex(20), folder / f"{_MODULES[name]}-{fsync:d}"
    files.mkdir(parents=True)
    try:
        argv = start_comparator.command(_MODULES[name], INSTALL_FOLDER)
    except start_comparator.UnavailableError as error:
        raise BenchError(str(error)) from None
    with start_comparator.running(
        argv,
        port=port,
        dsn=postgres.dsn if postgres else "",
        files=files,
        key=key,
        log=files.with_suffix(".log"),
        processes=processes,
        fsync=fsync,
    ) as process:
        title = f"{name}, fsync" if fsync else name
        servers = [postgres.process.pid] if postgres and postgres.process else []
        yield Target(title, port, key, (process.pid, *servers), files)


@contextlib.contextmanager
def _running(name: str, argv: list[str], env: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir(parents=True, exist_ok=True)
    program = Program(name=name, argv=argv, env={**env, "PYTHONPATH": str(_ROOT)}, log=folder / f"{name}.log")
    process = start(program)
    try:
        yield process
    finally:
        stop(program, process)


def _wait_ready(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return
        time.sleep(0.1)
    raise BenchError(f"Daguerre did not start: {(folder / f'{DAGUERRE}.log').read_text()[-500:]}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
