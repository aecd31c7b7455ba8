"""The output of `daguerre up` on the terminal."""

from __future__ import annotations

import contextlib
import os
import textwrap
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TextIO

from service.telemetry.console import MAX_COLUMNS

_BOLD, _DIM, _GREEN, _YELLOW, _RED = "1", "2", "32", "33", "31"


class Terminal:
    """Prints plain lines. On a real terminal, steps appear when they start, and there are a few colours."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty()
        self._colours = self.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._signs = {"done": "✓", "failed": "✗", "started": "·", "note": "!"}
        try:
            "✓✗·".encode(stream.encoding or "ascii")
        except UnicodeEncodeError:
            self._signs = {"done": "+", "failed": "x", "started": "-", "note": "!"}
        self._started = time.monotonic()

    def title(self, text: str) -> None:
        self._write(f"{self._paint(text, _BOLD)}\n")

    @contextlib.contextmanager
    def step(self, text: str, *, has_notes: bool = False) -> Iterator[None]:
        """Prints one line with the seconds that the block took. `has_notes` if other lines may come in between."""
        started = time.monotonic()
        if self.is_terminal:
            self._write(f"  {self._paint(self._signs['started'], _DIM)} {text} " + ("\n" if has_notes else ""))
        try:
            yield
        except BaseException:
            self._finish(self._paint(self._signs["failed"], _RED), text, started)
            raise
        self._finish(self._paint(self._signs["done"], _GREEN), text, started)

    def note(self, text: str) -> None:
        """Prints an event with its time of day in UTC, as in the log."""
        now = f"{datetime.now(UTC):%H:%M:%S.%f}"[:-3] + "Z"
        width = MAX_COLUMNS - len(now) - 3
        first, *others = textwrap.wrap(text, width, break_on_hyphens=False) or [""]
        self._write(f"{now} {self._paint(self._signs['note'], _YELLOW)} {first}\n")
        self._write("".join(f"    {line}\n" for line in others))

    def ready(self, rows: list[tuple[str, str]], command: str, closing: str) -> None:
        """Prints the banner. The command is not indented, so that it can be copied."""
        elapsed = f"{time.monotonic() - self._started:.1f} s"
        self._write(f"\n{self._paint('Daguerre is ready', _BOLD)} {self._paint(f'after {elapsed}', _DIM)}\n\n")
        for name, value in rows:
            self._write(f"  {self._paint(f'{name:<10}', _DIM)}{value}\n")
        if command:
            self._write(f"\n  Try it, from any folder:\n\n{self._paint(command, _GREEN)}\n")
        self._write(f"\n{self._paint(closing, _DIM)}\n")

    def line(self, text: str) -> None:
        self._write(f"{text}\n")

    def _finish(self, sign: str, text: str, started: float) -> None:
        start = "\r" if self.is_terminal else ""
        elapsed = self._paint(f"{time.monotonic() - started:5.1f} s", _DIM)
        self._write(f"{start}  {sign} {text:<44}{elapsed}\n")

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text

    def _write(self, text: str) -> None:
        """Ignores a reader that has gone (`| head`, a closed terminal): the service goes on."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
