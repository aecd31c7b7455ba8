"""Places in an SVG: elements of metadata, be they in `metadata` or not."""

from __future__ import annotations

import re
from contextlib import suppress
from xml.parsers import expat

from worker.imaging.locations.regions import Copy, Unreadable
from worker.imaging.locations.xmp import names_place

_METADATA = frozenset({"metadata", "xmpmeta", "xapmeta", "RDF"})
# Of entities, beyond those that the document writes out.
_MOST_UNFOLDED_ELEMENTS = 100_000
_START_TAG = re.compile(rb"""<(?:[^<>"']++|"[^"]*+"|'[^']*+')*+>""")


def blank_svg(copy: Copy) -> None:
    """What is between the tags becomes spaces. Where they lie is the parser's word, so that it is not mistaken about
    comments; as far as it can read.
    """
    for start, end in _metadata(copy.read(copy.size, 0)):
        tag = _START_TAG.match(copy.data, start, end)
        if tag is None:  # without contents, or from an entity
            continue
        contents = copy.region((tag.end(), end))
        with suppress(Unreadable):
            if names_place(contents.read(0, contents.size)):
                contents.fill(0, contents.size, b" ")


def _metadata(document: bytes) -> list[tuple[int, int]]:
    """Start of the start tag and start of the end tag of each outermost element of metadata."""
    found: list[tuple[int, int]] = []
    parser = expat.ParserCreate()
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
