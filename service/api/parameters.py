"""Query parameters and the Idempotency-Key header. Values are parsed strictly, and errors name the parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl

from aiohttp import web
from multidict import MultiDict, MultiMapping
from yarl import URL

from service.errors import ServiceError
from service.images.models import IdempotencyKey, Include
from service.images.tag_rules import clean_tags
from service.spelling import find_near_miss, find_nearest, quote

_TRUE = frozenset({"true", "1", "yes", "on", ""})  # "" is a bare flag
_FALSE = frozenset({"false", "0", "no", "off"})
_DETAIL_NAMES = ("with_exif", "verbose", "with_mini_preview", "with_account")
# The parameters of an upload that may be fields of a form instead.
_FORM_FIELDS = frozenset({"tags", *_DETAIL_NAMES})
# At most this many unknown names of a request are compared with the known ones: a request line can hold a thousand.
_MAX_COMPARED = 16


def query(request: web.Request) -> MultiMapping[str]:
    """Returns the parameters of the query string. A leading `?` is dropped: the API's jQuery sample sends `??key=…`."""
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
    """The optional fields of an image in a response."""

    with_exif: bool
    verbose: bool
    with_mini_preview: bool
    with_account: bool

    @property
    def include(self) -> Include:
        return Include(self.with_exif, self.with_mini_preview)


def detail(request: web.Request, *others: str) -> Detail:
    """Returns the requested fields. `others` are the names of the endpoint's other parameters.

    Unknown parameters are ignored, because clients add some to bypass caches. A misspelt name is refused, because its
    value would be ignored silently.
    """
    parameters = query(request)
    _refuse_near_misses(parameters, _list_known(*others))
    return _read_detail(parameters)


def strict_detail(request: web.Request, *others: str) -> Detail:
    """Like `detail`, for an endpoint that refuses every unknown parameter."""
    parameters, known = query(request), _list_known(*others)
    for name in parameters:
        if name not in known:
            nearest = find_nearest(name, known)
            advice = f"the parameters are {', '.join(known)}." if nearest is None else f"did you mean {nearest}?"
            raise ServiceError("invalid-parameter", f"Unknown parameter {quote(name)}; {advice}")
    return _read_detail(parameters)


@lru_cache(16)
def _list_known(*others: str) -> Mapping[str, None]:
    """Returns a set that keeps its order."""
    return dict.fromkeys(("key", *others, *_DETAIL_NAMES))


def _refuse_near_misses(names: Iterable[str], known: Collection[str]) -> None:
    for name in [name for name in names if name not in known][:_MAX_COMPARED]:
        if (meant := find_near_miss(name, known)) is not None:
            raise ServiceError("invalid-parameter", f"Unknown parameter {quote(name)}; did you mean {meant}?")


def _read_detail(parameters: MultiMapping[str]) -> Detail:
    return Detail(
        with_exif=_flag(parameters, "with_exif"),
        verbose=_flag(parameters, "verbose"),
        with_mini_preview=_flag(parameters, "with_mini_preview"),
        with_account=_flag(parameters, "with_account"),
    )


def tags(request: web.Request) -> list[str]:
    """Returns the comma-separated `tags`, trimmed and without duplicates, in their order."""
    return _read_tags(query(request))


def _read_tags(parameters: MultiMapping[str]) -> list[str]:
    texts = parameters.getall("tags", [])
    return clean_tags(tag for text in texts for tag in text.split(",")) if texts else []


class UploadParameters:
    """`detail` and `tags` of an upload, from the query string and from the fields of a form as they arrive."""

    def __init__(self, request: web.Request) -> None:
        parameters = query(request)
        self.detail = detail(request, "tags")
        self.tags = _read_tags(parameters)
        self._has_tags = bool(self.tags)
        self._parameters: MultiDict[str] = MultiDict(parameters)

    def add_field(self, name: str, value: bytes) -> None:
        """Reads a field of a form. Unknown fields are ignored, and so is `key`, which must precede the body.

        The last of several flags with the same name counts, as with a checkbox and its hidden default. Raises
        `invalid-parameter`.
        """
        if name not in _FORM_FIELDS:
            _refuse_near_misses([name], _FORM_FIELDS)
            return
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise ServiceError("invalid-parameter", f"The form field {name} must be UTF-8.") from None
        if name == "tags":
            if self._has_tags and text.strip():
                raise ServiceError("invalid-parameter", "tags must be in the query string or in the form, not in both.")
            self._parameters.add(name, text)
            self.tags = _read_tags(self._parameters)
        else:
            self._parameters[name] = text.strip()
            self.detail = _read_detail(self._parameters)


def url(request: web.Request) -> str:
    """Returns the required `url`, decoded once; `service.downloads.client` checks it.

    Surrogates stand for bytes that are not UTF-8 (PEP 383).
    """
    # `query` would lose bytes that are not UTF-8.
    text = request.rel_url.raw_query_string.lstrip("?")
    values = (value for name, value in parse_qsl(text, errors="surrogateescape") if name == "url")
    if not (value := next(values, "")):
        raise ServiceError("invalid-parameter", "url is required: the address of an image. To upload a file, use POST.")
    return value


def idempotency_key(request: web.Request, url: URL | None = None) -> IdempotencyKey | None:
    """Returns the key of the header, for the file in the body or at `url`; None without the header."""
    values = request.headers.getall("Idempotency-Key", None)
    if values is None:
        return None
    if len(values) > 1:
        raise ServiceError("invalid-idempotency-key", "The header Idempotency-Key is given more than once.")
    return IdempotencyKey.parse(values[0], None if url is None else str(url))
