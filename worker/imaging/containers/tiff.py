"""Reads and writes TIFF directories (TIFF 6.0, section 2; BigTIFF). EXIF consists of them too.

Probes, renditions and the removal of locations read directories here. Each caller limits the entries that it accepts,
and decides how to handle a damaged directory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Literal, NamedTuple

from worker.file_headers import Read

# Entries of all pages of a TIFF together, with 15 or so each. Directories may overlap, so they are bounded: 0.2 s.
MAX_ENTRIES = 300_000

# Bytes of a structure that include its byte order, its kind, and the offset of the first directory.
HEAD_BYTES = 16

Order = Literal["little", "big"]

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, SRATIONAL, IFD, UTF8 = 1, 2, 3, 4, 5, 7, 10, 13, 129
# Type to bytes of a value and struct code; rationals are pairs. UTF8 is of EXIF 3.0.
TYPES: dict[int, tuple[int, str]] = {
    BYTE: (1, "B"),
    ASCII: (1, "s"),
    SHORT: (2, "H"),
    LONG: (4, "I"),
    RATIONAL: (8, "II"),
    6: (1, "b"),
    UNDEFINED: (1, "B"),
    8: (2, "h"),
    9: (4, "i"),
    SRATIONAL: (8, "ii"),
    11: (4, "f"),
    12: (8, "d"),
    IFD: (4, "I"),
    16: (8, "Q"),
    17: (8, "q"),
    18: (8, "Q"),
    UTF8: (1, "s"),
}
BIG_TIFF_TYPES = frozenset({16, 17, 18})
VALUE_BYTES = {kind: size for kind, (size, _) in TYPES.items()}


class Entry(NamedTuple):
    """`kind` is the type. `field` has the values, or their offset if they are larger than the field."""

    tag: int
    kind: int
    value_count: int
    field: bytes

    @property
    def size(self) -> int:
        """Bytes of all values; 0 for unknown types."""
        return self.value_count * VALUE_BYTES.get(self.kind, 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """How numbers are stored: their byte order, also as `struct` writes it, and the bytes of a directory's count, of
    an offset and of an entry.
    """

    order: Order
    struct_order: str
    count_bytes: int
    offset_bytes: int
    entry_struct: struct.Struct

    @property
    def entry_bytes(self) -> int:
        return self.entry_struct.size

    def number(self, data: bytes) -> int:
        return int.from_bytes(data, self.order)

    def pointer(self, entry: Entry) -> int:
        """Returns the offset of the directory that an entry points to. BigTIFF may store 32 bits, in the first
        bytes.
        """
        return self.number(entry.field[:4] if entry.kind in {LONG, IFD} else entry.field)

    def pack(self, entry: Entry) -> bytes:
        return self.entry_struct.pack(*entry)

    def read_value(self, read: Read, entry: Entry, max_bytes: int) -> bytes:
        """Returns the bytes of an entry's values, at most `max_bytes`, and fewer if the file ends before."""
        size = entry.size
        if size <= self.offset_bytes:
            return entry.field[: min(size, max_bytes)]
        return read(min(size, max_bytes), self.number(entry.field))


# By the first bytes of a structure; those with a + are BigTIFF.
LAYOUTS = {
    b"II*\0": Layout("little", "<", 2, 4, struct.Struct("<HHI4s")),
    b"MM\0*": Layout("big", ">", 2, 4, struct.Struct(">HHI4s")),
    b"II+\0": Layout("little", "<", 8, 8, struct.Struct("<HHQ8s")),
    b"MM\0+": Layout("big", ">", 8, 8, struct.Struct(">HHQ8s")),
}


class Directory(NamedTuple):
    """`entry_count` is what the directory says, and `entries` the ones that were read: fewer if the file ends before,
    or if there are more than the reader accepts. They start at the offset `start`.

    `following` is the offset of the next directory, 0 if there is none, and None if not all of this one was read.
    """

    start: int
    entry_count: int
    entries: list[Entry]
    following: int | None


def read_header(read: Read) -> tuple[Layout, int] | None:
    """Returns the layout of a structure and the offset of its first directory, or None if this is not a TIFF."""
    head = read(HEAD_BYTES, 0)
    layout = LAYOUTS.get(head[:4])
    if layout is None or len(head) < 2 * layout.offset_bytes:
        return None
    return layout, layout.number(head[layout.offset_bytes : 2 * layout.offset_bytes])


def read_directory(read: Read, layout: Layout, at: int, *, max_entries: int) -> Directory:
    """Reads the directory at this offset. It is empty and has no following one if the file ends before it."""
    start = at + layout.count_bytes
    counted = read(layout.count_bytes, at)
    if len(counted) < layout.count_bytes:
        return Directory(start, 0, [], None)
    count = layout.number(counted)
    size = layout.entry_bytes * min(count, max(max_entries, 0))
    table = read(size + layout.offset_bytes, start)
    complete_bytes = min(size, len(table) // layout.entry_bytes * layout.entry_bytes)
    entries = [*starmap(Entry, layout.entry_struct.iter_unpack(table[:complete_bytes]))]
    is_complete = count <= max_entries and len(table) == size + layout.offset_bytes
    return Directory(start, count, entries, layout.number(table[size:]) if is_complete else None)


def walk_directories(read: Read, layout: Layout, at: int) -> Iterator[Directory]:
    """Yields the chain of directories from this offset on, up to one that was seen before or exceeds MAX_ENTRIES.

    A directory that is not completely in the file has no entries, and is the last one.
    """
    seen: set[int] = set()
    entries_left = MAX_ENTRIES
    while at and at not in seen:
        seen.add(at)
        directory = read_directory(read, layout, at, max_entries=entries_left)
        if directory.entry_count > entries_left:
            return
        if directory.following is None:
            directory = directory._replace(entries=[])
        yield directory
        entries_left -= max(len(directory.entries), 1)
        at = directory.following or 0


class Tag(NamedTuple):
    """A tag to write; `data` are the bytes of its values, in the order of the block."""

    tag: int
    kind: int
    value_count: int
    data: bytes


def write_block(order: Order, tags: Sequence[Tag], inner: Mapping[int, Sequence[Tag]]) -> bytes:
    """Returns a TIFF structure with these tags, and inner directories by the tags of their pointers."""
    struct_order = "<" if order == "little" else ">"
    first = sorted([*tags, *(Tag(pointer, LONG, 1, bytes(4)) for pointer in inner)])
    starts, end = {}, 8 + _directory_bytes(first)
    for pointer, inner_tags in inner.items():
        starts[pointer] = end
        end += _directory_bytes(inner_tags)
    first = [
        tag._replace(data=struct.pack(struct_order + "I", starts[tag.tag])) if tag.tag in starts else tag
        for tag in first
    ]
    head = struct.pack(struct_order + "2sHI", b"II" if order == "little" else b"MM", 42, 8)
    rest = [_pack_directory(struct_order, sorted(tags), starts[pointer]) for pointer, tags in inner.items()]
    return b"".join([head, _pack_directory(struct_order, first, 8), *rest])


def _directory_bytes(tags: Sequence[Tag]) -> int:
    return 2 + 12 * len(tags) + 4 + sum(_padded(len(tag.data)) for tag in tags if len(tag.data) > 4)


def _padded(size: int) -> int:
    return size + size % 2


def _pack_directory(struct_order: str, tags: Sequence[Tag], start: int) -> bytes:
    values_at = start + 2 + 12 * len(tags) + 4
    table, values = [struct.pack(struct_order + "H", len(tags))], []
    for tag, kind, count, data in tags:
        if len(data) <= 4:
            field = data.ljust(4, b"\0")
        else:
            field = struct.pack(struct_order + "I", values_at)
            values.append(data.ljust(_padded(len(data)), b"\0"))
            values_at += len(values[-1])
        table.append(struct.pack(struct_order + "HHI", tag, kind, count) + field)
    return b"".join([*table, bytes(4), *values])
