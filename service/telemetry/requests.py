"""The request log, and metrics by route and status."""

from __future__ import annotations

import logging
import random
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
from prometheus_client import Counter, Histogram

from service.errors import CATALOGUE
from service.ids import KEY_PATTERN

UNMATCHED = "unmatched"
CLIENT_DISCONNECTED = 499  # nginx's status for a client that disconnected before the end of the response
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"
_LEVEL_NAMES = {level: name.lower() for name, level in logging.getLevelNamesMapping().items()}


class RequestLog:
    """Writes the line of each request. It bypasses structlog, which would cost a large part of a GET.

    `write_line` renders and writes a line. Until it is configured, lines go through structlog.
    """

    def __init__(self) -> None:
        self.configure(write_line=None, level=logging.INFO, process={})

    def configure(
        self, *, write_line: Callable[[dict[str, Any]], None] | None, level: int, process: Mapping[str, object]
    ) -> None:
        self._write_line = write_line
        self._level = level
        self._process = process
        self._structured = structlog.get_logger("service.api")

    def write(self, level: int, fields: dict[str, object]) -> None:
        if self._write_line is None:
            self._structured.log(level, "request", **fields)
        elif level >= self._level:
            now = datetime.now(UTC)
            self._write_line(
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

    It caches the counter of each combination of labels, because the library's `labels` takes longer than counting.
    """

    def __init__(
        self, requests: Counter, seconds: Histogram, errors: Mapping[str, Counter], pictures_from_memory: Counter
    ) -> None:
        self._requests = requests
        self._seconds = seconds
        self._errors = errors
        self._pictures_from_memory = pictures_from_memory
        self._by_labels: dict[tuple[str, str, int], Counter] = {}
        self._by_route: dict[str, Histogram] = {}

    def count_response(self, method: str, route: str, status: int, code: str | None, seconds: float) -> None:
        self._count(method, route, status)
        timed = self._by_route.get(route)
        if timed is None:
            timed = self._by_route[route] = self._seconds.labels(route)
        timed.observe(seconds)
        if code is not None:
            self._errors[code].inc()

    def count_disconnect(self, method: str, route: str) -> None:
        """Counts a client that disconnected before the end of the response."""
        self._count(method, route, CLIENT_DISCONNECTED)

    def count_refusal(self, method: str, code: str) -> None:
        """Counts a request that was refused before it had a route."""
        self._count(method, UNMATCHED, CATALOGUE[code][0])
        self._errors[code].inc()

    def tally(self, method: str, route: str, status: int) -> PictureTally:
        """Returns a counter of pictures delivered from memory."""
        responses, seconds = self._requests.labels(method, route, str(status)), self._seconds.labels(route)
        return PictureTally(responses, seconds, self._pictures_from_memory)

    def _count(self, method: str, route: str, status: int) -> None:
        key = (method if method in _METHODS else _OTHER, route, status)
        counter = self._by_labels.get(key)
        if counter is None:
            counter = self._by_labels[key] = self._requests.labels(*key)
        counter.inc()


class PictureTally:
    """Collects responses and adds them to the metrics in batches.

    The library's own calls would be a noticeable part of the time of a picture from memory. It has no public way to add
    several observations to a histogram, so `put` uses two private names of it.
    """

    def __init__(self, responses: Counter, seconds: Histogram, pictures: Counter) -> None:
        self._responses = responses
        self._seconds = seconds
        self._pictures = pictures
        self._clear()

    def _clear(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._buckets = [0] * (len(BUCKETS_S) + 1)

    def add(self, seconds: float) -> None:
        self._count += 1
        self._sum += seconds
        self._buckets[bisect_left(BUCKETS_S, seconds)] += 1

    def flush(self) -> None:
        if not self._count:
            return
        self._responses.inc(self._count)
        self._pictures.inc(self._count)
        self._seconds._sum.inc(self._sum)
        for bucket, count in enumerate(self._buckets):
            if count:
                self._seconds._buckets[bucket].inc(count)
        self._clear()
