"""`daguerre serve`: the API processes of one machine behind one socket; and Daguerre's own programs for `up`."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import structlog

from service.config.public_url import warn_if_misleading
from service.config.settings import Settings
from service.launcher import StartError, listening
from service.launcher.process import Program
from service.launcher.supervisor import Stopped, Supervisor
from service.shared_memory import connection_counts, in_flight_bytes
from service.telemetry import logs

log = structlog.get_logger("service.serve")

_START_TIMEOUT_S = 60


def serve(settings: Settings, listener: socket.socket) -> None:
    """Keeps the API processes running until SIGTERM, SIGINT or SIGHUP; then they finish the requests in flight.

    Raises StartError or SettingsError if they cannot start.
    """
    logs.configure(settings, part="serve", pid=os.getpid())
    warn_if_misleading(settings, listener)
    with Supervisor(report=lambda what: log.warning("program.restarted", what=what)) as supervisor:
        try:
            # SIGTERM: an API process whose parent was killed still finishes its requests.
            supervisor.start(api_programs(listener, settings, os.environ, death_signal=signal.SIGTERM))
            if not supervisor.wait_until(lambda: listening.get(listener, "/healthz").status == 200, _START_TIMEOUT_S):
                raise StartError(f"The API does not respond after {_START_TIMEOUT_S} s")
            supervisor.run()
        except Stopped:
            pass
        listener.close()  # otherwise clients could still connect to a socket that no process accepts on


def api_programs(
    listener: socket.socket,
    settings: Settings,
    env: Mapping[str, str],
    *,
    death_signal: signal.Signals,
    log: Path | None = None,
) -> list[Program]:
    """Returns `settings.api_processes` programs, which share the `log`.

    They receive `death_signal` if this process dies.
    """
    host, port = listener.getsockname()[:2]
    processes = settings.api_processes
    shared = listener.fileno(), connection_counts.create(processes), in_flight_bytes.create(processes)
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
        # -P: modules in the current directory are not imported
        argv=[sys.executable, "-P", "-m", "service.cli", *words],
        env=env,
        pass_fds=descriptors,
        log=log,
        log_is_shared=True,
        grace_s=settings.drain_s + 5,
        death_signal=death_signal,
    )
