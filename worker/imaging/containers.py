"""What a container says before a decoder is asked, read with a few small reads."""

from __future__ import annotations

import mmap
import os
import struct

from service.probes import Rejected

# Start of frame: 0xC0 to 0xCF without DHT, JPG and DAC.
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# A file with more chunks or segments than this is no picture but an attempt to keep us busy: 0.1 s.
_MOST_READS = 100_000

_MARKERS_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


def jpeg_size(fd: int) -> tuple[int, int]:
    """Stored width and height, from the first start of frame.

    libvips only gives the size after shrink-on-load, and a second open costs 0.1 ms and a second reading of the EXIF.
    """
    at = 2
    for _ in range(_MOST_READS):
        marker = os.pread(fd, 9, at)
        if len(marker) < 9 or marker[0] != 0xFF:
            raise Rejected("damaged-image")
        if marker[1] == 0xFF:  # fill byte
            at += 1
        elif marker[1] in _MARKERS_WITHOUT_LENGTH:
            at += 2
        elif marker[1] in _SOF_MARKERS:
            height, width = struct.unpack_from(">HH", marker, 5)
            if not width or not height:
                raise Rejected("damaged-image")
            return width, height
        else:
            at += 2 + int.from_bytes(marker[2:4], "big")
    raise Rejected("damaged-image")


def png_size(fd: int) -> tuple[int, int]:
    """Width and height; libpng refuses to tell those over a million."""
    ihdr = os.pread(fd, 8, 16)
    if len(ihdr) < 8:
        raise Rejected("damaged-image")
    width, height = struct.unpack(">II", ihdr)
    return width, height


def png_frames(fd: int) -> int:
    """Pictures in an APNG, its default image among them; 1 in any other PNG. Refuses a file that ends before IEND does.

    A decoder stops after the last line of pixels, so nobody else notices a missing end.
    """
    at, declared, controls, first = 8, 0, 0, b""
    for _ in range(_MOST_READS):
        head = os.pread(fd, 12, at)
        if len(head) < 12:
            raise Rejected("damaged-image")
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind == b"IEND":
            # An animation that contradicts itself is shown as its default image.
            return controls + (first == b"IDAT") if declared and declared == controls else 1
        if kind in {b"IDAT", b"fcTL"}:
            first = first or kind
        if kind == b"acTL":
            declared = int.from_bytes(head[8:12], "big")
        elif kind == b"fcTL":
            controls += 1
        at += 12 + length
    raise Rejected("damaged-image")


def refuse_cut_gif(fd: int) -> None:
    """Refuse a GIF that ends inside a block. libvips shows an animation cut short as one with fewer frames.

    Only the end mark may be missing: no pixel is, and such files are about.
    """
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
        try:
            at = 13 + _colour_table_bytes(data[10])
            while at < len(data):
                if data[at] == 0x2C:  # an image
                    at += 11 + _colour_table_bytes(data[at + 9])
                elif data[at] == 0x21:  # an extension
                    at += 2
                else:
                    return
                while size := data[at]:
                    at += size + 1
                at += 1
        except IndexError:
            raise Rejected("damaged-image") from None


def _colour_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def webp_has_alpha(fd: int) -> bool:
    """The flag of an extended WebP. libvips gives every animation an alpha band."""
    head = os.pread(fd, 21, 0)
    return head[12:16] == b"VP8X" and bool(head[20] & 0x10)
