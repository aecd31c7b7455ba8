"""Query parameters: parsed strictly, refused by name."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web
from multidict import MultiMapping

from service.errors import ServiceError

MAX_TAGS = 20
MAX_TAG_LENGTH = 64

_TRUE = frozenset({"true", "1", "yes", "on", ""})  # "" is a bare flag
_FALSE = frozenset({"false", "0", "no", "off"})


def query(request: web.Request) -> MultiMapping[str]:
    """The query string's parameters. A leading `?` is dropped: the API's jQuery sample sends `??key=…`."""
    url = request.rel_url
    if url.raw_query_string.startswith("?"):
        return url.with_query(None).update_query(url.query_string.lstrip("?")).query
    return request.query


def _flag(parameters: MultiMapping[str], name: str) -> bool:
    value = parameters.get(name, "false").lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise ServiceError("invalid-parameter", f"{name} must be true or false (or 1, 0, yes, no, on, off).")


@dataclass(frozen=True, slots=True)
class Detail:
    """How much of an image an answer shows."""

    with_exif: bool
    verbose: bool
    with_mini_preview: bool
    with_account: bool


def detail(request: web.Request) -> Detail:
    parameters = query(request)
    return Detail(
        with_exif=_flag(parameters, "with_exif"),
        verbose=_flag(parameters, "verbose"),
        with_mini_preview=_flag(parameters, "with_mini_preview"),
        with_account=_flag(parameters, "with_account"),
    )


def tags(request: web.Request) -> list[str]:
    """The comma-separated `tags`, trimmed and each once, in the order given; none if the parameter is absent."""
    given = [tag.strip() for tag in query(request).get("tags", "").split(",")]
    unique = list(dict.fromkeys(tag for tag in given if tag))
    if len(unique) > MAX_TAGS:
        raise ServiceError("invalid-parameter", f"tags takes at most {MAX_TAGS} tags.")
    for tag in unique:
        if len(tag) > MAX_TAG_LENGTH:
            raise ServiceError("invalid-parameter", f"tags takes tags of at most {MAX_TAG_LENGTH} characters.")
        if not tag.isprintable():
            raise ServiceError("invalid-parameter", "tags takes printable characters only.")
    return unique
