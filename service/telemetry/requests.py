"""The request log, and metrics by route and status."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
from prometheus_client import Counter, Histogram

from service.errors import CATALOGUE
from service.ids import KEY_PATTERN
from service.telemetry.request_lines import RenderLine, RequestLine

UNMATCHED = "unmatched"
CLIENT_DISCONNECTED = 499  # nginx's status for a client that disconnected before the end of the response
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FLUSH_INTERVAL_S = 0.2
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"
_LEVEL_NAMES = {level: name.lower() for name, level in logging.getLevelNamesMapping().items()}


class RequestLog:
    """Writes the line of each request. It bypasses structlog, which would cost a large part of a GET.

    `render` returns the text of a usual line, or None, and `write_text` writes it. `write_fields` renders and writes
    any line. Until it is configured, lines go through structlog.
    """

    def __init__(self) -> None:
        self.configure(render=None, write_text=None, write_fields=None, level=logging.INFO, process={})

    def configure(
        self,
        *,
        render: RenderLine | None,
        write_text: Callable[[str], None] | None,
        write_fields: Callable[[dict[str, Any]], None] | None,
        level: int,
        process: Mapping[str, object],
    ) -> None:
        self._render = render if level <= logging.INFO else None
        self._write_text = write_text
        self._write_fields = write_fields
        self._level = level
        self._process = process
        self._structured = structlog.get_logger("service.api")

    def write_usual(self, line: RequestLine) -> bool:
        """Writes a line of the level info without an error, and returns whether that was possible."""
        if self._render is None or self._write_text is None or (text := self._render(line)) is None:
            return False
        self._write_text(text)
        return True

    def write(self, level: int, fields: dict[str, object]) -> None:
        if self._write_fields is None:
            self._structured.log(level, "request", **fields)
        elif level >= self._level:
            now = datetime.now(UTC)
            self._write_fields(
                {**self._process, **fields, "event": "request", "level": _LEVEL_NAMES[level], "timestamp": now}
            )


request_log = RequestLog()


# An API key that was sent as the request's id by mistake is not accepted.
_ACCEPTED_ID = re.compile(rf"(?!{KEY_PATTERN.pattern}$)[0-9A-Za-z._-]{{1,64}}")


def choose_request_id(value: str | None) -> str:
    """Returns the client's X-Request-Id if it is valid, else a new id."""
    return value if value and _ACCEPTED_ID.fullmatch(value) else f"{random.getrandbits(64):016x}"


def redact_keys(path: str) -> str:
    """Returns the path without API keys. The query string, where a key belongs, is never logged."""
    return KEY_PATTERN.sub("[key]", path)


def log_request(
    request_id: str,
    method: str,
    path: str,
    status: int,
    seconds: float,
    *,
    code: str | None = None,
    cause: BaseException | None = None,
) -> None:
    """Writes the line. `code` is that of the error that the client got, and `cause` the exception behind it."""
    is_usual = status < 500 and code is None and cause is None
    if is_usual and request_log.write_usual(RequestLine(request_id, method, path, status, seconds)):
        return
    fields: dict[str, object] = {
        "request_id": request_id,
        "method": method,
        "path": redact_keys(path),
        "status": status,
        "ms": round(seconds * 1000, 1),
    }
    if code is not None:
        fields["code"] = code
    if cause is not None:
        fields["cause"] = repr(cause)
    request_log.write(logging.WARNING if status >= 500 else logging.INFO, fields)


class RequestMetrics:
    """Counts requests. A route is a template such as `/v1/images/{id}`, or UNMATCHED.

    Counts are collected and added to the metrics in batches, by `run` and before a scrape, because the library's own
    calls would be a tenth of the time of a GET.
    """

    def __init__(
        self, requests: Counter, seconds: Histogram, errors: Mapping[str, Counter], pictures_from_memory: Counter
    ) -> None:
        self._requests = requests
        self._seconds = seconds
        self._errors = errors
        self._pictures_from_memory = pictures_from_memory
        self._tallies: dict[tuple[str, str, int, bool], RequestTally] = {}

    async def run(self) -> None:
        """Adds the counts to the metrics at intervals, until cancelled."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_INTERVAL_S)
                self.flush()
        finally:
            self.flush()

    def flush(self) -> None:
        for tally in self._tallies.values():
            tally.flush()

    def count_response(self, method: str, route: str, status: int, code: str | None, seconds: float) -> None:
        self.tally(method, route, status).add(seconds)
        if code is not None:
            self._errors[code].inc()

    def count_disconnect(self, method: str, route: str) -> None:
        """Counts a client that disconnected before the end of the response."""
        self.tally(method, route, CLIENT_DISCONNECTED).add_untimed()

    def count_refusal(self, method: str, code: str) -> None:
        """Counts a request that was refused before it had a route."""
        self.tally(method, UNMATCHED, CATALOGUE[code][0]).add_untimed()
        self._errors[code].inc()

    def tally(self, method: str, route: str, status: int, *, from_memory: bool = False) -> RequestTally:
        """Returns the counter of these responses; `from_memory` counts pictures that were delivered from memory."""
        key = (method, route, status, from_memory)
        tally = self._tallies.get(key)
        return self._make_tally(*key) if tally is None else tally

    def _make_tally(self, method: str, route: str, status: int, from_memory: bool) -> RequestTally:
        if method not in _METHODS and method != _OTHER:
            return self.tally(_OTHER, route, status)
        responses = [self._requests.labels(method, route, str(status))]
        if from_memory:
            responses.append(self._pictures_from_memory)
        tally = RequestTally(responses, self._seconds.labels(route))
        self._tallies[method, route, status, from_memory] = tally
        return tally


class RequestTally:
    """The responses of one kind that are not in the metrics yet.

    The library has no public way to add several observations to a histogram, so `flush` uses two private names of it.
    """

    def __init__(self, responses: Sequence[Counter], seconds: Histogram) -> None:
        self._responses = responses
        self._seconds = seconds
        self._clear()

    def _clear(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._buckets = [0] * (len(BUCKETS_S) + 1)

    def add(self, seconds: float) -> None:
        self._count += 1
        self._sum += seconds
        self._buckets[bisect_left(BUCKETS_S, seconds)] += 1

    def add_untimed(self) -> None:
        """Counts a response that has no place in the histogram."""
        self._count += 1

    def flush(self) -> None:
        if not self._count:
            return
        for counter in self._responses:
            counter.inc(self._count)
        if self._sum:
            self._seconds._sum.inc(self._sum)
        for bucket, count in enumerate(self._buckets):
            if count:
                self._seconds._buckets[bucket].inc(count)
        self._clear()
