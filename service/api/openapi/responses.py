"""The errors of an operation, by status, and the headers of answers."""

from __future__ import annotations

from collections import defaultdict

from service.api.openapi import schemas
from service.api.openapi.parts import Json, Operation
from service.errors import CATALOGUE
from service.ids import IMAGE_ID_PATTERN

# What may meet any request, and any that needs a key.
_ANY = ("bad-request", "expectation-failed", "internal")
_WITH_KEY = ("unauthorized", "account-suspended", "rate-limited", "database-unavailable")

HEADERS: Json = {
    "X-Request-Id": {
        "description": "The request's own X-Request-Id, or one of ours; the server's log has it.",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {
        "description": "The limit of a key, where there is one: `q` requests at once, all of which are there again "
        "after `w` seconds.",
        "schema": {"type": "string", "pattern": '^"key";q=[0-9]+;w=[0-9]+$'},
    },
    "RateLimit": {
        "description": "What is left of it: `r` requests, and `t` seconds at the most until there is another.",
        "schema": {"type": "string", "pattern": '^"key";r=[0-9]+;t=[0-9]+$'},
    },
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}},
    "Accept-Encoding": {
        "description": "`identity`, where the Content-Encoding of the body was refused.",
        "schema": {"const": "identity"},
    },
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}},
    "Cache-Control": {"schema": {"type": "string"}},
    "ETag": {"schema": {"type": "string"}},
    "Last-Modified": {"schema": {"type": "string"}},
    "Vary": {"description": "`Accept` where that decided the format.", "schema": {"type": "string"}},
    "Accept-Ranges": {"schema": {"const": "bytes"}},
    "Content-Range": {"schema": {"type": "string", "pattern": "^bytes ([0-9]+-[0-9]+|\\*)/[0-9]+$"}},
    "Content-Disposition": {
        "description": "The name that stands in the path.",
        "schema": {"type": "string"},
    },
    "Surrogate-Key": {
        "description": "The ids of the images that can be seen, the watermark's too, to purge the picture by.",
        "schema": {"type": "string", "pattern": f"^{IMAGE_ID_PATTERN.pattern}( {IMAGE_ID_PATTERN.pattern})?$"},
    },
    "Cache-Tag": {
        "description": "The same, as other CDNs have it.",
        "schema": {"type": "string", "pattern": f"^{IMAGE_ID_PATTERN.pattern}(,{IMAGE_ID_PATTERN.pattern})?$"},
    },
}
_OF_STATUS = {
    401: ("WWW-Authenticate",),
    415: ("Accept-Encoding",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
# Of every answer to a key that is limited.
RATE_LIMIT_HEADERS = ("RateLimit-Policy", "RateLimit")


def headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def describe_errors(operation: Operation) -> Json:
    """By status, with the codes that it may have there and an example of each."""
    codes: dict[int, list[str]] = defaultdict(list)
    for code in (*operation.errors, *(_WITH_KEY if operation.needs_key else ()), *_ANY):
        codes[CATALOGUE[code][0]].append(code)
    return {str(status): _describe_error(operation, status, codes[status]) for status in sorted(codes)}


def _describe_error(operation: Operation, status: int, codes: list[str]) -> Json:
    messages = {code: CATALOGUE[code][1] for code in codes}
    of_limit = RATE_LIMIT_HEADERS if operation.needs_key else ()
    return {
        "description": "\n".join(f"- `{code}`: {message}" for code, message in messages.items()),
        "headers": headers("X-Request-Id", "Cache-Control", *_OF_STATUS.get(status, ()), *of_limit),
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
