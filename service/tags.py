"""What a tag may be: the rules that query strings, JSON bodies and statements share."""

from __future__ import annotations

from collections.abc import Iterable

from service.errors import ServiceError

MAX_TAGS = 20
MAX_TAG_LENGTH = 64


def clean_tags(given: Iterable[str]) -> list[str]:
    """Trimmed, each once, in the order given; empty ones are dropped.

    Raises `invalid-parameter` for more than 20, one of more than 64 characters, one that does not print, and one with
    a comma, which no query string could name.
    """
    tags = list(dict.fromkeys(tag for tag in (text.strip() for text in given) if tag))
    if len(tags) > MAX_TAGS:
        raise ServiceError("invalid-parameter", f"tags takes at most {MAX_TAGS} tags.")
    for tag in tags:
        if len(tag) > MAX_TAG_LENGTH:
            raise ServiceError("invalid-parameter", f"tags takes tags of at most {MAX_TAG_LENGTH} characters.")
        if not tag.isprintable():
            raise ServiceError("invalid-parameter", "tags takes printable characters only.")
        if "," in tag:
            raise ServiceError("invalid-parameter", "A tag has no comma; send each tag by itself.")
    return tags
