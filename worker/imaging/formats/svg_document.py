"""The document of an SVG file, which may be packed and in any encoding that XML declares (XML 1.0, appendix F)."""

from __future__ import annotations

import codecs
import os
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from xml.parsers import expat

from service.images.probe import Rejected

GZIP_MAGIC = b"\x1f\x8b"
# A packed document may be as large as an upload of one that is not, by default.
MAX_DOCUMENT_BYTES = 50_000_000
# Comments, declarations and whitespace in front of the root element.
_MAX_PROLOGUE_BYTES = 4_000_000
_PIECE_BYTES = 64_000

_SVG_NAMESPACE = "http://www.w3.org/2000/svg"
_SPACES = b" \t\r\n"
# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARED = re.compile(rb"""<\?xml\s[^>]{0,200}?\bencoding\s*=\s*["']([A-Za-z][\w.-]{0,40})["']""")
_DECLARATION = re.compile(r"\s*<\?xml\s.*?\?>", re.DOTALL)
# Codecs that are no encodings of documents; some take a time that grows with the square of the length.
_NO_ENCODINGS = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7", "undefined"})
START_TAG = re.compile(rb"""<[^\s/>"']+(?:[^<>"']++|"[^"]*+"|'[^']*+')*+>""")


@dataclass(frozen=True, slots=True)
class Root:
    """The root element: its attributes, and where its start tag lies in the document."""

    attributes: dict[str, str]
    start: int
    end: int


def unpack(data: bytes) -> bytes:
    """Raises Rejected for packed data that are cut, damaged, or larger than MAX_DOCUMENT_BYTES."""
    if not data.startswith(GZIP_MAGIC):
        return data
    unpacker = zlib.decompressobj(wbits=31)
    try:
        document = unpacker.decompress(data, MAX_DOCUMENT_BYTES + 1)
    except zlib.error as error:
        raise Rejected("damaged-image") from error
    if len(document) > MAX_DOCUMENT_BYTES:
        raise Rejected("too-many-pixels")
    if not unpacker.eof:
        raise Rejected("damaged-image")
    return document


def to_utf8(document: bytes) -> bytes:
    """The document in UTF-8, without a declaration of another encoding. Raises Rejected if it is not in its own."""
    encoding = encoding_of(document)
    if encoding is None:
        return document
    try:
        text = document.decode(encoding)
    except UnicodeError as error:
        raise Rejected("damaged-image") from error
    return _without_declaration(text).encode("utf-8", "replace")


def _without_declaration(text: str) -> str:
    text = text.removeprefix("\ufeff")
    declaration = _DECLARATION.match(text)
    return text if declaration is None else text[declaration.end() :]


def encoding_of(head: bytes) -> str | None:
    """The name of a codec, by the first bytes of a document; None if it is UTF-8 and says nothing else."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    for width, name in ((4, "utf-32"), (2, "utf-16")):
        first = head[:width]
        character, zeros = first.strip(b"\0"), bytes(width - 1)
        if len(character) == 1 and character in _SPACES + b"<" and zeros in first:
            return f"{name}-le" if first.endswith(zeros) else f"{name}-be"
    declared = _DECLARED.match(head.removeprefix(codecs.BOM_UTF8)[:1000].lstrip(_SPACES))
    if declared is None:
        return None
    name = declared[1].decode()
    with suppress(LookupError):
        name = codecs.lookup(name).name
    if name == "utf-8":
        return None
    # What was read is ASCII: it is not in UTF-16, whatever it says.
    known = _is_known(name) and not name.startswith(("utf-16", "utf-32"))
    return name if known else "utf-8"


def _is_known(name: str) -> bool:
    try:
        return codecs.lookup(name)._is_text_encoding and name not in _NO_ENCODINGS
    except LookupError:
        return False


def is_svg(fd: int) -> bool:
    """Whether the root element of a file is svg, in its namespace or in none, as an XML parser sees it.

    Reads no further than that, and no more than 4 MB.
    """
    head = os.pread(fd, _MAX_PROLOGUE_BYTES, 0)
    if head.startswith(GZIP_MAGIC):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, _MAX_PROLOGUE_BYTES)
        except zlib.error:
            return False
    encoding = encoding_of(head)
    if encoding is not None:
        head = _without_declaration(head.decode(encoding, "ignore")).encode("utf-8", "replace")
    if not head.removeprefix(codecs.BOM_UTF8).lstrip(_SPACES).startswith(b"<"):
        return False
    namespace, _, name = _root_name(head).rpartition(" ")
    return name == "svg" and namespace in {"", _SVG_NAMESPACE}


class _Reached(Exception):
    """The parser is at the root element."""


def _root_name(head: bytes) -> str:
    """Its namespace, a space and its name; "" if there is none."""
    name = ""

    def note(element: str, _: dict[str, str]) -> None:
        nonlocal name
        name = element
        raise _Reached

    parser = expat.ParserCreate("utf-8", " ")
    parser.StartElementHandler = note
    with suppress(_Reached, expat.ExpatError, ValueError):
        for at in range(0, len(head), _PIECE_BYTES):
            parser.Parse(head[at : at + _PIECE_BYTES], False)
    return name


def read_root(document: bytes) -> Root:
    """Raises Rejected if no root element can be read."""
    root: Root | None = None

    def note(_: str, attributes: dict[str, str]) -> None:
        nonlocal root
        tag = START_TAG.match(document, parser.CurrentByteIndex)
        if tag is not None:
            root = Root(attributes, tag.start(), tag.end())
        raise _Reached

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = note
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_ALWAYS)
    with suppress(_Reached, expat.ExpatError, ValueError):
        for at in range(0, len(document), _PIECE_BYTES):
            parser.Parse(document[at : at + _PIECE_BYTES], False)
    if root is None:
        raise Rejected("damaged-image")
    return root
