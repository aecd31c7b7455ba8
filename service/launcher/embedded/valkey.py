"""An embedded Valkey, which is reached through a socket in a private folder."""

from __future__ import annotations

import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from service.launcher.embedded import binaries
from service.launcher.embedded.server import Server, end_server, is_server_of, read_pid
from service.launcher.process import Program

_SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "loglevel": "warning",
}


class Valkey(Server):
    """One server. `folder` is its own and holds the data; also the socket and the log unless their paths are given."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, str] | None = None,
        socket_path: Path | None = None,
        log: Path | None = None,
    ) -> None:
        self.folder = folder
        self.socket_path = socket_path or folder / "valkey.sock"
        self.log = log or folder / "valkey.log"
        self.settings = {**_SETTINGS, **(settings or {})}

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}?db=0"

    def program(self) -> Program:
        """Returns the server as a program to supervise. Creates its folder."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = {
            **self.settings,
            "unixsocket": str(self.socket_path),
            "dir": str(self.folder),
            "pidfile": str(self._pid_file),
        }
        return Program(
            name="Valkey",
            argv=[
                binaries.valkey_server(),
                *(word for name, value in settings.items() for word in (f"--{name}", value)),
            ],
            log=self.log,
            grace_s=15,
            prepare=self._end_stale,
            ready=self._is_ready,
        )

    @property
    def _pid_file(self) -> Path:
        return self.folder / "valkey.pid"

    def _end_stale(self) -> None:
        pid = read_pid(self._pid_file)
        if pid is not None and is_server_of(pid, self.socket_path):
            end_server(pid, self.socket_path, [signal.SIGTERM, signal.SIGKILL])
        self.socket_path.unlink(missing_ok=True)

    def _is_ready(self, _pid: int) -> bool:
        """Returns whether it answers +PONG; while it loads its data it answers -LOADING."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False
