"""Responds to GET from memory, without routing and middleware, which would be half of the cost.

It handles only the most frequent requests of pages: GET for a whole file, over a connection that stays open. All
others, e.g. one with a Range, go to the application, which finds the same file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time
from multidict import CIMultiDict

from service.http.file_sending import CacheControl, StoredFile
from service.telemetry.metrics import metrics
from service.telemetry.requests import choose_request_id, log_request

# Headers of requests that only the application can handle.
_SPECIAL_HEADERS = ("Range", "If-None-Match", "If-Modified-Since", "Expect")


class CachedFile(Protocol):
    """A file in memory with the headers of its response. The first response fills `head`, and later ones reuse it."""

    head: bytes

    @property
    def stored(self) -> StoredFile: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def caching(self) -> CacheControl: ...


class FastPath:
    """Responds to GET under `prefix`.

    `find` returns the file of a request, if it is in memory and has the same headers for every such request. `routes`
    are the route templates for the metrics: of a path with one segment below the prefix, and of one with two. Every
    response has `common_headers` as well.
    """

    def __init__(
        self,
        prefix: str,
        routes: tuple[str, str],
        find: Callable[[web.BaseRequest], CachedFile | None],
        common_headers: Mapping[str, str],
    ) -> None:
        self.prefix = prefix
        self._common_headers = common_headers
        self._find = find
        self._tallies = [metrics.requests.tally("GET", route, 200, from_memory=True) for route in routes]

    def respond(self, request: web.BaseRequest) -> bytes | None:
        """Returns the whole response to a request under `prefix`, counted and logged, or None if the application has to
        handle it.
        """
        if request.method != "GET" or not _is_plain(request):
            return None
        started_at = time.perf_counter()
        file = self._find(request)
        if file is None or (body := file.stored.data) is None:
            return None
        request_id = choose_request_id(request.headers.get("X-Request-Id"))
        head = file.head or _write_head(file, self._common_headers)
        seconds = time.perf_counter() - started_at
        self._tallies["/" in request.path.removeprefix(self.prefix)].add(seconds)
        log_request(request_id, "GET", request.path, 200, seconds)
        tail = f"Date: {rfc822_formatted_time()}\r\nX-Request-Id: {request_id}\r\n\r\n".encode("ascii")
        return b"".join((head, tail, body))


def _is_plain(request: web.BaseRequest) -> bool:
    headers = request.headers
    return (
        request.version == HttpVersion11
        and request.keep_alive
        and request.content.is_eof()
        and not any(name in headers for name in _SPECIAL_HEADERS)
    )


def _write_head(file: CachedFile, common_headers: Mapping[str, str]) -> bytes:
    headers: CIMultiDict[str] = CIMultiDict(file.headers)
    headers["Cache-Control"] = file.caching.header(time.time())
    headers["Content-Length"] = str(file.stored.size)
    headers["Server"] = "Daguerre"
    headers.update(common_headers)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    file.head = f"HTTP/1.1 200 OK\r\n{lines}".encode()
    return file.head
