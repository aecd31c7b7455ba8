"""The log lines of usual requests. There is one for each request, so their text is put together directly.

They are the lines that `ConsoleRenderer` and the JSON renderer write, in a fraction of the time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import NamedTuple

from service.ids import KEY_LENGTH, KEY_PATTERN
from service.telemetry.console import BOLD, DIM, MAX_COLUMNS, paint

# Needs neither quotes nor escapes.
_PLAIN_TARGET = re.compile(r"[A-Z]+ [!#-&(-<>-\[\]-~]+")


class RequestLine(NamedTuple):
    request_id: str
    method: str
    path: str
    status: int
    seconds: float


# Returns the line of a request with a plain path, or None.
RenderLine = Callable[[RequestLine], str | None]


class _Clock:
    """Formats the present time in UTC. The part down to the second is cached."""

    def __init__(self, separator: str, digits: int) -> None:
        self._format = f"%Y-%m-%d{separator}%H:%M:%S"
        self._digits, self._units = digits, 10**digits
        self._second = 0
        self._prefix = ""

    def read(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._prefix = second, time.strftime(self._format, time.gmtime(second))
        return f"{self._prefix}.{int((now - second) * self._units):0{self._digits}}Z"


def make_console_renderer(*, colours: bool) -> RenderLine:
    clock = _Clock(" ", 3)
    head = f"{paint('%s', DIM)} {paint('request', BOLD)} %s" if colours else "%s request %s"
    max_length = MAX_COLUMNS - len("2026-01-01 00:00:00.000Z request ")

    def render(line: RequestLine) -> str | None:
        request_id, method, path, status, seconds = line
        target = f"{method} {path}"
        words = f"{target} status={status} ms={round(seconds * 1000, 1)} id={request_id}"
        if len(words) > max_length or not _is_plain(target):
            return None
        return head % (clock.read(), words)

    return render


def make_json_renderer(process: str) -> RenderLine:
    """`process` is a JSON object, whose members begin each line."""
    clock, head = _Clock("T", 6), process.removesuffix("}")

    def render(line: RequestLine) -> str | None:
        request_id, method, path, status, seconds = line
        if not _is_plain(f"{method} {path}"):
            return None
        return (
            f'{head},"request_id":"{request_id}","method":"{method}","path":"{path}","status":{status},'
            f'"ms":{round(seconds * 1000, 1)},"event":"request","level":"info","timestamp":"{clock.read()}"}}'
        )

    return render


def _is_plain(target: str) -> bool:
    """Returns whether the target needs neither quotes nor escapes, and contains no API key."""
    return _PLAIN_TARGET.fullmatch(target) is not None and (
        len(target) < KEY_LENGTH or KEY_PATTERN.search(target) is None
    )
