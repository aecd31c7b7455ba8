"""What surrounds every handler: a request id, errors as answers, one log line, and the count of it all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
from aiohttp import web

from service.accounts.accounts import AccountUnknown
from service.errors import ServiceError
from service.http import envelope
from service.http.file_sending import FileAnswer, SendingEnd
from service.http.request_ids import choose_request_id, without_keys
from service.telemetry.logs import requests
from service.telemetry.metrics import CLIENT_LEFT, UNMATCHED, metrics

log = structlog.get_logger("service.api")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# What an error answer gets beside its own, if the handler has set it.
ERROR_HEADERS = web.RequestKey("error_headers", Mapping[str, str])
_REQUEST_ID = web.RequestKey("request_id", str)
_QUIET = frozenset({"/healthz", "/metrics", "/readyz"})


def request_id(request: web.Request) -> str:
    """The client's X-Request-Id, or one of ours; it goes with the job too."""
    return request[_REQUEST_ID]


@dataclass(slots=True)
class _Exchange:
    """A request from its head to the end of its answer. `code` and `cause` are of the error that it is answered."""

    request: web.Request
    started: float
    code: str | None = None
    cause: BaseException | None = None

    def end(self, end: SendingEnd) -> None:
        """Count it and log it."""
        if end.code is not None:
            self.code, self.cause = end.code, end.cause
        seconds = self._count(end.status)
        if self.request.path not in _QUIET:
            self._log(end.status, seconds)

    def leave(self) -> None:
        """The client left before there was an answer."""
        self._count(CLIENT_LEFT)

    def _count(self, status: int) -> float:
        """Returns how long it took, in seconds."""
        seconds = time.perf_counter() - self.started
        resource = self.request.match_info.route.resource
        route = UNMATCHED if resource is None else resource.canonical
        if status == CLIENT_LEFT:
            metrics.count_cut_off(self.request.method, route)
        else:
            metrics.count_response(self.request.method, route, status, self.code, seconds)
        return seconds

    def _log(self, status: int, seconds: float) -> None:
        fields: dict[str, object] = {
            "request_id": request_id(self.request),
            "method": self.request.method,
            "path": without_keys(self.request.path),
            "status": status,
            "ms": round(seconds * 1000, 1),
        }
        if self.code is not None:
            fields["code"] = self.code
        if self.cause is not None:
            fields["cause"] = repr(self.cause)
        requests.write(logging.WARNING if status >= 500 else logging.INFO, fields)


@web.middleware
async def answer(request: web.Request, handler: _Handler) -> web.StreamResponse:
    exchange = _Exchange(request, time.perf_counter())
    request[_REQUEST_ID] = choose_request_id(request.headers.get("X-Request-Id"))
    try:
        response = await handler(request)
    except AccountUnknown:  # it was deleted while the request was handled, and the key with it
        exchange.code = "unauthorized"
        response = envelope.error(ServiceError("unauthorized"), request.get(ERROR_HEADERS))
    except ServiceError as problem:
        exchange.code, exchange.cause = problem.code, problem.__cause__
        response = envelope.error(problem, request.get(ERROR_HEADERS))
    except web.HTTPException as refusal:
        translated, headers = _of_router(refusal)
        exchange.code = translated.code
        response = envelope.error(translated, headers)
    except (ConnectionError, asyncio.CancelledError):
        exchange.leave()
        raise  # the client is gone: there is nobody to answer
    except Exception:
        exchange.code = "internal"
        log.exception("request.failed", request_id=request_id(request), path=without_keys(request.path))
        response = envelope.error(ServiceError("internal"), request.get(ERROR_HEADERS))
    response.headers["X-Request-Id"] = request_id(request)
    if isinstance(response, FileAnswer):
        response.on_end = exchange.end  # it is sent after this, and may take minutes
    else:
        exchange.end(SendingEnd(response.status if request.transport is not None else CLIENT_LEFT))
    return response


def _of_router(refusal: web.HTTPException) -> tuple[ServiceError, dict[str, str]]:
    match refusal:
        case web.HTTPNotFound():
            return ServiceError("not-found"), {}
        case web.HTTPMethodNotAllowed():
            return ServiceError("method-not-allowed"), {"Allow": ", ".join(sorted(refusal.allowed_methods))}
        case _:
            return ServiceError("bad-request"), {}
