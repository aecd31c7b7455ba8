"""The log file of `daguerre up`, and what is shown of it.

The processes write to the file themselves, and `up` shows what they have written: a terminal that is paused, or an `up`
that stands still after Ctrl-Z, makes none of them wait.
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

_POLL_S = 0.1
_JOIN_S = 2
_READ_BYTES = 1 << 18
_MAX_LINE_BYTES = 1 << 20


class Journal:
    """Use it as a context manager. `screen` is the descriptor that lines go to, `as_json` is how `up` writes its own.

    The file is bounded by `trim_log`, which the supervisor calls.
    """

    def __init__(self, path: Path, screen: int, *, as_json: bool) -> None:
        self.path = path
        self._screen: int | None = screen
        self._as_json = as_json
        self._render = ConsoleRenderer(colours=False)
        self._position = 0
        self._rest = b""
        self._shown: set[bytes] = set()  # lines of `up` itself, which are on the screen already
        self._showing = threading.Lock()
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="journal", daemon=True)

    def __enter__(self) -> Self:
        trim_log(self.path)
        with append_to(self.path) as file:
            self._position = file.seek(0, os.SEEK_END)
        self._follower.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._follower.join(_JOIN_S)  # a paused terminal would keep it for ever

    def write(self, event: str, text: str) -> None:
        """Adds a line of `up` itself, which the caller shows. A full disk is no reason to end."""
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
        """Lines that come within the block are shown after it."""
        with self._showing:
            yield

    def _follow(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ended.wait(_POLL_S)
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
        if self._screen is None or not lines:
            return
        text = memoryview(b"".join(line + b"\n" for line in lines))
        try:
            while text:
                text = text[os.write(self._screen, text) :]
        except OSError:  # the terminal is gone: the file goes on
            self._screen = None
