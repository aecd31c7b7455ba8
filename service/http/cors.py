"""Cross-origin requests (CORS): a page of any origin may call the API.

A key is sent in the query string or a header and never in a cookie. So a browser adds no authority of its own to the
requests of a page, and `*` without credentials is right.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from multidict import CIMultiDict

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_RESPONSE_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Allow, ETag, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, "
    "X-Request-Id",
}
# Authorization needs its name: a browser does not apply `*` to it.
_REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, X-Api-Key, X-Request-Id"
_MAX_AGE_S = 86_400  # Firefox's maximum; Chromium's is two hours

# Not for pages: a browser inside the operator's network must not leak these numbers.
_SAME_ORIGIN_PATHS = frozenset({"/metrics"})


def allow(headers: CIMultiDict[str]) -> None:
    """Lets any page read the response with these headers."""
    headers.update(_RESPONSE_HEADERS)


async def allow_response(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: every response of the application, also one that its handler prepares itself."""
    if request.path not in _SAME_ORIGIN_PATHS:
        allow(response.headers)


@web.middleware
async def handle_options(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Responds to OPTIONS from the route table, since aiohttp's router treats it as a method that is not allowed.

    A preflight to an unknown path succeeds too. If it were refused, a mistyped path would look like a CORS failure to
    the page; so the page gets to read the 404.
    """
    if request.method != "OPTIONS":
        return await handler(request)
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
        response.headers["Access-Control-Allow-Headers"] = _REQUEST_HEADERS
        response.headers["Access-Control-Max-Age"] = str(_MAX_AGE_S)
    return response
