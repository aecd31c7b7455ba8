"""Places in a WebP: EXIF and XMP in chunks of the names."""

from __future__ import annotations

from contextlib import suppress

from worker.imaging.locations.blocks import blank_exif
from worker.imaging.locations.regions import Copy, Unreadable
from worker.imaging.locations.xmp import blank_xmp

_BLANKERS = {b"EXIF": blank_exif, b"XMP ": blank_xmp}


def blank_webp(copy: Copy) -> None:
    at = 12
    while len(head := copy.read(8, at)) == 8:
        copy.step()
        size = int.from_bytes(head[4:], "little")
        blank = _BLANKERS.get(head[:4])
        if blank is not None:
            with suppress(Unreadable):
                blank(copy.region((at + 8, at + 8 + size)))
        at += 8 + size + size % 2
