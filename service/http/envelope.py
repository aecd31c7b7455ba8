"""The shape of every answer: `{"success": true, "response": …}` or `{"success": false, "error": …}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from aiohttp import web

from service.errors import ServiceError

_encode = msgspec.json.Encoder().encode


def ok(
    response: msgspec.Struct | Sequence[msgspec.Struct], *, status: int = 200, no_store: bool = False
) -> web.Response:
    """`no_store` is for a GET that changes something: answered from a cache, it would not."""
    answer = web.Response(
        body=_encode({"success": True, "response": response}), status=status, content_type="application/json"
    )
    if no_store:
        answer.headers["Cache-Control"] = "no-store"
    return answer


def error(problem: ServiceError, headers: Mapping[str, str] | None = None) -> web.Response:
    body = {"success": False, "error": {"code": problem.code, "message": problem.message}}
    answer = web.Response(body=_encode(body), status=problem.status, content_type="application/json", headers=headers)
    answer.headers["Cache-Control"] = "no-store"
    if problem.retry_after_s is not None:
        answer.headers["Retry-After"] = str(problem.retry_after_s)
    if problem.status == 401:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="daguerre"'
    if problem.code == "unsupported-content-encoding":
        answer.headers["Accept-Encoding"] = "identity"  # RFC 9110, section 15.5.16
    return answer
