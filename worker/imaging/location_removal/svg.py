"""Locations in an SVG: metadata elements, inside `metadata` or not."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from xml.parsers import expat

from service.images.probe import Rejected
from worker.imaging.containers.svg import GZIP_MAGIC, START_TAG, decompress, encoding_of
from worker.imaging.location_removal.regions import Copy, Unreadable
from worker.imaging.location_removal.xmp import names_location

_METADATA = frozenset({"metadata", "xmpmeta", "xapmeta", "RDF"})
# The maximum number of elements that come from entities.
_MAX_ENTITY_ELEMENTS = 100_000


def blank_svg(copy: Copy) -> None:
    """Overwrites the contents of metadata elements that have a location with spaces.

    An XML parser finds the elements, so comments are handled correctly. Text after a syntax error is not searched. In a
    document that is compressed or not in UTF-8, the contents are deleted instead, and the file is padded to its former
    length. Raises Rejected if the new file is longer.
    """
    data = copy.read(copy.size, 0)
    encoding = encoding_of(data)
    if encoding is not None or data.startswith(GZIP_MAGIC):
        copy.region((0, copy.size)).write(_rewrite(data), 0)
        return
    for start, end in _find_locations(data):
        with suppress(Unreadable):
            copy.region((start, end)).fill(0, end - start, b" ")


def _rewrite(data: bytes) -> bytes:
    """Returns the file without its locations, in the same encoding, compression and length.

    Returns the file itself if it has none.
    """
    document = decompress(data)
    encoding = encoding_of(document) or "utf-8"
    text = document.decode(encoding, "replace").encode()
    locations = _find_locations(text)
    if not locations:
        return data
    starts, ends = [0, *(end for _, end in locations)], [*(start for start, _ in locations), len(text)]
    remaining = b"".join(text[start:end] for start, end in zip(starts, ends, strict=True))
    document = remaining.decode().encode(encoding, "replace")
    if data.startswith(GZIP_MAGIC):
        return _compress(document, len(data))
    return _pad(document, " ".encode(encoding), len(data))


def _pad(document: bytes, space: bytes, size: int) -> bytes:
    return document + space * ((size - len(document)) // len(space))


def _compress(document: bytes, size: int) -> bytes:
    """Compresses by gzip, with a comment that pads the result to `size` bytes (RFC 1952)."""
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = compressor.compress(document) + compressor.flush()
    head = GZIP_MAGIC + b"\x08\x10\0\0\0\0\x02\xff"
    tail = struct.pack("<II", zlib.crc32(document), len(document) & 0xFFFFFFFF)
    room = size - len(head) - len(body) - len(tail) - 1
    if room < 0:
        raise Rejected("unsupported-image", "compressed SVG whose locations cannot be removed")
    return head + b" " * room + b"\0" + body + tail


def _find_locations(document: bytes) -> list[tuple[int, int]]:
    """Returns start and end of the contents of each metadata element with a location, in a document in UTF-8."""
    locations = []
    for start, end in _find_metadata(document):
        tag = START_TAG.match(document, start, end)  # None for an element without contents, or from an entity
        if tag is not None and names_location(document[tag.end() : end]):
            locations.append((tag.end(), end))
    return locations


def _find_metadata(document: bytes) -> list[tuple[int, int]]:
    """Returns the starts of start tag and end tag of each outermost metadata element."""
    elements: list[tuple[int, int]] = []
    parser = expat.ParserCreate("utf-8")
    depth, start = 0, 0
    elements_left = document.count(b"<") + _MAX_ENTITY_ELEMENTS

    def on_start(name: str, _: dict[str, str]) -> None:
        nonlocal depth, start, elements_left
        elements_left -= 1
        if elements_left < 0:
            raise Unreadable
        if depth or name.rpartition(":")[2] in _METADATA:
            if not depth:
                start = parser.CurrentByteIndex
            depth += 1

    def on_end(_: str) -> None:
        nonlocal depth
        if depth:
            depth -= 1
            if not depth:
                elements.append((start, parser.CurrentByteIndex))

    parser.StartElementHandler, parser.EndElementHandler = on_start, on_end
    with suppress(Unreadable, expat.ExpatError, LookupError, ValueError):
        parser.Parse(document, True)
    return elements
