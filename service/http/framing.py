"""Where a request ends: what its head may not say of that, beyond what aiohttp's parser refuses.

A server and a proxy that disagree about it take a part of one client's body for the request of another (RFC 9112,
section 11.2). So whatever may be read in two ways is refused, and its connection closed.
"""

from __future__ import annotations

from aiohttp import HttpVersion10, HttpVersion11
from aiohttp.hdrs import CONTENT_LENGTH, TRANSFER_ENCODING
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

_VERSIONS = (HttpVersion11, HttpVersion10)


def is_plain(message: RawRequestMessage, payload: StreamReader) -> bool:
    """Whether a head says nothing of a body or of another protocol, as most do: nothing can be wrong with it."""
    headers = message.headers
    return (
        payload is EMPTY_PAYLOAD
        and message.version is HttpVersion11
        and not message.upgrade
        and headers.get(TRANSFER_ENCODING) is None
        and headers.get(CONTENT_LENGTH) is None
    )


def find_fault(message: RawRequestMessage, payload: StreamReader) -> str | None:
    """Returns what is wrong with a head that the parser accepted; None for an ordinary request.

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
        return "Content-Length out of range"  # the parser takes the largest number of 64 bits for no length at all
    return None
