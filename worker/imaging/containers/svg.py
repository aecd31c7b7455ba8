"""Reads the document of an SVG file: compressed or not, in any encoding that XML declares (XML 1.0, appendix F)."""

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
# The default limit of an upload, so that a compressed document may be as large as one that is not.
MAX_DOCUMENT_BYTES = 50_000_000
# Comments, declarations and whitespace in front of the root element.
_MAX_PROLOGUE_BYTES = 4_000_000
_CHUNK_BYTES = 64_000

_SVG_NAMESPACE = "http://www.w3.org/2000/svg"
_SPACES = b" \t\r\n"
# UTF-32 first, because its mark starts with the mark of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARED = re.compile(rb"""<\?xml\s[^>]{0,200}?\bencoding\s*=\s*["']([A-Za-z][\w.-]{0,40})["']""")
_DECLARATION = re.compile(r"\s*<\?xml\s.*?\?>", re.DOTALL)
# Codecs that no document uses; some take quadratic time.
_REFUSED_ENCODINGS = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7", "undefined"})
START_TAG = re.compile(rb"""<[^\s/>"']+(?:[^<>"']++|"[^"]*+"|'[^']*+')*+>""")


@dataclass(frozen=True, slots=True)
class Root:
    """The root element: its attributes, and start and end of its start tag in the document."""

    attributes: dict[str, str]
    start: int
    end: int


def decompress(data: bytes) -> bytes:
    """Returns the document of a file, which may be compressed by gzip.

    Raises Rejected if compressed data are truncated, damaged, or have more than MAX_DOCUMENT_BYTES.
    """
    if not data.startswith(GZIP_MAGIC):
        return data
    inflater = zlib.decompressobj(wbits=31)
    try:
        document = inflater.decompress(data, MAX_DOCUMENT_BYTES + 1)
    except zlib.error as error:
        raise Rejected("damaged-image") from error
    if len(document) > MAX_DOCUMENT_BYTES:
        raise Rejected("too-many-pixels")
    if not inflater.eof:
        raise Rejected("damaged-image")
    return document


def to_utf8(document: bytes) -> bytes:
    """Returns the document in UTF-8, without a declaration of another encoding.

    Raises Rejected if the document is not in the encoding that it declares.
    """
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
    """Returns the name of a document's codec, by its first bytes; None for UTF-8."""
    for mark, name in _BYTE_ORDER_MARKS:
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
    # The declaration was read as ASCII, so the document is not in UTF-16, whatever it declares.
    known = _is_known(name) and not name.startswith(("utf-16", "utf-32"))
    return name if known else "utf-8"


def _is_known(name: str) -> bool:
    if name in _REFUSED_ENCODINGS:
        return False
    try:
        "".encode(name)
    except LookupError:  # no codec, or one that encodes no text, such as base64
        return False
    return True


def is_svg(fd: int) -> bool:
    """Returns whether the root element of a file is svg, in its namespace or in none, according to an XML parser.

    Reads at most 4 MB.
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
    """The parser has reached the root element."""


def _root_name(head: bytes) -> str:
    """Returns the namespace of the root element, a space, and its name; "" if there is none."""
    name = ""

    def on_start(element: str, _: dict[str, str]) -> None:
        nonlocal name
        name = element
        raise _Reached

    parser = expat.ParserCreate("utf-8", " ")
    parser.StartElementHandler = on_start
    with suppress(_Reached, expat.ExpatError, ValueError):
        for at in range(0, len(head), _CHUNK_BYTES):
            parser.Parse(head[at : at + _CHUNK_BYTES], False)
    return name


def read_root(document: bytes) -> Root:
    """Returns the root element. Raises Rejected if none can be read."""
    root: Root | None = None

    def on_start(_: str, attributes: dict[str, str]) -> None:
        nonlocal root
        tag = START_TAG.match(document, parser.CurrentByteIndex)
        if tag is not None:
            root = Root(attributes, tag.start(), tag.end())
        raise _Reached

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = on_start
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_ALWAYS)
    with suppress(_Reached, expat.ExpatError, ValueError):
        for at in range(0, len(document), _CHUNK_BYTES):
            parser.Parse(document[at : at + _CHUNK_BYTES], False)
    if root is None:
        raise Rejected("damaged-image")
    return root
