"""The pictures inside of an SVG: `data:` URIs, which librsvg decodes whole, however small they are shown."""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes
from xml.parsers import expat

from service.probes import Rejected
from worker.imaging.formats import avif, gif, jpeg, png, webp
from worker.imaging.sniffing import HEAD_BYTES, sniff

# Documents inside of documents; one of an editor holds a photo, or a drawing with a photo.
_MOST_NESTED = 4
# Of all documents together: less than a second.
_MOST_URIS = 10_000
_MOST_UNPACKED_BYTES = 20_000_000
# Of references beyond the length of their document, by entities that hold them.
_MOST_UNFOLDED_CHARS = 10_000_000
_BASE64 = re.compile(r";[ ]*base64[ ]*$", re.IGNORECASE)
_SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "jpeg": jpeg.size_of,
    "png": png.size_of,
    "gif": gif.size_of,
    "webp": webp.size_of,
    "avif": avif.size_of,
}
_UNSEEN = dict.fromkeys(map(ord, "\t\n\r"))


def embedded_pixels(document: bytes) -> int:
    """Width x height of all pictures in `data:` URIs together, as their headers have it, in documents inside of this
    one too. Raises Rejected where they are nested, packed or so many as to keep us busy.

    The parser is Python's own, so that entities, default attributes and encodings are seen as librsvg sees them. What
    it cannot read counts for nothing: the decoder judges it, within the limits of its process.
    """
    seen = _Seen()
    _look_into(document, seen, 0)
    return seen.pixels


@dataclass(slots=True)
class _Seen:
    pixels: int = 0
    uris: int = 0
    unpacked_bytes: int = 0


def _look_into(document: bytes, seen: _Seen, nested: int) -> None:
    for data in _data_uris(document):
        seen.uris += 1
        if seen.uris > _MOST_URIS:
            raise Rejected("too-many-pixels")
        form = sniff(data[:HEAD_BYTES])
        if form in _SIZES:
            with suppress(Rejected, struct.error):  # no picture, which librsvg leaves out
                width, height = _SIZES[form](data)
                seen.pixels += width * height
        elif nested == _MOST_NESTED:
            raise Rejected("too-many-pixels")
        else:
            _look_into(_unpacked(data, seen), seen, nested + 1)


def _data_uris(document: bytes) -> Iterator[bytes]:
    """What they hold, of any attribute named `href`: not only images show a picture, inclusions bring some too."""
    if b"<" not in document:
        return
    found: list[str] = []
    left = len(document) + _MOST_UNFOLDED_CHARS

    def note(_: str, attributes: dict[str, str]) -> None:
        nonlocal left
        for name, value in attributes.items():
            if name.rpartition(":")[2] == "href":
                found.append(value)
                left -= len(value)
        if left < 0:
            raise Rejected("too-many-pixels")

    parser = expat.ParserCreate()
    parser.StartElementHandler = note
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_ALWAYS)
    with suppress(expat.ExpatError, LookupError, ValueError):
        parser.Parse(document, True)
    for value in found:
        data = _decode(value)
        if data is not None:
            yield data


def _decode(uri: str) -> bytes | None:
    uri = uri.translate(_UNSEEN).strip(" ")
    head, comma, body = uri.partition(",")
    if not comma or head[:5].lower() != "data:":
        return None
    data = unquote_to_bytes(body.partition("#")[0])
    if not _BASE64.search(head):
        return data
    try:
        return base64.b64decode(data + b"==")
    except binascii.Error:
        return b""


def _unpacked(data: bytes, seen: _Seen) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    unpacker = zlib.decompressobj(wbits=31)
    try:
        document = unpacker.decompress(data, _MOST_UNPACKED_BYTES)
    except zlib.error:
        return b""
    seen.unpacked_bytes += len(document)
    if unpacker.unconsumed_tail or seen.unpacked_bytes > _MOST_UNPACKED_BYTES:
        raise Rejected("too-many-pixels")
    return document
