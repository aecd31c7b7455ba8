"""What a container says before a decoder is asked, read with a few small reads."""

from __future__ import annotations

import os
import struct

from service.probes import Rejected

# Start of frame: 0xC0 to 0xCF without DHT, JPG and DAC.
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MARKERS_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


def jpeg_size(fd: int) -> tuple[int, int]:
    """Stored width and height, from the first start of frame.

    libvips only gives the size after shrink-on-load, and a second open costs 0.1 ms and a second reading of the EXIF.
    """
    at = 2
    while True:
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


def png_frames(fd: int) -> int:
    """Frames of an APNG, 1 of any other PNG. Refuses a file that ends before IEND does.

    A decoder stops after the last line of pixels, so nobody else notices a missing end.
    """
    at, declared, controls = 8, 0, 0
    while True:
        head = os.pread(fd, 12, at)
        if len(head) < 12:
            raise Rejected("damaged-image")
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind == b"IEND":
            # An animation that contradicts itself is shown as its default image.
            return declared if declared and declared == controls else 1
        if kind == b"acTL":
            declared = int.from_bytes(head[8:12], "big")
        elif kind == b"fcTL":
            controls += 1
        at += 12 + length
