"""Locations in a GIF: the application extension that holds XMP."""

from __future__ import annotations

from contextlib import suppress

from worker.imaging.containers.gif import blocks
from worker.imaging.location_removal.regions import Copy
from worker.imaging.location_removal.xmp import blank_xmp

_XMP_HEAD = b"\x21\xff\x0bXMP DataXMP"
# The packet is stored unchanged, so decoders interpret its characters as lengths of blocks. From any position in this
# trailer, they reach the end of the extension (XMP specification, part 3, 1.1.2).
_TRAILER = bytes([1, *range(255, -1, -1), 0])


def blank_gif(copy: Copy) -> None:
    with suppress(IndexError):
        for start, end in blocks(copy.data):
            copy.step()
            if copy.read(len(_XMP_HEAD), start) == _XMP_HEAD:
                blank_xmp(copy.region(*_packet_pieces(copy, start + len(_XMP_HEAD), end)))


def _packet_pieces(copy: Copy, start: int, end: int) -> list[tuple[int, int]]:
    """Returns start and end of each piece of the packet in the blocks between these offsets."""
    if copy.read(len(_TRAILER), end - len(_TRAILER)) == _TRAILER:
        return [(start, end - len(_TRAILER))]
    pieces, at = [], start
    while size := copy.data[at]:
        copy.step()
        pieces.append((at + 1, at + 1 + size))
        at += size + 1
    return pieces
