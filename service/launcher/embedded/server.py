"""What the two servers have in common: started, waited for and ended here, and again."""

from __future__ import annotations

import abc
import subprocess
from types import TracebackType
from typing import Self

from service.launcher.process import Program, start, stop
from service.launcher.reasons import mark_log, wait_ready


class Server(abc.ABC):
    """Use it as a context manager, or call `start` and `stop` as often as you like; the data are kept."""

    process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def program(self) -> Program:
        """The server as a program to supervise; makes the folders and data that it needs."""

    def start(self) -> None:
        """Returns when connections are accepted."""
        program = self.program()
        log_position = mark_log(program)
        self.process = start(program)
        try:
            wait_ready(program, self.process, log_position)
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
