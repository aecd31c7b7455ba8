"""Places in an SVG: elements of metadata, be they in `metadata` or not."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from xml.parsers import expat

from service.images.probe import Rejected
from worker.imaging.formats.svg_document import GZIP_MAGIC, START_TAG, encoding_of, unpack
from worker.imaging.location_removal.regions import Copy, Unreadable
from worker.imaging.location_removal.xmp import names_place

_METADATA = frozenset({"metadata", "xmpmeta", "xapmeta", "RDF"})
# Of entities, beyond those that the document writes out.
_MOST_UNFOLDED_ELEMENTS = 100_000


def blank_svg(copy: Copy) -> None:
    """What is between the tags becomes spaces. Where they lie is the parser's word, so that it is not mistaken about
    comments; as far as it can read.

    A document that is compressed or not in UTF-8 loses it instead, and is padded to the length that it had. Raises
    Rejected if it then does not fit.
    """
    data = copy.read(copy.size, 0)
    encoding = encoding_of(data)
    if encoding is not None or data.startswith(GZIP_MAGIC):
        copy.region((0, copy.size)).put(0, _rewritten(data))
        return
    for start, end in _places(data):
        with suppress(Unreadable):
            copy.region((start, end)).fill(0, end - start, b" ")


def _rewritten(data: bytes) -> bytes:
    """The file without its places, in the same encoding, compression and length. The file itself if it has none."""
    document = unpack(data)
    encoding = encoding_of(document) or "utf-8"
    text = document.decode(encoding, "replace").encode()
    places = _places(text)
    if not places:
        return data
    starts, ends = [0, *(end for _, end in places)], [*(start for start, _ in places), len(text)]
    kept = (
        b"".join(text[start:end] for start, end in zip(starts, ends, strict=True)).decode().encode(encoding, "replace")
    )
    return _packed(kept, len(data)) if data.startswith(GZIP_MAGIC) else _padded(kept, " ".encode(encoding), len(data))


def _padded(document: bytes, space: bytes, size: int) -> bytes:
    return document + space * ((size - len(document)) // len(space))


def _packed(document: bytes, size: int) -> bytes:
    """Compressed by gzip, with a comment that makes it as long as that (RFC 1952)."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = packer.compress(document) + packer.flush()
    head = GZIP_MAGIC + b"\x08\x10\0\0\0\0\x02\xff"
    tail = struct.pack("<II", zlib.crc32(document), len(document) & 0xFFFFFFFF)
    room = size - len(head) - len(body) - len(tail) - 1
    if room < 0:
        raise Rejected("unsupported-image", "compressed SVG whose places cannot be taken out")
    return head + b" " * room + b"\0" + body + tail


def _places(document: bytes) -> list[tuple[int, int]]:
    """Start and end of what each element of metadata holds that names a place, in a document in UTF-8."""
    places = []
    for start, end in _metadata(document):
        tag = START_TAG.match(document, start, end)
        if tag is not None and names_place(document[tag.end() : end]):  # else without contents, or from an entity
            places.append((tag.end(), end))
    return places


def _metadata(document: bytes) -> list[tuple[int, int]]:
    """Start of the start tag and start of the end tag of each outermost element of metadata."""
    found: list[tuple[int, int]] = []
    parser = expat.ParserCreate("utf-8")
    depth, start = 0, 0
    left = document.count(b"<") + _MOST_UNFOLDED_ELEMENTS

    def begin(name: str, _: dict[str, str]) -> None:
        nonlocal depth, start, left
        left -= 1
        if left < 0:
            raise Unreadable
        if depth or name.rpartition(":")[2] in _METADATA:
            if not depth:
                start = parser.CurrentByteIndex
            depth += 1

    def end(_: str) -> None:
        nonlocal depth
        if depth:
            depth -= 1
            if not depth:
                found.append((start, parser.CurrentByteIndex))

    parser.StartElementHandler, parser.EndElementHandler = begin, end
    with suppress(Unreadable, expat.ExpatError, LookupError, ValueError):
        parser.Parse(document, True)
    return found
