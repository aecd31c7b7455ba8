"""The id of a request, and what of its path may be logged."""

from __future__ import annotations

import random
import re

from service.ids import KEY_PATTERN

# A key in this place is not logged.
_ACCEPTED_ID = re.compile(rf"(?!{KEY_PATTERN.pattern}$)[0-9A-Za-z._-]{{1,64}}")


def choose_request_id(value: str | None) -> str:
    """Returns the client's X-Request-Id if it can be used, else a new one."""
    return value if value and _ACCEPTED_ID.fullmatch(value) else f"{random.getrandbits(64):016x}"


def without_keys(path: str) -> str:
    """Returns the path without keys. The query string, where a key belongs, is never logged."""
    return KEY_PATTERN.sub("[key]", path)
