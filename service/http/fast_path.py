"""Pictures in memory, answered before routes and middleware, which would be half of what that costs.

Only what is most of a page's requests: GET for all of a picture, over a connection that stays open. Whatever asks for
more goes the way of all requests, and finds the same.
"""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time
from multidict import CIMultiDict

from service.delivery.context import DeliveryContext
from service.delivery.memory_cache import ServedPicture
from service.errors import ServiceError
from service.http import cors
from service.http.client_addresses import client_address
from service.http.request_ids import choose_request_id, without_keys
from service.renditions.formats import accepted_formats
from service.telemetry.logs import requests
from service.telemetry.metrics import metrics

PREFIX = "/i/"
_ROUTES = ("/i/{id}", "/i/{id}/{name}")
_COUNTED_S = 0.2
_SPECIAL = ("Range", "If-None-Match", "If-Modified-Since", "Expect")


class QuickAnswers:
    def __init__(self, delivery: DeliveryContext) -> None:
        self._delivery = delivery
        self._tallies = [metrics.tally("GET", route, 200) for route in _ROUTES]

    async def run(self) -> None:
        """Put what was counted into the metrics, until cancelled."""
        try:
            while True:
                await asyncio.sleep(_COUNTED_S)
                self._put()
        finally:
            self._put()

    def _put(self) -> None:
        for tally in self._tallies:
            tally.put()

    def find(self, request: web.BaseRequest) -> bytes | None:
        """The whole answer, counted and logged; None for a request that is not for this."""
        path = request.raw_path
        if not path.startswith(PREFIX) or request.method != "GET" or not _is_plain(request):
            return None
        began = time.perf_counter()
        headers, delivery = request.headers, self._delivery
        picture = delivery.memory_cache.get((path, accepted_formats(headers.get("Accept", ""))))
        if picture is None or picture.stored.data is None or picture.caching.expires is not None:
            return None
        try:
            delivery.not_found_limiter.check(client_address(request, delivery.trusted_proxies))
        except ServiceError:
            return None
        request_id = choose_request_id(headers.get("X-Request-Id"))
        head = picture.head or _write_head(picture)
        seconds = time.perf_counter() - began
        self._tallies["/" in request.path.removeprefix(PREFIX)].add(seconds)
        requests.write(
            logging.INFO,
            {
                "request_id": request_id,
                "method": "GET",
                "path": without_keys(request.path),
                "status": 200,
                "ms": round(seconds * 1000, 1),
            },
        )
        last = f"Date: {rfc822_formatted_time()}\r\nX-Request-Id: {request_id}\r\n\r\n".encode("ascii")
        return b"".join((head, last, picture.stored.data))


def _is_plain(request: web.BaseRequest) -> bool:
    headers = request.headers
    return (
        request.version == HttpVersion11
        and request.keep_alive
        and request.content.is_eof()
        and not any(name in headers for name in _SPECIAL)
    )


def _write_head(picture: ServedPicture) -> bytes:
    headers: CIMultiDict[str] = CIMultiDict(picture.headers)
    headers["Cache-Control"] = picture.caching.header(time.time())
    headers["Content-Length"] = str(picture.stored.size)
    headers["Server"] = "Daguerre"
    cors.allow(headers)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    picture.head = f"HTTP/1.1 200 OK\r\n{lines}".encode()
    return picture.head
