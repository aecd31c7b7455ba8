"""The log file of `daguerre up`, which is also shown on the terminal.

The processes append to the file themselves, and `up` copies new lines to the terminal. So no process has to wait if the
terminal is paused or `up` is suspended with Ctrl-Z.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from service.launcher.process import append_to, trim_log
from service.telemetry.console import ConsoleRenderer

_POLL_INTERVAL_S = 0.1
_JOIN_TIMEOUT_S = 2
_READ_BYTES = 1 << 18
_MAX_LINE_BYTES = 1 << 20


class LogFile:
    """A context manager that copies new lines to the descriptor `terminal`.

    `as_json` is the format of `up`'s own lines. The supervisor bounds the file with `trim_log`.
    """

    def __init__(self, path: Path, terminal: int, *, as_json: bool) -> None:
        self.path = path
        self._terminal: int | None = terminal
        self._as_json = as_json
        self._render = ConsoleRenderer(colours=False)
        self._position = 0
        self._rest = b""
        self._shown: set[bytes] = set()  # lines of `up` itself, which are on the terminal already
        self._showing = threading.Lock()
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="log file", daemon=True)

    def __enter__(self) -> Self:
        trim_log(self.path)
        with append_to(self.path) as file:
            self._position = file.seek(0, os.SEEK_END)
        self._follower.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._follower.join(_JOIN_TIMEOUT_S)  # a paused terminal would block it forever

    def write(self, event: str, text: str) -> None:
        """Appends a line of `up` itself, which the caller prints on the terminal. Ignores a full disk."""
        fields = {"timestamp": datetime.now(UTC), "level": "warning", "event": event, "what": text, "part": "up"}
        fields["pid"] = os.getpid()
        if self._as_json:
            line = json.dumps(fields | {"timestamp": f"{fields['timestamp']:%Y-%m-%dT%H:%M:%S.%fZ}"})
        else:
            line = self._render(None, "", fields)
        self._shown |= set(line.encode().split(b"\n"))
        with suppress(OSError), append_to(self.path) as file:
            file.write(f"{line}\n".encode())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Holds new lines back until the block ends."""
        with self._showing:
            yield

    def _follow(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(_POLL_INTERVAL_S)
            with self._showing, suppress(OSError), self.path.open("rb") as file:
                self._show_new(file)

    def _show_new(self, file: BinaryIO) -> None:
        if file.seek(0, os.SEEK_END) < self._position:  # it was trimmed
            self._position, self._rest = 0, b""
        file.seek(self._position)
        while piece := file.read(_READ_BYTES):
            self._position += len(piece)
            *lines, self._rest = (self._rest + piece).split(b"\n")
            self._rest = self._rest[-_MAX_LINE_BYTES:]
            self._show([line for line in lines if line not in self._shown])
            self._shown.difference_update(lines)

    def _show(self, lines: list[bytes]) -> None:
        if self._terminal is None or not lines:
            return
        text = memoryview(b"".join(line + b"\n" for line in lines))
        try:
            while text:
                text = text[os.write(self._terminal, text) :]
        except OSError:  # the terminal has gone; the file goes on
            self._terminal = None
