"""The error responses of an operation by status, and the headers of responses."""

from __future__ import annotations

from collections import defaultdict

from service.api.openapi import schemas
from service.api.openapi.parts import Json, Operation
from service.errors import CATALOGUE
from service.ids import IMAGE_ID_PATTERN

# The errors of every request, and those of every request that needs a key.
_ANY = ("bad-request", "expectation-failed", "internal")
_WITH_KEY = ("unauthorized", "account-suspended", "rate-limited", "database-unavailable")

HEADERS: Json = {
    "X-Request-Id": {
        "description": "The X-Request-Id of the request, or a new id; the server's log contains it.",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {
        "description": "The rate limit of the key, if it has one: `q` requests at once, all of which are available "
        "again after `w` seconds.",
        "schema": {"type": "string", "pattern": '^"key";q=[0-9]+;w=[0-9]+$'},
    },
    "RateLimit": {
        "description": "The remaining rate limit: `r` requests, and at most `t` seconds until one more is available.",
        "schema": {"type": "string", "pattern": '^"key";r=[0-9]+;t=[0-9]+$'},
    },
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}},
    "Accept-Encoding": {
        "description": "`identity`, if the Content-Encoding of the body was refused.",
        "schema": {"const": "identity"},
    },
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}},
    "Cache-Control": {"schema": {"type": "string"}},
    "ETag": {"schema": {"type": "string"}},
    "Last-Modified": {"schema": {"type": "string"}},
    "Location": {"schema": {"type": "string", "format": "uri"}},
    "Vary": {"description": "`Accept`, if that header determined the format.", "schema": {"type": "string"}},
    "Accept-Ranges": {"schema": {"const": "bytes"}},
    "Content-Range": {"schema": {"type": "string", "pattern": "^bytes ([0-9]+-[0-9]+|\\*)/[0-9]+$"}},
    "Content-Disposition": {
        "description": "The name in the path.",
        "schema": {"type": "string"},
    },
    "Surrogate-Key": {
        "description": "The ids of the visible images, including the watermark's, for purging a CDN.",
        "schema": {"type": "string", "pattern": f"^{IMAGE_ID_PATTERN.pattern}( {IMAGE_ID_PATTERN.pattern})?$"},
    },
    "Cache-Tag": {
        "description": "The same ids, for CDNs that use this header.",
        "schema": {"type": "string", "pattern": f"^{IMAGE_ID_PATTERN.pattern}(,{IMAGE_ID_PATTERN.pattern})?$"},
    },
}
_STATUS_HEADERS = {
    401: ("WWW-Authenticate",),
    415: ("Accept-Encoding",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
# The headers of every response to a key with a rate limit.
RATE_LIMIT_HEADERS = ("RateLimit-Policy", "RateLimit")


def headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def describe_errors(operation: Operation) -> Json:
    """Returns the error responses by status, with the possible codes and an example of each."""
    codes: dict[int, list[str]] = defaultdict(list)
    for code in (*operation.errors, *(_WITH_KEY if operation.needs_key else ()), *_ANY):
        codes[CATALOGUE[code][0]].append(code)
    return {str(status): _describe_error(operation, status, codes[status]) for status in sorted(codes)}


def _describe_error(operation: Operation, status: int, codes: list[str]) -> Json:
    messages = {code: CATALOGUE[code][1] for code in codes}
    rate_limit_headers = RATE_LIMIT_HEADERS if operation.needs_key else ()
    return {
        "description": "\n".join(f"- `{code}`: {message}" for code, message in messages.items()),
        "headers": headers("X-Request-Id", "Cache-Control", *_STATUS_HEADERS.get(status, ()), *rate_limit_headers),
        "content": {
            "application/json": {
                "schema": schemas.failure(codes),
                "examples": {
                    code: {"value": {"success": False, "error": {"code": code, "message": message}}}
                    for code, message in messages.items()
                },
            }
        },
    }
