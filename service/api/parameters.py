"""Query parameters and the Idempotency-Key: parsed strictly, refused by name."""

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
# The parameters of an upload that may be fields of a form.
_FIELDS = frozenset({"tags", *_DETAIL_NAMES})
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
    def large(self) -> Include:
        return Include(self.with_exif, self.with_mini_preview)


def detail(request: web.Request, *others: str) -> Detail:
    """Returns what the parameters ask for. `others` are the names of the call's other parameters.

    Unknown parameters pass, because clients add some against caches. A near miss of a known name is refused, because
    the call would ignore what its client asked for.
    """
    parameters = query(request)
    _refuse_near_misses(parameters, _list_known(*others))
    return _read_detail(parameters)


def strict_detail(request: web.Request, *others: str) -> Detail:
    """The same for a call that refuses every unknown parameter."""
    parameters, known = query(request), _list_known(*others)
    for name in parameters:
        if name not in known:
            nearest = find_nearest(name, known)
            advice = f"this call takes {', '.join(known)}." if nearest is None else f"did you mean {nearest}?"
            raise ServiceError("invalid-parameter", f"Unknown parameter {quote(name)}; {advice}")
    return _read_detail(parameters)


@lru_cache(16)
def _list_known(*others: str) -> Mapping[str, None]:
    """A set that keeps its order."""
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
    """The comma-separated `tags`, trimmed and each once, in the order given; none if the parameter is absent."""
    return _read_tags(query(request))


def _read_tags(parameters: MultiMapping[str]) -> list[str]:
    return clean_tags(tag for text in parameters.getall("tags", []) for tag in text.split(","))


class UploadParameters:
    """`detail` and `tags` of an upload: those of the query string, and those of a form's fields, as they arrive."""

    def __init__(self, request: web.Request) -> None:
        parameters = query(request)
        self.detail = detail(request, "tags")
        self.tags = _read_tags(parameters)
        self._has_tags = bool(self.tags)
        self._parameters: MultiDict[str] = MultiDict(parameters)

    def take_field(self, name: str, value: bytes) -> None:
        """Read a field of a form; one that is no parameter is ignored, and so is a key, which is due before the body.

        Of several flags of one name the last counts, as with a checkbox and its hidden default. Raises
        `invalid-parameter`.
        """
        if name not in _FIELDS:
            _refuse_near_misses([name], _FIELDS)
            return
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise ServiceError("invalid-parameter", f"The form's field {name} must be UTF-8.") from None
        if name == "tags":
            if self._has_tags and text.strip():
                raise ServiceError("invalid-parameter", "Send tags in the query string or in the form, not in both.")
            self._parameters.add(name, text)
            self.tags = _read_tags(self._parameters)
        else:
            self._parameters[name] = text.strip()
            self.detail = _read_detail(self._parameters)


def url(request: web.Request) -> str:
    """The required `url`, decoded once; `service.downloads.client` checks it.

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
