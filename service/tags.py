"""What a tag may be: the rules that query strings, JSON bodies and statements share."""

from __future__ import annotations

import re
from collections.abc import Iterable

from service.errors import ServiceError

MAX_TAGS = 20
MAX_TAG_LENGTH = 64
# Not str.isprintable: that refuses the joiners of emoji and of several scripts, and what is newer than this Python.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def clean_tags(given: Iterable[str]) -> list[str]:
    """Trimmed, each once, in the order given; empty ones are dropped.

    Raises `invalid-parameter` for more than 20, one of more than 64 characters, one with control characters,
    and one with a comma, which no query string could name.
    """
    tags = list(dict.fromkeys(tag for tag in (text.strip() for text in given) if tag))
    if len(tags) > MAX_TAGS:
        raise ServiceError("invalid-parameter", f"tags takes at most {MAX_TAGS} tags.")
    for tag in tags:
        if len(tag) > MAX_TAG_LENGTH:
            raise ServiceError("invalid-parameter", f"tags takes tags of at most {MAX_TAG_LENGTH} characters.")
        if _CONTROL.search(tag) is not None:
            raise ServiceError("invalid-parameter", "tags takes no control characters.")
        if "," in tag:
            raise ServiceError("invalid-parameter", "A tag has no comma; send each tag by itself.")
    return tags
