"""The base class of the two embedded servers: start, stop, and cleanup of a server that outlived its parent."""

from __future__ import annotations

import abc
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from service.launcher.exit_reasons import log_position, wait_ready
from service.launcher.process import Program, start, stop


class Server(abc.ABC):
    """A context manager that runs the server. `start` and `stop` may be called any number of times; data is kept."""

    process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def program(self) -> Program:
        """Returns the server as a program to supervise. Creates the folders and data that it needs."""

    def start(self) -> None:
        """Returns when the server accepts connections. Raises StartError if it does not start."""
        program = self.program()
        position = log_position(program)
        self.process = start(program)
        try:
            wait_ready(program, self.process, position)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self.process is not None:
            stop(self.program(), self.process)
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()


def read_pid(path: Path) -> int | None:
    """Returns the number in the first line of a pid file, or None if there is none."""
    try:
        return int(path.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_server_of(pid: int, folder: Path) -> bool:
    """Returns whether `pid` is a server of `folder`, not a zombie or another process that got the number since."""
    return str(folder) in _command_line(pid)


def end_server(pid: int, folder: Path, signals: Sequence[signal.Signals], grace_s: float = 15) -> None:
    """Sends the signals in turn, with `grace_s` after each, until the server has ended."""
    for number in signals:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline:
            if not is_server_of(pid, folder):
                return
            time.sleep(0.01)


def _command_line(pid: int) -> str:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return ""
    listing = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S607
    return listing.stdout
