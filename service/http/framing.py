"""Where a request ends: what its head must not say about that, beyond what aiohttp's parser refuses.

If a server and a proxy disagree about it, they take a part of one client's body for the request of another (request
smuggling; RFC 9112, section 11.2). So an ambiguous request is refused, and its connection closed.
"""

from __future__ import annotations

from aiohttp import HttpVersion10, HttpVersion11
from aiohttp.hdrs import CONTENT_LENGTH, TRANSFER_ENCODING
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

_VERSIONS = (HttpVersion11, HttpVersion10)


def is_plain(message: RawRequestMessage, payload: StreamReader) -> bool:
    """Returns whether a head mentions neither a body nor another protocol, like most: its framing is valid."""
    headers = message.headers
    return (
        payload is EMPTY_PAYLOAD
        and message.version is HttpVersion11
        and not message.upgrade
        and headers.get(TRANSFER_ENCODING) is None
        and headers.get(CONTENT_LENGTH) is None
    )


def find_fault(message: RawRequestMessage, payload: StreamReader) -> str | None:
    """Returns what is wrong with a head that the parser accepted, or None if it is valid.

    The only transfer coding is `chunked`, and HTTP/1.0 has none (RFC 9112, section 6.1).
    """
    version, headers = message.version, message.headers
    if version is not HttpVersion11 and version not in _VERSIONS:
        return "unsupported version"
    coding = headers.get(TRANSFER_ENCODING)
    if coding is not None:
        if version == HttpVersion10 or coding.lower() != "chunked":
            return "unsupported Transfer-Encoding"
    elif payload is EMPTY_PAYLOAD and headers.get(CONTENT_LENGTH, "").strip("0"):
        return "Content-Length out of range"  # the parser treats the largest 64-bit number as no length at all
    return None
