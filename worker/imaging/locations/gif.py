"""Places in a GIF: the application extension that holds XMP."""

from __future__ import annotations

from contextlib import suppress

from worker.imaging.containers import colour_table_bytes
from worker.imaging.locations.regions import Copy
from worker.imaging.locations.xmp import blank_xmp

_XMP_HEAD = b"\x21\xff\x0bXMP DataXMP"
# The XMP specification (part 3) writes the packet as it is, so that its letters are taken for lengths of blocks, and
# behind it what leads to the end from wherever the last of them does.
_TRAILER = bytes([1, *range(255, -1, -1), 0])


def blank_gif(copy: Copy) -> None:
    with suppress(IndexError):
        at = 13 + colour_table_bytes(copy.data[10])
        while copy.data[at] in b"\x2c\x21":
            copy.step()
            if copy.data[at] == 0x2C:  # an image
                at = _skip_blocks(copy, at + 11 + colour_table_bytes(copy.data[at + 9]))
            elif copy.read(len(_XMP_HEAD), at) == _XMP_HEAD:
                at = _blank_blocks(copy, at + len(_XMP_HEAD))
            else:
                at = _skip_blocks(copy, at + 2)


def _skip_blocks(copy: Copy, at: int) -> int:
    while size := copy.data[at]:
        at += size + 1
    return at + 1


def _blank_blocks(copy: Copy, start: int) -> int:
    """Returns where they end, before and after."""
    pieces, at = [], start
    while size := copy.data[at]:
        copy.step()
        pieces.append((at + 1, at + 1 + size))
        at += size + 1
    end = at + 1
    if copy.read(len(_TRAILER), end - len(_TRAILER)) == _TRAILER:
        pieces = [(start, end - len(_TRAILER))]
    blank_xmp(copy.region(*pieces))
    return end
