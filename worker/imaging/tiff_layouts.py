"""How TIFF structures lay out their directories: TIFF 6.0, which EXIF is too, and BigTIFF, in both byte orders."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

# Of the head of a structure: its byte order, its kind, and where the first directory is.
HEAD_BYTES = 16

_LONGS = frozenset({4, 13})  # LONG and IFD

Order = Literal["little", "big"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The byte order, also as `struct` writes it; bytes of the count of a directory, and of an offset; an entry, of
    tag, type, number of values, and what they are or where.
    """

    order: Order
    struct_order: str
    count: int
    word: int
    packed: struct.Struct

    @property
    def entry(self) -> int:
        return self.packed.size

    def number(self, word: bytes) -> int:
        return int.from_bytes(word, self.order)

    def offset(self, kind: int, field: bytes) -> int:
        """Where the value of an entry of this type is. BigTIFF may have an offset of 32 bits, in front."""
        return self.number(field[:4] if kind in _LONGS else field)

    def first(self, head: bytes) -> int:
        """Where the first directory is, by the first HEAD_BYTES."""
        return self.number(head[self.word : 2 * self.word])


# By the first bytes of a file; those with a + are BigTIFF.
LAYOUTS = {
    b"II*\0": Layout("little", "<", 2, 4, struct.Struct("<HHI4s")),
    b"MM\0*": Layout("big", ">", 2, 4, struct.Struct(">HHI4s")),
    b"II+\0": Layout("little", "<", 8, 8, struct.Struct("<HHQ8s")),
    b"MM\0+": Layout("big", ">", 8, 8, struct.Struct(">HHQ8s")),
}
