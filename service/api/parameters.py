"""Query parameters and the Idempotency-Key: parsed strictly, refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl

from aiohttp import web
from multidict import MultiMapping
from yarl import URL

from service.errors import ServiceError
from service.images.idempotency import IdempotencyKey
from service.images.records import Large
from service.spelling import find_near_miss, find_nearest, quote
from service.tags import clean_tags

_TRUE = frozenset({"true", "1", "yes", "on", ""})  # "" is a bare flag
_FALSE = frozenset({"false", "0", "no", "off"})
_DETAIL_NAMES = ("with_exif", "verbose", "with_mini_preview", "with_account")
# Unknown names of one request that are compared with the known ones: a request line has room for a thousand.
_MAX_COMPARED = 16


def query(request: web.Request) -> MultiMapping[str]:
    """The query string's parameters. A leading `?` is dropped: the API's jQuery sample sends `??key=…`."""
    url = request.rel_url
    if url.raw_query_string.startswith("?"):
        return URL.build(query_string=url.raw_query_string.lstrip("?"), encoded=True).query
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

    @property
    def large(self) -> Large:
        return Large(self.with_exif, self.with_mini_preview)


def detail(request: web.Request, *others: str) -> Detail:
    """Returns what the parameters ask for. `others` are the names of the call's other parameters.

    Unknown parameters pass, because clients add some against caches. A near miss of a known name is refused, because
    the call would ignore what its client asked for.
    """
    parameters = query(request)
    known = ("key", *others, *_DETAIL_NAMES)
    unknown = [name for name in parameters if name not in known]
    for name in unknown[:_MAX_COMPARED]:
        if (meant := find_near_miss(name, known)) is not None:
            raise ServiceError("invalid-parameter", f"Unknown parameter {quote(name)}; did you mean {meant}?")
    return _detail(parameters)


def strict_detail(request: web.Request, *others: str) -> Detail:
    """The same for a call that refuses every unknown parameter."""
    parameters = query(request)
    known = ("key", *others, *_DETAIL_NAMES)
    for name in parameters:
        if name not in known:
            nearest = find_nearest(name, known)
            advice = f"this call takes {', '.join(known)}." if nearest is None else f"did you mean {nearest}?"
            raise ServiceError("invalid-parameter", f"Unknown parameter {quote(name)}; {advice}")
    return _detail(parameters)


def _detail(parameters: MultiMapping[str]) -> Detail:
    return Detail(
        with_exif=_flag(parameters, "with_exif"),
        verbose=_flag(parameters, "verbose"),
        with_mini_preview=_flag(parameters, "with_mini_preview"),
        with_account=_flag(parameters, "with_account"),
    )


def tags(request: web.Request) -> list[str]:
    """The comma-separated `tags`, trimmed and each once, in the order given; none if the parameter is absent."""
    return clean_tags(tag for text in query(request).getall("tags", []) for tag in text.split(","))


def url(request: web.Request) -> str:
    """The required `url`, decoded once; `service.downloads.origins` checks it.

    Surrogates stand for bytes that are no UTF-8 (PEP 383).
    """
    # Not by `query`, which loses bytes that are no UTF-8.
    text = request.rel_url.raw_query_string.lstrip("?")
    values = (value for name, value in parse_qsl(text, errors="surrogateescape") if name == "url")
    if not (value := next(values, "")):
        raise ServiceError(
            "invalid-parameter", "url is required: the address of a picture. To send the picture itself, POST it."
        )
    return value


def idempotency_key(request: web.Request, url: URL | None = None) -> IdempotencyKey | None:
    """The header's key for a picture in the body, or for the one at this URL; None without the header."""
    given = request.headers.getall("Idempotency-Key", None)
    if given is None:
        return None
    if len(given) > 1:
        raise ServiceError("invalid-idempotency-key", "Send one Idempotency-Key, not several.")
    return IdempotencyKey.parse(given[0], None if url is None else str(url))
