"""`daguerre serve`: the API processes of one machine, supervised."""

from __future__ import annotations

import os
import signal
import socket

import structlog

from service.config.public_url import warn_if_misleading
from service.config.settings import Settings
from service.launcher import StartError, listening
from service.launcher.programs import api_programs
from service.launcher.supervisor import Stopped, Supervisor
from service.telemetry import logs

log = structlog.get_logger("service.serve")

_START_TIMEOUT_S = 60


def serve(settings: Settings, listener: socket.socket) -> None:
    """Keep them running until SIGTERM, SIGINT or SIGHUP; then requests under way are finished.

    Raises StartError or SettingsError if they cannot start.
    """
    logs.configure(settings, part="serve", pid=os.getpid())
    warn_if_misleading(settings, listener)
    with Supervisor(report=lambda what: log.warning("serve.replaced", what=what)) as supervisor:
        try:
            # An API process whose parent was killed still finishes its requests.
            supervisor.start(api_programs(listener, settings, os.environ, death_signal=signal.SIGTERM))
            if not supervisor.wait_until(lambda: listening.get(listener, "/healthz").status == 200, _START_TIMEOUT_S):
                raise StartError(f"The API does not answer after {_START_TIMEOUT_S} s")
            supervisor.run()
        except Stopped:
            pass
        listener.close()  # else clients would go on to connect to a socket that nobody accepts on
