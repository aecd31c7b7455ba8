"""Reads the first bytes of a file: its width and height, and of what kind of JPEG it is.

Plain Python without a decoder, so that the worker can check the results of decoders with it. It does not use the
parsers of `worker.imaging.containers`: the worker process never loads `worker.imaging`, and a check takes only a few
small reads of any file.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from io import FileIO
from typing import NamedTuple, TypeAlias

from service.media_types import HEAD_BYTES, sniff

# Returns up to `size` bytes (first parameter) from an offset (second), and fewer at the end of the file, like os.pread.
Read: TypeAlias = Callable[[int, int], bytes]

# Offsets of BigTIFF have 64 bits. No file reaches so far, and os.pread raises OverflowError from 1 << 63 on.
_MAX_OFFSET = 1 << 62

# Bytes of a PNG, GIF or WebP that include its width and height.
_SIZE_BYTES = 30
# Segments before the start of frame. A camera writes about 10.
_MAX_SEGMENTS = 100
# SOF0 to SOF15, without DHT, JPG and DAC (ITU-T T.81, table B.1).
SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MARKERS_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_SOS, _EOI, _FILL = 0xDA, 0xD9, 0xFF
_MIN_MARKER = 0xC0
_ISPE = re.compile(rb"ispe(?=.{4}(.{4})(.{4}))", re.DOTALL)


class JpegFrame(NamedTuple):
    """`marker` is the second byte of the start of frame: 0xC0 is baseline."""

    marker: int
    width: int
    height: int


def bytes_reader(data: bytes) -> Read:
    return lambda size, at: data[at : at + size]


def file_reader(fd: int) -> Read:
    """Like os.pread, but accepts any offset: returns nothing beyond the largest possible file."""
    return lambda size, at: os.pread(fd, size, at) if at <= _MAX_OFFSET else b""


def read_size(format_name: str, read: Read) -> tuple[int, int] | None:
    """Returns width and height as stored.

    None if the format has no fixed place for them, or if they are missing or 0.
    """
    try:
        match format_name:
            case "jpeg":
                frame = jpeg_frame(read)
                size = (frame.width, frame.height) if frame else (0, 0)
            case "png":
                size = png_size(read(_SIZE_BYTES, 0))
            case "gif":
                size = gif_size(read(_SIZE_BYTES, 0))
            case "webp":
                size = webp_size(read(_SIZE_BYTES, 0))
            case _:
                return None
    except struct.error:
        return None
    return size if min(size) > 0 else None


def png_size(head: bytes) -> tuple[int, int]:
    """Raises struct.error if `head` is too short."""
    width, height = struct.unpack_from(">II", head, 16)
    return width, height


def gif_size(head: bytes | bytearray) -> tuple[int, int]:
    """Returns width and height of the screen. Raises struct.error if `head` is too short."""
    width, height = struct.unpack_from("<HH", head, 6)
    return width, height


def webp_size(head: bytes) -> tuple[int, int]:
    """Raises struct.error if `head` is too short."""
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def avif_size(data: bytes) -> tuple[int, int]:
    """Returns the size of the largest item, since the first one may be a thumbnail; (0, 0) if there is none."""
    sizes = [(int.from_bytes(size[1]), int.from_bytes(size[2])) for size in _ISPE.finditer(data)]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


def jpeg_frame(read: Read) -> JpegFrame | None:
    """Returns the first frame; None if anything but segments precedes it, or too many of them."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        head = read(9, at)
        if len(head) < 9 or head[0] != 0xFF or head[1] in {_SOS, _EOI}:
            return None
        if head[1] in SOF_MARKERS:
            height, width = struct.unpack_from(">HH", head, 5)
            return JpegFrame(head[1], width, height)
        if head[1] == _FILL:
            at += 1
        elif head[1] in _MARKERS_WITHOUT_LENGTH:
            at += 2
        elif head[1] < _MIN_MARKER or (length := int.from_bytes(head[2:4], "big")) < 2:
            return None
        else:
            at += 2 + length
    return None


class PictureFile(FileIO):
    """An open file with the format and size from its first bytes, which the results of a decoder are checked against.

    `format` is None if it is unknown, and `header_size` (width, height) if the first bytes do not contain it.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            self.size = os.fstat(self.fileno()).st_size
            self._head = os.pread(self.fileno(), HEAD_BYTES, 0)
            self.format = sniff(self._head)
            self.header_size = read_size(self.format, self._read_at) if self.format else None
        except BaseException:
            self.close()
            raise

    def _read_at(self, size: int, at: int) -> bytes:
        """Avoids system calls: each may pass the interpreter's lock to another thread and wait for it."""
        if at + size <= len(self._head):
            return self._head[at : at + size]
        return os.pread(self.fileno(), size, at)
