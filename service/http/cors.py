"""Cross-origin requests: a page of any origin may call the API.

A key travels in the query string or a header and never in a cookie, so a browser adds no authority of its own to what
a page sends: `*`, without credentials, is right.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from multidict import CIMultiDict

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_EVERY_ANSWER = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Allow, ETag, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, "
    "X-Request-Id",
}
# Authorization by name: a browser does not take `*` for it.
_REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, X-Api-Key, X-Request-Id"
_REMEMBER_S = 86_400  # what Firefox takes at most; Chromium takes two hours

# Not for pages: a browser inside the operator's network must not carry these numbers out.
_SAME_ORIGIN = frozenset({"/metrics"})


def allow(headers: CIMultiDict[str]) -> None:
    """Let any page read the answer with these headers."""
    headers.update(_EVERY_ANSWER)


async def allow_answer(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: all answers of the application, those that a handler begins itself included."""
    if request.path not in _SAME_ORIGIN:
        allow(response.headers)


@web.middleware
async def answer_options(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Answer OPTIONS from the route table, since aiohttp's router takes it for a method that is not allowed.

    A preflight is answered for unknown addresses too: refused, a mistyped path would look like a CORS failure to the
    page, which now gets to read the 404.
    """
    if request.method != "OPTIONS":
        return await handler(request)
    preflight = "Access-Control-Request-Method" in request.headers
    refusal = request.match_info.http_exception
    if isinstance(refusal, web.HTTPMethodNotAllowed):
        methods = ", ".join(sorted(refusal.allowed_methods))
    elif preflight:
        methods = "*"
    else:
        return await handler(request)
    response = web.Response(status=204, headers={"Allow": methods})
    if preflight and request.path not in _SAME_ORIGIN:
        response.headers["Access-Control-Allow-Methods"] = methods
        response.headers["Access-Control-Allow-Headers"] = _REQUEST_HEADERS
        response.headers["Access-Control-Max-Age"] = str(_REMEMBER_S)
    return response
