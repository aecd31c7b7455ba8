"""What is done with each format, in a module of its name: what its header tells before a decoder is asked, how it is
opened, and the two things made of it, the Picture of a probe and the Original of a rendition.
"""

from __future__ import annotations

import os
from typing import Protocol

from service.images.probe import Rejected
from worker.file_headers import HEAD_BYTES, sniff
from worker.imaging.formats import avif, gif, heic, jpeg, png, svg, tiff, webp
from worker.imaging.formats.original import Frames, Original
from worker.imaging.formats.picture import Picture
from worker.imaging.formats.source import Source
from worker.imaging.formats.svg_document import is_svg
from worker.imaging.kinds import name_kind

__all__ = ["FORMATS", "Format", "recognise"]


class Format(Protocol):
    """What each module has. Both admit the picture by its header before any pixel is decoded, and raise what
    `open_source` makes a `Rejected` of.
    """

    def probe(self, source: Source, /) -> Picture:
        """Decode all of it once, and keep its metadata and a small copy."""

    def open_original(self, source: Source, which: Frames, /) -> Original:
        """Read its header; pixels are decoded when they are asked for, no larger than they are needed."""


# By the names that `sniff` gives.
FORMATS: dict[str, Format] = {
    "jpeg": jpeg,
    "png": png,
    "webp": webp,
    "gif": gif,
    "avif": avif,
    "tiff": tiff,
    "heic": heic,
    "svg": svg,
}


def recognise(source: Source) -> str:
    """The name of its format, by its first bytes or its root element. Raises Rejected if it is none of them."""
    head = os.pread(source.fd, HEAD_BYTES, 0)
    name = sniff(head)
    if name is None and is_svg(source.fd):
        name = "svg"
    if name is None:
        raise Rejected("unsupported-image", name_kind(head))
    return name
