"""The programs of Daguerre itself: the API processes behind one socket, and the workers."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from service.embedded import EmbeddedError, listening
from service.embedded.process import Program
from service.embedded.running import Running
from service.embedded.supervisor import Supervisor
from service.settings import Settings

_API_PROCESSES = 2
_READY_TIMEOUT_S = 60
_TELL_EVERY_S = 5


def worker_programs(count: int, settings: Settings, data: Path, found: Running) -> list[Program]:
    env = _environment(data, found)
    return [_program(f"Worker {number}", ["worker"], env, settings) for number in range(1, count + 1)]


def api_programs(listener: socket.socket, settings: Settings, data: Path, found: Running) -> list[Program]:
    host, port = listener.getsockname()[:2]
    env = _environment(data, found) | {"DAGUERRE_HOST": str(host), "DAGUERRE_PORT": str(port)}
    words = ["serve", "--fd", str(listener.fileno())]
    return [
        _program(f"API {number}", words, env, settings, listener.fileno()) for number in range(1, _API_PROCESSES + 1)
    ]


def wait_ready(supervisor: Supervisor, listener: socket.socket, tell: Callable[[str], None]) -> None:
    """Until the API says that all of it works: database, queue, storage and a live worker."""
    said = ""

    def is_ready() -> bool:
        nonlocal said
        answer = listening.get(listener, "/readyz")
        said = f"/readyz answers {answer.status} {answer.body}" if answer.status else "/readyz does not answer"
        return answer.status == 200

    for waited_s in range(0, _READY_TIMEOUT_S, _TELL_EVERY_S):
        if waited_s:
            tell(f"Not ready yet: {said}")
        if supervisor.wait_until(is_ready, _TELL_EVERY_S, every_s=0.05):
            return
    raise EmbeddedError(f"Daguerre is not ready after {_READY_TIMEOUT_S} s: {said}")


def database_connections(workers: int, settings: Settings) -> int:
    """What all pools may take together, and a few for the operator."""
    return (_API_PROCESSES + workers) * settings.database_connections + 20


def _environment(data: Path, found: Running) -> dict[str, str]:
    """What a process of Daguerre reads, on top of the settings that `up` was given itself."""
    return {
        **os.environ,
        "DAGUERRE_DATA": str(data),
        "DAGUERRE_DATABASE_URL": found.database_url,
        "DAGUERRE_REDIS_URL": found.redis_url,
        "DAGUERRE_PUBLIC_URL": found.public_url,
        "DAGUERRE_METRICS_PORT": "0",  # workers on one machine cannot share a port, and the API shows theirs
    }


def _program(name: str, words: list[str], env: dict[str, str], settings: Settings, *descriptors: int) -> Program:
    return Program(
        name=name,
        # -P: what lies in the folder where the user happens to stand is not imported
        argv=[sys.executable, "-P", "-m", "service.cli", *words],
        env=env,
        pass_fds=descriptors,
        grace_s=settings.drain_s + 5,
        # The database and the queue go in the same moment, so there is nothing left that it could finish.
        death_signal=signal.SIGKILL,
    )
