"""The pictures inside of an SVG: `data:` URIs, which librsvg decodes whole, however small they are shown."""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes
from xml.parsers import expat

from service.images.probe import Rejected
from worker.file_headers import HEAD_BYTES, avif_size, gif_size, sniff, webp_size
from worker.imaging.formats import jpeg, png

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
    "gif": gif_size,
    "webp": webp_size,
    "avif": avif_size,
}
# Formats of pictures that librsvg as it is built here leaves out, and their names.
FOREIGN = {"gif": "GIF", "webp": "WebP", "avif": "AVIF"}
# Marks of what browsers apply to a picture and librsvg does not: an orientation or a profile.
_MARKS = {"jpeg": (b"Exif\0\0", b"ICC_PROFILE\0"), "png": (b"eXIf", b"cICP", b"iCCP", b"gAMA")}
_UNDECODED = (b"BM", b"\0\0\1\0")
# Of documents that are shown with attributes longer than libxml2 has them: its own limits for all else.
_MAX_OTHER_BYTES = 9_000_000
_MAX_DEPTH = 250
_UNSEEN = dict.fromkeys(map(ord, "\t\n\r"))


@dataclass(frozen=True, slots=True)
class Foreign:
    """A picture that browsers show and librsvg does not, or may show otherwise: the name of its format, its bytes, and
    the attribute of the start tag at a place of the document that holds it.
    """

    form: str
    data: bytes
    tag_at: int
    attribute: str


@dataclass(slots=True)
class Embedded:
    """`pixels` are width x height of all pictures together, as their headers have it, in documents inside of the one
    too. `is_harmless` says that the document is well-formed, of little depth, without entities, and of some MB without
    its pictures: then libxml2 needs no limit of its own for what is long.
    """

    pixels: int = 0
    foreign: list[Foreign] = field(default_factory=list)
    is_harmless: bool = False
    uris: int = 0
    unpacked_bytes: int = 0


def examine(document: bytes) -> Embedded:
    """The pictures in `data:` URIs of a document in UTF-8. Raises Rejected if they are nested, packed or so many as to
    keep us busy, or if one inside of another document, or of a format that is not decoded, would be left out.

    The parser is Python's own, so that entities, default attributes and encodings are seen as librsvg sees them. What
    it cannot read counts for nothing: the decoder judges it, within the limits of its process.
    """
    seen = Embedded()
    _look_into(document, seen, 0)
    return seen


def _look_into(document: bytes, seen: Embedded, nested: int) -> None:
    references = _References(document)
    for reference in references.read():
        data = _decode(reference.value)
        if data is None:
            continue
        seen.uris += 1
        if seen.uris > _MOST_URIS:
            raise Rejected("too-many-pixels")
        form = sniff(data[:HEAD_BYTES])
        if form in _SIZES:
            with suppress(Rejected, struct.error):  # no picture, which librsvg leaves out
                width, height = _SIZES[form](data)
                seen.pixels += width * height
            if reference.is_picture and (form in FOREIGN or (not nested and _is_marked(form, data))):
                _note_foreign(seen, Foreign(form, data, reference.tag_at, reference.attribute), nested)
        elif reference.is_picture and data.startswith(_UNDECODED):
            raise Rejected("unsupported-image", "SVG with a BMP or ICO picture inside")
        elif nested == _MOST_NESTED:
            raise Rejected("too-many-pixels")
        else:
            _look_into(_unpacked(data, seen), seen, nested + 1)
    if not nested:
        seen.is_harmless = references.is_harmless


def _is_marked(form: str | None, data: bytes) -> bool:
    return any(mark in data for mark in _MARKS.get(form or "", ()))


def _note_foreign(seen: Embedded, picture: Foreign, nested: int) -> None:
    if nested:
        raise Rejected("unsupported-image", f"SVG in an SVG with a {FOREIGN[picture.form]} picture inside")
    seen.foreign.append(picture)


@dataclass(frozen=True, slots=True)
class _Reference:
    """The value of an attribute. `is_picture` if its element shows one."""

    value: str
    is_picture: bool
    tag_at: int
    attribute: str


class _References:
    """All attributes of a document that are named `href`: not only images show a picture, inclusions bring some too."""

    def __init__(self, document: bytes) -> None:
        self._document = document
        self._references: list[_Reference] = []
        self._left = len(document) + _MOST_UNFOLDED_CHARS
        self._depth = 0
        self.is_harmless = True
        self._parser = parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.EntityDeclHandler = self._declare
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_ALWAYS)

    def read(self) -> list[_Reference]:
        if b"<" in self._document:
            try:
                self._parser.Parse(self._document, True)
            except (expat.ExpatError, LookupError, ValueError):
                self.is_harmless = False
        if len(self._document) - sum(len(reference.value) for reference in self._references) > _MAX_OTHER_BYTES:
            self.is_harmless = False
        return self._references

    def _start(self, element: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self.is_harmless = False
        for name, value in attributes.items():
            if name.rpartition(":")[2] == "href":
                is_picture = element.rpartition(":")[2] in {"image", "feImage"}
                self._references.append(_Reference(value, is_picture, self._parser.CurrentByteIndex, name))
                self._left -= len(value)
        if self._left < 0:
            raise Rejected("too-many-pixels")

    def _end(self, _: str) -> None:
        self._depth -= 1

    def _declare(self, *_: object) -> None:
        self.is_harmless = False


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


def _unpacked(data: bytes, seen: Embedded) -> bytes:
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
