"""The API and the workers beside the servers of `up`: their environment, and when all of it works."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from service.config.settings import Settings
from service.launcher import listening
from service.launcher.embedded import EmbeddedError
from service.launcher.embedded.running import Running
from service.launcher.supervisor import Supervisor

_READY_TIMEOUT_S = 60
_TELL_EVERY_S = 5


def environment(data: Path, found: Running, log_format: str) -> dict[str, str]:
    """What a process of Daguerre reads, on top of the settings that `up` was given itself."""
    return {
        **os.environ,
        "DAGUERRE_DATA": str(data),
        "DAGUERRE_DATABASE_URL": found.database_url,
        "DAGUERRE_REDIS_URL": found.redis_url,
        "DAGUERRE_PUBLIC_URL": found.public_url,
        "DAGUERRE_LOG_FORMAT": log_format,
        "DAGUERRE_METRICS_PORT": "0",  # workers on one machine cannot share a port, and the API shows theirs
    }


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
    return (settings.api_processes + workers) * settings.database_connections + 20
