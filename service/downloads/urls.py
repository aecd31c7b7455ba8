"""URLs of pictures, which are requested byte for byte as the client sent them.

Object storages compare a signed URL as a string, so nothing is decoded and encoded again, not even at redirects. Only
the host is normalised (IDNA, lower case), because it is not part of the request target.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from yarl import URL

_SCHEMES = frozenset({"http", "https"})
_ASCII_WHITESPACE = " \t\n\r\f\v"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# RFC 3986, appendix B: scheme, authority, path, query and fragment of any text.
_PARTS = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL)
# Other ASCII characters are sent as they are, as curl does, and servers accept them. All browsers escape `"`, `<` and
# `>`.
_NOT_IN_TARGET = re.compile(rb"[^!#-;=?-~]")
_PORT = re.compile(r"(?::[0-9]*)?\Z")
_NOT_IN_HOST = re.compile(r'[^!-~]|["#/<>?@\\^`{|}]')


class CredentialsInURL(ValueError):
    """The URL has a user name or a password."""


class _Parts(NamedTuple):
    """`query` starts with its question mark. It is None if the URL has none."""

    scheme: str | None
    authority: str | None
    path: str
    query: str | None


def parse_absolute(text: str) -> URL:
    """Returns an absolute http or https URL. Characters that a request line cannot hold are escaped as UTF-8.

    Bytes that are not UTF-8 may be surrogates (PEP 383). Raises ValueError, and its subclass CredentialsInURL.
    """
    text = text.strip(_ASCII_WHITESPACE)
    if _CONTROL.search(text) is not None:
        raise ValueError("a control character")
    return _build(_split(text))


def resolve_redirect(base: URL, location: str) -> URL:
    """Returns the URL of a Location header (RFC 3986, section 5.2). `base` is a URL of this module. Raises as above."""
    reference = _split(location.strip(_ASCII_WHITESPACE))
    path, query = reference.path, reference.query
    if reference.scheme is None and reference.authority is None:
        base_path, mark, base_query = base.raw_path_qs.partition("?")
        if not path:
            path, query = base_path, mark + base_query if query is None else query
        elif not path.startswith("/"):
            path = base_path[: base_path.rindex("/") + 1] + path
    authority = reference.authority
    if authority is None and reference.scheme is None:
        authority = base.raw_authority
    return _build(_Parts(reference.scheme or base.scheme, authority, _remove_dot_segments(path), query))


def _split(text: str) -> _Parts:
    match = _PARTS.fullmatch(text)
    if match is None:
        raise ValueError("no URL")
    return _Parts(*match.groups())


def _build(parts: _Parts) -> URL:
    scheme, authority = (parts.scheme or "").lower(), parts.authority
    if scheme not in _SCHEMES or not authority:
        raise ValueError("no http or https URL")
    if "@" in authority:
        raise CredentialsInURL
    site = URL(f"{scheme}://{authority}/")
    if not site.raw_host or not site.port or _NOT_IN_HOST.search(site.raw_host) or not _PORT.search(authority):
        raise ValueError("no host or port")
    target = _escape(parts.path or "/") + _escape(parts.query or "")
    # All of the target as the path, which is sent as it is. yarl would drop the question mark of an empty query.
    return URL.build(scheme=scheme, authority=site.raw_authority, path=target, encoded=True)


def _escape(text: str) -> str:
    data = text.encode("utf-8", "surrogateescape")
    return _NOT_IN_TARGET.sub(lambda match: b"%%%02X" % ord(match[0]), data).decode("ascii")


def _remove_dot_segments(path: str) -> str:
    """Returns the path without dot segments (RFC 3986, section 5.2.4). It is empty or starts with a slash."""
    segments = path.split("/")
    result: list[str] = []
    for segment in segments:
        if segment == "..":
            if len(result) > 1:
                result.pop()
        elif segment != ".":
            result.append(segment)
    if segments[-1] in {".", ".."}:
        result.append("")
    return "/".join(result)
