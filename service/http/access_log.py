"""The log line of a request: its id, its path without API keys, its status and its duration."""

from __future__ import annotations

import logging
import random
import re

from service.ids import KEY_PATTERN
from service.telemetry.logs import requests

# An API key that was sent as the request's id by mistake is not accepted.
_ACCEPTED_ID = re.compile(rf"(?!{KEY_PATTERN.pattern}$)[0-9A-Za-z._-]{{1,64}}")


def choose_request_id(value: str | None) -> str:
    """Returns the client's X-Request-Id if it is valid, else a new id."""
    return value if value and _ACCEPTED_ID.fullmatch(value) else f"{random.getrandbits(64):016x}"


def redact_keys(path: str) -> str:
    """Returns the path without API keys. The query string, where a key belongs, is never logged."""
    return KEY_PATTERN.sub("[key]", path)


def log_request(
    request_id: str,
    method: str,
    path: str,
    status: int,
    seconds: float,
    *,
    code: str | None = None,
    cause: BaseException | None = None,
) -> None:
    """Writes the line. `code` is that of the error that the client got, and `cause` the exception behind it."""
    fields: dict[str, object] = {
        "request_id": request_id,
        "method": method,
        "path": redact_keys(path),
        "status": status,
        "ms": round(seconds * 1000, 1),
    }
    if code is not None:
        fields["code"] = code
    if cause is not None:
        fields["cause"] = repr(cause)
    requests.write(logging.WARNING if status >= 500 else logging.INFO, fields)
