"""Middleware: request ids, authentication, error responses, CORS, the request log and metrics."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
from aiohttp import web
from multidict import CIMultiDict

from service.accounts.accounts import Account, AccountUnknown
from service.api.parameters import query
from service.api.resources import Resources
from service.api.responses import error_response
from service.config.values import Rate
from service.errors import ServiceError
from service.http.file_sending import SendfileResponse, SendResult
from service.telemetry.metrics import metrics
from service.telemetry.requests import CLIENT_DISCONNECTED, UNMATCHED, choose_request_id, log_request, redact_keys

log = structlog.get_logger("service.api")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Additional headers of an error response, which the handler sets.
ERROR_HEADERS = web.RequestKey("error_headers", Mapping[str, str])
_REQUEST_ID = web.RequestKey("request_id", str)
_UNLOGGED_PATHS = frozenset({"/healthz", "/metrics", "/readyz"})


def request_id(request: web.Request) -> str:
    """Returns the client's X-Request-Id, or a generated one. The job of the request has the same id."""
    return request[_REQUEST_ID]


@dataclass(slots=True)
class _Exchange:
    """One request and its response. `code` and `cause` are those of the error in the response."""

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
        """Counts a request whose client disconnected before the response."""
        self._count(CLIENT_DISCONNECTED)

    def _count(self, status: int) -> float:
        """Returns the duration in seconds."""
        seconds = time.perf_counter() - self.started
        resource = self.request.match_info.route.resource
        route = UNMATCHED if resource is None else resource.canonical
        if status == CLIENT_DISCONNECTED:
            metrics.requests.count_disconnect(self.request.method, route)
        else:
            metrics.requests.count_response(self.request.method, route, status, self.code, seconds)
        return seconds


@web.middleware
async def request_middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
    exchange = _Exchange(request, time.perf_counter())
    request[_REQUEST_ID] = choose_request_id(request.headers.get("X-Request-Id"))
    try:
        response = await (handler(request) if request.method != "OPTIONS" else _respond_to_options(request, handler))
    except AccountUnknown:  # the account was deleted during the request
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
        raise  # the client has disconnected: nobody reads a response
    except Exception:
        exchange.code = "internal"
        log.exception("request.failed", request_id=request_id(request), path=redact_keys(request.path))
        response = error_response(ServiceError("internal"), request.get(ERROR_HEADERS))
    response.headers["X-Request-Id"] = request_id(request)
    if request.path not in _SAME_ORIGIN_PATHS:
        add_cors_headers(response.headers)
    if isinstance(response, SendfileResponse):
        response.on_end = exchange.end  # it is sent after this, and may take minutes
    else:
        exchange.end(SendResult(response.status if request.transport is not None else CLIENT_DISCONNECTED))
    return response


def _translate(refusal: web.HTTPException) -> tuple[ServiceError, dict[str, str]]:
    """Returns the error and the headers for an exception of aiohttp's router."""
    match refusal:
        case web.HTTPNotFound():
            return ServiceError("not-found"), {}
        case web.HTTPMethodNotAllowed():
            return ServiceError("method-not-allowed"), {"Allow": ", ".join(sorted(refusal.allowed_methods))}
        case _:
            return ServiceError("bad-request"), {}


# Cross-origin requests (CORS): a page of any origin may call the API. An API key is sent in the query string or a
# header, never in a cookie, so a browser never adds credentials by itself, and `*` is safe.
CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Allow, ETag, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, "
    "X-Request-Id",
}
# Authorization needs its name: a browser does not apply `*` to it.
_CORS_REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, X-Api-Key, X-Request-Id"
_PREFLIGHT_MAX_AGE_S = 86_400  # Firefox's maximum; Chromium's is two hours

# Not for cross-origin requests: a browser inside the operator's network must not leak these numbers.
_SAME_ORIGIN_PATHS = frozenset({"/metrics"})


def add_cors_headers(headers: CIMultiDict[str]) -> None:
    """Allows pages of any origin to read the response."""
    headers.update(CORS_HEADERS)


def protocol_error_response(error: ServiceError, headers: Mapping[str, str] | None = None) -> web.Response:
    """Returns the response to a request that does not reach the application, e.g. one that is not valid HTTP."""
    response = error_response(error, headers)
    add_cors_headers(response.headers)
    return response


async def _respond_to_options(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Responds to OPTIONS from the route table, since aiohttp's router treats it as a method that is not allowed.

    A preflight to an unknown path succeeds too, so that the page can read the 404. Otherwise a mistyped path would look
    like a CORS failure.
    """
    is_preflight = "Access-Control-Request-Method" in request.headers
    refusal = request.match_info.http_exception
    if isinstance(refusal, web.HTTPMethodNotAllowed):
        methods = ", ".join(sorted(refusal.allowed_methods))
    elif is_preflight:
        methods = "*"
    else:
        return await handler(request)
    response = web.Response(status=204, headers={"Allow": methods})
    if is_preflight and request.path not in _SAME_ORIGIN_PATHS:
        response.headers["Access-Control-Allow-Methods"] = methods
        response.headers["Access-Control-Allow-Headers"] = _CORS_REQUEST_HEADERS
        response.headers["Access-Control-Max-Age"] = str(_PREFLIGHT_MAX_AGE_S)
    return response


# The value of the RateLimit header; "" if the request was admitted without a check.
_RATE_LIMIT = web.RequestKey("rate_limit", str)


async def authenticate(request: web.Request, service: Resources) -> Account:
    """Returns the account of the request's API key, as it was at most 4 s ago.

    A key is sent as `?key=`, `X-Api-Key` or `Authorization: Bearer`. Handlers authenticate before they read the body.
    Raises `unauthorized`, `rate-limited`, `account-suspended`.
    """
    key = _find_key(request)
    if not key:
        raise ServiceError("unauthorized")
    account = await service.keys.find_account(key)
    if service.rate_limiter is not None:
        status = await service.rate_limiter.admit(key)
        request[_RATE_LIMIT] = f'"key";r={status.remaining};t={status.retry_after_s}' if status else ""
        if status is not None and status.refused:
            raise ServiceError("rate-limited", retry_after_s=status.retry_after_s)
    if account.is_suspended:
        raise ServiceError("account-suspended")
    return account


class RateLimitHeaders:
    """For `on_response_prepare` with a rate limit: adds the headers of draft-ietf-httpapi-ratelimit-headers-11 (May
    2026).

    `t` is the time within which at most `r` requests are available. In draft -10 it was the time until more are
    available. Here both are the same.
    """

    def __init__(self, rate: Rate) -> None:
        self._policy = f'"key";q={rate.burst};w={math.ceil(rate.full_after_s)}'

    async def __call__(self, request: web.Request, response: web.StreamResponse) -> None:
        if (value := request.get(_RATE_LIMIT)) is None:
            return
        response.headers["RateLimit-Policy"] = self._policy
        if value:
            response.headers["RateLimit"] = value


def _find_key(request: web.Request) -> str | None:
    if key := query(request).get("key") or request.headers.get("X-Api-Key"):
        return key
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
