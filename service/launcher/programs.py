"""The programs of Daguerre itself: API processes behind one socket, and workers."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from service.config.settings import Settings
from service.launcher.process import Program
from service.shared_memory import arriving_bytes, connection_counts


def api_programs(
    listener: socket.socket,
    settings: Settings,
    env: Mapping[str, str],
    *,
    death_signal: signal.Signals,
    log: Path | None = None,
) -> list[Program]:
    """As many as the settings say. `death_signal` is what they are sent if this process dies; they share the `log`."""
    host, port = listener.getsockname()[:2]
    processes = settings.api_processes
    shared = listener.fileno(), connection_counts.create(processes), arriving_bytes.create(processes)
    env = {**env, "DAGUERRE_HOST": str(host), "DAGUERRE_PORT": str(port)}
    words = "serve --fd {} --shared {} {}".format(*shared).split()
    return [
        _program(f"API {number + 1}", [*words, str(number)], env, settings, *shared, death_signal=death_signal, log=log)
        for number in range(settings.api_processes)
    ]


def worker_programs(
    count: int, settings: Settings, env: Mapping[str, str], *, death_signal: signal.Signals, log: Path | None = None
) -> list[Program]:
    return [
        _program(f"Worker {number}", ["worker"], env, settings, death_signal=death_signal, log=log)
        for number in range(1, count + 1)
    ]


def _program(
    name: str,
    words: list[str],
    env: Mapping[str, str],
    settings: Settings,
    *descriptors: int,
    death_signal: signal.Signals,
    log: Path | None,
) -> Program:
    return Program(
        name=name,
        # -P: what lies in the folder where the user happens to stand is not imported
        argv=[sys.executable, "-P", "-m", "service.cli", *words],
        env=env,
        pass_fds=descriptors,
        log=log,
        log_is_shared=True,
        grace_s=settings.drain_s + 5,
        death_signal=death_signal,
    )
