"""What tells a place in a picture file, and the bytes to put over it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import suppress

from worker.file_headers import HEAD_BYTES, sniff
from worker.imaging.formats.source import File, opened_file
from worker.imaging.formats.svg_document import is_svg
from worker.imaging.location_removal.blocks import blank_exif
from worker.imaging.location_removal.gif import blank_gif
from worker.imaging.location_removal.heif import blank_heif
from worker.imaging.location_removal.jpeg import blank_jpeg
from worker.imaging.location_removal.png import blank_png
from worker.imaging.location_removal.regions import Copy, Patch, Unreadable
from worker.imaging.location_removal.svg import blank_svg
from worker.imaging.location_removal.webp import blank_webp

__all__ = ["Patch", "find_locations"]


def find_locations(file: File) -> list[Patch]:
    """Patches that take every place out of the file's EXIF, XMP and IPTC, and leave pixels, length and other tags
    alone; none where nothing tells one. In the order of the file, and none over another.

    A structure that cannot be read ends what is looked at of its part. Raises OSError where the file cannot be read,
    and Rejected for an SVG whose compressed document cannot be written anew.

    Not looked into: maker notes, some of which hold coordinates under a maker's own tags; free texts such as titles
    and comments; films behind a still picture; C2PA manifests; and pictures inside of an SVG.
    """
    with opened_file(file) as fd:
        form = sniff(os.pread(fd, HEAD_BYTES, 0)) or ("svg" if is_svg(fd) else None)
        if form is None:
            return []
        # Writes go to pages of this process alone.
        with mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as data:
            copy = Copy(data)
            with suppress(Unreadable):
                _BLANKERS[form](copy)
            return copy.patches()


def _blank_tiff(copy: Copy) -> None:
    blank_exif(copy.region((0, copy.size)))


_BLANKERS: dict[str, Callable[[Copy], None]] = {
    "jpeg": blank_jpeg,
    "png": blank_png,
    "webp": blank_webp,
    "gif": blank_gif,
    "avif": blank_heif,
    "heic": blank_heif,
    "tiff": _blank_tiff,
    "svg": blank_svg,
}
