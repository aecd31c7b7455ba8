"""What surrounds every handler: a request id, errors as answers, one log line, and the count of it all."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from service.api import envelope
from service.errors import ServiceError
from service.ids import KEY_PATTERN
from service.telemetry.logs import requests
from service.telemetry.metrics import UNMATCHED, metrics

log = structlog.get_logger("service.api")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_REQUEST_ID = web.RequestKey("request_id", str)
_ACCEPTED_ID = re.compile(rf"(?!{KEY_PATTERN.pattern}$)[0-9A-Za-z._-]{{1,64}}")  # a key in this place is not logged
_QUIET = frozenset({"/healthz", "/metrics", "/readyz"})


def request_id(request: web.Request) -> str:
    """The client's X-Request-Id, or one of ours; it goes with the job too."""
    return request[_REQUEST_ID]


def choose_request_id(given: str | None) -> str:
    return given if given and _ACCEPTED_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


@web.middleware
async def answer(request: web.Request, handler: _Handler) -> web.StreamResponse:
    started = time.perf_counter()
    request[_REQUEST_ID] = choose_request_id(request.headers.get("X-Request-Id"))
    code = cause = None
    try:
        response = await handler(request)
    except ServiceError as problem:
        code, cause = problem.code, problem.__cause__
        response = envelope.error(problem)
    except web.HTTPException as refusal:
        translated, headers = _of_router(refusal)
        code = translated.code
        response = envelope.error(translated, headers)
    except (ConnectionError, asyncio.CancelledError):
        _count(request, started, None, None)
        raise  # the client is gone: there is nobody to answer
    except Exception:
        code = "internal"
        log.exception("request.failed", request_id=request_id(request), path=without_keys(request.path))
        response = envelope.error(ServiceError(code))
    response.headers["X-Request-Id"] = request_id(request)
    seconds = _count(request, started, response.status, code)
    if request.path not in _QUIET:
        fields: dict[str, object] = {
            "request_id": request_id(request),
            "method": request.method,
            "path": without_keys(request.path),
            "status": response.status,
            "ms": round(seconds * 1000, 1),
        }
        if code is not None:
            fields["code"] = code
        if cause is not None:
            fields["cause"] = repr(cause)
        requests.write(logging.WARNING if response.status >= 500 else logging.INFO, fields)
    return response


def _count(request: web.Request, started: float, status: int | None, code: str | None) -> float:
    """Returns how long the request took, in seconds."""
    seconds = time.perf_counter() - started
    resource = request.match_info.route.resource
    route = UNMATCHED if resource is None else resource.canonical
    if status is None or request.transport is None:
        metrics.count_cut_off(request.method, route)
    else:
        metrics.count_answer(request.method, route, status, code, seconds)
    return seconds


def without_keys(path: str) -> str:
    """The path alone is logged, since the query string holds the key; and a key that slipped into it is not."""
    return KEY_PATTERN.sub("[key]", path)


def _of_router(refusal: web.HTTPException) -> tuple[ServiceError, dict[str, str]]:
    match refusal:
        case web.HTTPNotFound():
            return ServiceError("not-found"), {}
        case web.HTTPMethodNotAllowed():
            return ServiceError("method-not-allowed"), {"Allow": ", ".join(sorted(refusal.allowed_methods))}
        case _:
            return ServiceError("bad-request"), {}
