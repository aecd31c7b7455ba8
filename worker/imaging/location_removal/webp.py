"""Locations in a WebP: the chunks `EXIF` and `XMP `."""

from __future__ import annotations

from contextlib import suppress

from worker.imaging.containers.riff import chunks
from worker.imaging.location_removal.blocks import blank_exif
from worker.imaging.location_removal.regions import Copy, Unreadable
from worker.imaging.location_removal.xmp import blank_xmp

_BLANKERS = {b"EXIF": blank_exif, b"XMP ": blank_xmp}


def blank_webp(copy: Copy) -> None:
    for kind, start, end in chunks(copy.read):
        copy.step()
        blank = _BLANKERS.get(kind)
        if blank is not None:
            with suppress(Unreadable):
                blank(copy.region((start, end)))
