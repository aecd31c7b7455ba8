"""The pictures inside of an SVG: `data:` URIs, which librsvg decodes whole, however small they are shown."""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes
from xml.parsers import expat

from service.probes import Rejected
from worker.imaging.containers import read_jpeg_header
from worker.imaging.sniffing import HEAD_BYTES, sniff

# Documents inside of documents; one of an editor holds a photo, or a drawing with a photo.
_MOST_NESTED = 4
# Of all documents together: less than a second.
_MOST_URIS = 10_000
_MOST_UNPACKED_BYTES = 20_000_000
# Of references beyond the length of their document, by entities that hold them.
_MOST_UNFOLDED_CHARS = 10_000_000
_BASE64 = re.compile(r";[ ]*base64[ ]*$", re.IGNORECASE)
_ISPE = re.compile(rb"ispe(?=.{4}(.{4})(.{4}))", re.DOTALL)
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


def _jpeg_size(data: bytes) -> tuple[int, int]:
    header = read_jpeg_header(lambda size, at: data[at : at + size])
    return header.width, header.height


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _avif_size(data: bytes) -> tuple[int, int]:
    """The largest of any item, since what comes first may be a thumbnail."""
    sizes = [(int.from_bytes(size[1]), int.from_bytes(size[2])) for size in _ISPE.finditer(data)]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


_SIZES = {"jpeg": _jpeg_size, "png": _png_size, "gif": _gif_size, "webp": _webp_size, "avif": _avif_size}
