"""Width and height in the header of a picture, by the formats that have them at a known place.

For those who check what a decoder says of it, and for pictures inside of others. Bytes of a file are read by
`read(size, at)`, which returns fewer at its end, as `os.pread` does.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

Read: TypeAlias = Callable[[int, int], bytes]

# A camera writes about 10 before the frame's.
_MAX_SEGMENTS = 100
# SOF0 to SOF15, but for DHT, JPG and DAC (ITU T.81, table B.1).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
_SCAN, _END, _FILL = 0xDA, 0xD9, 0xFF
_LEAST_MARKER = 0xC0
_HEAD_BYTES = 30
_ISPE = re.compile(rb"ispe(?=.{4}(.{4})(.{4}))", re.DOTALL)


class JpegFrame(NamedTuple):
    """`marker` is the second byte of the segment's: 0xC0 is baseline."""

    marker: int
    width: int
    height: int


def read_size(form: str, read: Read) -> tuple[int, int] | None:
    """Width and height as stored; None if the format has no fixed place for them, or nothing is there."""
    try:
        match form:
            case "jpeg":
                frame = jpeg_frame(read)
                size = (frame.width, frame.height) if frame else (0, 0)
            case "png":
                size = png_size(read(_HEAD_BYTES, 0))
            case "gif":
                size = gif_size(read(_HEAD_BYTES, 0))
            case "webp":
                size = webp_size(read(_HEAD_BYTES, 0))
            case _:
                return None
    except struct.error:
        return None
    return size if min(size) > 0 else None


def png_size(head: bytes) -> tuple[int, int]:
    """Raises struct.error if there is none."""
    width, height = struct.unpack_from(">II", head, 16)
    return width, height


def gif_size(head: bytes | bytearray) -> tuple[int, int]:
    """Width and height of the screen. Raises struct.error if there are none."""
    width, height = struct.unpack_from("<HH", head, 6)
    return width, height


def webp_size(head: bytes) -> tuple[int, int]:
    """Raises struct.error if there is none."""
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def avif_size(data: bytes) -> tuple[int, int]:
    """The largest of any item, since what comes first may be a thumbnail; 0 x 0 if there is none."""
    sizes = [(int.from_bytes(size[1]), int.from_bytes(size[2])) for size in _ISPE.finditer(data)]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


def jpeg_frame(read: Read) -> JpegFrame | None:
    """The first frame; None if something else than segments lies before it, or too many of them."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        head = read(9, at)
        if len(head) < 9 or head[0] != 0xFF or head[1] in {_SCAN, _END}:
            return None
        if head[1] in _FRAMES:
            height, width = struct.unpack_from(">HH", head, 5)
            return JpegFrame(head[1], width, height)
        if head[1] == _FILL:
            at += 1
        elif head[1] in _BARE:
            at += 2
        elif head[1] < _LEAST_MARKER or (length := int.from_bytes(head[2:4], "big")) < 2:
            return None
        else:
            at += 2 + length
    return None
