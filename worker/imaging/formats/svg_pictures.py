"""Finds the pictures inside an SVG: `data:` URIs. librsvg decodes them in full size, even if they are shown small."""

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
from service.media_types import HEAD_BYTES, sniff
from worker.file_headers import avif_size, gif_size, webp_size
from worker.imaging.formats import jpeg, png

# The maximum nesting of documents. Documents of editors contain a photo, or a drawing with a photo.
_MAX_NESTING = 4
# The maximum in all documents together: less than a second.
_MAX_URIS = 10_000
_MAX_DECOMPRESSED_BYTES = 20_000_000
# The maximum text of references beyond the length of the document, which comes from entities.
_MAX_ENTITY_CHARS = 10_000_000
_BASE64 = re.compile(r";[ ]*base64[ ]*$", re.IGNORECASE)
_SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "jpeg": jpeg.size_of,
    "png": png.size_of,
    "gif": gif_size,
    "webp": webp_size,
    "avif": avif_size,
}
# Formats that this build of librsvg cannot decode, and their names.
UNDECODED_FORMATS = {"gif": "GIF", "webp": "WebP", "avif": "AVIF"}
# Bytes of metadata that browsers apply to a picture and librsvg does not: an orientation or a profile.
_METADATA_MARKS = {"jpeg": (b"Exif\0\0", b"ICC_PROFILE\0"), "png": (b"eXIf", b"cICP", b"iCCP", b"gAMA")}
_BMP_OR_ICO = (b"BM", b"\0\0\1\0")
# libxml2's limits for everything but attributes, which are enforced here for documents with longer attributes.
_MAX_OTHER_BYTES = 9_000_000
_MAX_DEPTH = 250
_IGNORED_CHARS = dict.fromkeys(map(ord, "\t\n\r"))


@dataclass(frozen=True, slots=True)
class EmbeddedPicture:
    """A picture that librsvg does not show, or may show differently from browsers.

    It is the value of `attribute`, in the start tag at the offset `tag_at` of the document.
    """

    format_name: str
    data: bytes
    tag_at: int
    attribute: str


@dataclass(slots=True)
class EmbeddedPictures:
    """All pictures of a document, and of documents inside it.

    `pixels` is the sum of width x height by their headers. `is_harmless` means that the document is well-formed, not
    deep, without entities, and has at most some MB without its pictures. Then libxml2 needs no limit for attributes.
    """

    pixels: int = 0
    to_convert: list[EmbeddedPicture] = field(default_factory=list)
    is_harmless: bool = False
    uris: int = 0
    decompressed_bytes: int = 0


def find_pictures(document: bytes) -> EmbeddedPictures:
    """Returns the pictures in `data:` URIs of a document in UTF-8.

    Raises Rejected if they are nested too deep, too large when decompressed, or too many, and if librsvg would not show
    one: of an unsupported format, or in a document inside the document.

    Python's XML parser handles entities, default attributes and encodings as librsvg does. What it cannot parse is
    ignored here, and left to the decoder within the limits of its process.
    """
    pictures = EmbeddedPictures()
    _search(document, pictures, 0)
    return pictures


def _search(document: bytes, pictures: EmbeddedPictures, nesting: int) -> None:
    references = _References(document)
    for reference in references.read():
        data = _decode(reference.value)
        if data is None:
            continue
        pictures.uris += 1
        if pictures.uris > _MAX_URIS:
            raise Rejected("too-many-pixels")
        format_name = sniff(data[:HEAD_BYTES])
        if format_name in _SIZES:
            with suppress(Rejected, struct.error):  # librsvg skips invalid pictures
                width, height = _SIZES[format_name](data)
                pictures.pixels += width * height
            needs_conversion = format_name in UNDECODED_FORMATS or (not nesting and _has_metadata(format_name, data))
            if reference.is_picture and needs_conversion:
                picture = EmbeddedPicture(format_name, data, reference.tag_at, reference.attribute)
                _add_to_convert(pictures, picture, nesting)
        elif reference.is_picture and data.startswith(_BMP_OR_ICO):
            raise Rejected("unsupported-image", "SVG with a BMP or ICO picture inside")
        elif nesting == _MAX_NESTING:
            raise Rejected("too-many-pixels")
        else:
            _search(_decompress(data, pictures), pictures, nesting + 1)
    if not nesting:
        pictures.is_harmless = references.is_harmless


def _has_metadata(format_name: str, data: bytes) -> bool:
    return any(mark in data for mark in _METADATA_MARKS.get(format_name, ()))


def _add_to_convert(pictures: EmbeddedPictures, picture: EmbeddedPicture, nesting: int) -> None:
    if nesting:
        name = UNDECODED_FORMATS[picture.format_name]
        raise Rejected("unsupported-image", f"SVG in an SVG with a {name} picture inside")
    pictures.to_convert.append(picture)


@dataclass(frozen=True, slots=True)
class _Reference:
    """The value of an attribute. `is_picture` means that its element shows a picture."""

    value: str
    is_picture: bool
    tag_at: int
    attribute: str


class _References:
    """All attributes `href` of a document. Not only images show pictures: inclusions (`use`) bring some too."""

    def __init__(self, document: bytes) -> None:
        self._document = document
        self._references: list[_Reference] = []
        self._left = len(document) + _MAX_ENTITY_CHARS
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
    uri = uri.translate(_IGNORED_CHARS).strip(" ")
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


def _decompress(data: bytes, pictures: EmbeddedPictures) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    inflater = zlib.decompressobj(wbits=31)
    try:
        document = inflater.decompress(data, _MAX_DECOMPRESSED_BYTES)
    except zlib.error:
        return b""
    pictures.decompressed_bytes += len(document)
    if inflater.unconsumed_tail or pictures.decompressed_bytes > _MAX_DECOMPRESSED_BYTES:
        raise Rejected("too-many-pixels")
    return document
