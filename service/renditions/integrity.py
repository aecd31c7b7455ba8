"""Checks whether the file of a rendition is complete.

Renditions are not synced, so a power cut may leave a truncated file under its final name. Every format defines its end;
a file that ends elsewhere is not served, and is rendered again. Only a few bytes of a file are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

from service.renditions.jobs import RenderOrder
from service.renditions.transformation import Format
from service.storage.interface import StoredFile

# Reads a number of bytes at an offset.
_Read: TypeAlias = Callable[[int, int], bytes]

_PNG_END = b"IEND\xaeB`\x82"
_MIN_BYTES = 16
# An AVIF of libheif has three boxes at its top level: ftyp, meta, mdat.
_MAX_BOXES = 16
_BOX_HEADER_BYTES = 8


def is_complete(order: RenderOrder, stored: StoredFile) -> bool:
    """Returns whether the file is complete. Blocks unless it is in memory; raises OSError."""
    if order.transformation is None:  # a copy of the original, of the same size
        return order.size in {0, stored.size}
    form, data = order.transformation.format, stored.data
    if data is not None:
        return _has_valid_end(form, stored.size, lambda size, offset: data[offset : offset + size])
    descriptor = os.open(stored.path, os.O_RDONLY)
    try:
        return _has_valid_end(form, stored.size, lambda size, offset: os.pread(descriptor, size, offset))
    finally:
        os.close(descriptor)


def _has_valid_end(form: Format, size: int, read: _Read) -> bool:
    if size < _MIN_BYTES:
        return False
    match form:
        case "jpeg":
            return read(2, size - 2) == b"\xff\xd9"
        case "png":
            return read(len(_PNG_END), size - len(_PNG_END)) == _PNG_END
        case "gif":
            return read(2, size - 2) == b"\x00;"  # the end of the last block, and the trailer
        case "webp":  # RIFF states its size without its first eight bytes
            return read(4, 0) == b"RIFF" and int.from_bytes(read(4, 4), "little") == size - 8
        case "avif":
            return _ends_with_box(b"mdat", size, read)


def _ends_with_box(kind: bytes, size: int, read: _Read) -> bool:
    """Returns whether the last box is of this kind and ends where the file does (ISO/IEC 14496-12, section 4.2)."""
    offset = 0
    for _ in range(_MAX_BOXES):
        header = read(16, offset)
        length = int.from_bytes(header[:4], "big")
        if length == 1:  # a size of 64 bits follows
            length = int.from_bytes(header[8:16], "big")
        if length < _BOX_HEADER_BYTES or offset + length > size:
            break
        offset += length
        if offset == size:
            return header[4:8] == kind
    return False
