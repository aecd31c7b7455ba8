"""What happens around every handler: a request id, responses for errors, a log line and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
from aiohttp import web

from service.accounts.accounts import AccountUnknown
from service.api.responses import error_response
from service.errors import ServiceError
from service.http.access_log import choose_request_id, log_request, redact_keys
from service.http.file_sending import SendfileResponse, SendResult
from service.telemetry.metrics import CLIENT_LEFT, UNMATCHED, metrics

log = structlog.get_logger("service.api")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Additional headers of an error response, set by the handler.
ERROR_HEADERS = web.RequestKey("error_headers", Mapping[str, str])
_REQUEST_ID = web.RequestKey("request_id", str)
_UNLOGGED_PATHS = frozenset({"/healthz", "/metrics", "/readyz"})


def request_id(request: web.Request) -> str:
    """Returns the client's X-Request-Id, or one of ours; the job of the request has it too."""
    return request[_REQUEST_ID]


@dataclass(slots=True)
class _Exchange:
    """A request until the end of its response. `code` and `cause` are those of the error in the response."""

    request: web.Request
    started: float
    code: str | None = None
    cause: BaseException | None = None

    def end(self, result: SendResult) -> None:
        """Counts and logs the request."""
        if result.code is not None:
            self.code, self.cause = result.code, result.cause
        seconds = self._count(result.status)
        if self.request.path not in _UNLOGGED_PATHS:
            method, path = self.request.method, self.request.path
            log_request(
                request_id(self.request), method, path, result.status, seconds, code=self.code, cause=self.cause
            )

    def abort(self) -> None:
        """Counts a request whose client left before there was a response."""
        self._count(CLIENT_LEFT)

    def _count(self, status: int) -> float:
        """Returns the duration in seconds."""
        seconds = time.perf_counter() - self.started
        resource = self.request.match_info.route.resource
        route = UNMATCHED if resource is None else resource.canonical
        if status == CLIENT_LEFT:
            metrics.count_cut_off(self.request.method, route)
        else:
            metrics.count_response(self.request.method, route, status, self.code, seconds)
        return seconds


@web.middleware
async def request_middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
    exchange = _Exchange(request, time.perf_counter())
    request[_REQUEST_ID] = choose_request_id(request.headers.get("X-Request-Id"))
    try:
        response = await handler(request)
    except AccountUnknown:  # it was deleted during the request, and its API keys with it
        exchange.code = "unauthorized"
        response = error_response(ServiceError("unauthorized"), request.get(ERROR_HEADERS))
    except ServiceError as error:
        exchange.code, exchange.cause = error.code, error.__cause__
        response = error_response(error, request.get(ERROR_HEADERS))
    except web.HTTPException as refusal:
        translated, headers = _translate(refusal)
        exchange.code = translated.code
        response = error_response(translated, headers)
    except (ConnectionError, asyncio.CancelledError):
        exchange.abort()
        raise  # the client has left: nobody reads a response
    except Exception:
        exchange.code = "internal"
        log.exception("request.failed", request_id=request_id(request), path=redact_keys(request.path))
        response = error_response(ServiceError("internal"), request.get(ERROR_HEADERS))
    response.headers["X-Request-Id"] = request_id(request)
    if isinstance(response, SendfileResponse):
        response.on_end = exchange.end  # it is sent after this, and may take minutes
    else:
        exchange.end(SendResult(response.status if request.transport is not None else CLIENT_LEFT))
    return response


def _translate(refusal: web.HTTPException) -> tuple[ServiceError, dict[str, str]]:
    """Returns the error and the headers for what aiohttp's router refuses."""
    match refusal:
        case web.HTTPNotFound():
            return ServiceError("not-found"), {}
        case web.HTTPMethodNotAllowed():
            return ServiceError("method-not-allowed"), {"Allow": ", ".join(sorted(refusal.allowed_methods))}
        case _:
            return ServiceError("bad-request"), {}
