"""Directories of a TIFF or BigTIFF file (TIFF 6.0, section 2): their entries, and whether all they name is there."""

from __future__ import annotations

import operator
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

# Of all pages of a TIFF together, with 15 or so each; directories may lie on each other. 0.2 s.
MAX_ENTRIES = 300_000
# Places and sizes of strips and tiles, and places of inner directories, of a file: 0.1 s.
_MAX_NUMBERS = 2_000_000
_MAX_METADATA_ENTRIES = 512
# A file that lost all but this part of its bytes (1 in 40) has next to nothing of its pixels left.
_MAX_LOSS = 40

# Of the head of a structure: its byte order, its kind, and where the first directory is.
HEAD_BYTES = 16

Order = Literal["little", "big"]
# Answers up to this many bytes (first parameter) at an offset (second).
Read = Callable[[int, int], bytes]

# Types to bytes of a value.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_ARRAY_CODES = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_STRIPS = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles
_COMPRESSION, _PHOTOMETRIC, _DNG_VERSION = 259, 262, 50706
_SUB_DIRECTORIES, _METADATA = 330, (34665, 34853, 40965)  # EXIF, GPS, interoperability
_LONGS = frozenset({4, 13})  # LONG and IFD


class CutShort(Exception):
    """The file ends before what its directories name."""


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


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that lies at `at`. `field` is the value, or where it lies if it is larger than the field."""

    at: int
    tag: int
    kind: int
    count: int
    field: bytes

    @property
    def size(self) -> int:
        """Bytes of all values; 0 for types that are not known."""
        return self.count * _TYPE_BYTES.get(self.kind, 0)


@dataclass(frozen=True, slots=True)
class Directory:
    """`whole` is False if the file ends before it does: then it has no entries."""

    entries: list[Entry]
    following: int
    whole: bool = True


def walk_directories(read: Read, size: int, layout: Layout, at: int) -> Iterator[Directory]:
    """The directories that follow each other from this place on, up to one that was seen before."""
    seen: set[int] = set()
    left = MAX_ENTRIES
    while at and at not in seen:
        seen.add(at)
        directory = _read_directory(read, size, layout, at, left)
        if directory is None:
            return
        yield directory
        left -= max(len(directory.entries), 1)
        at = directory.following


def _read_directory(read: Read, size: int, layout: Layout, at: int, limit: int) -> Directory | None:
    """None if it has more entries than `limit`."""
    start = at + layout.count
    if start > size:
        return Directory([], 0, whole=False)
    length = layout.number(read(layout.count, at)) * layout.entry
    if length > limit * layout.entry:
        return None
    if start + length + layout.word > size:
        return Directory([], 0, whole=False)
    table = read(length + layout.word, start)
    places = range(start, start + length, layout.entry)
    fields = layout.packed.iter_unpack(table[:length])
    entries = [Entry(place, *values) for place, values in zip(places, fields, strict=True)]
    return Directory(entries, layout.number(table[length:]))


@dataclass(slots=True)
class Contents:
    """The number of pages; the codes of their compressions; those of photometric interpretations, of the directories
    inside of pages too; and whether there is a version of DNG.
    """

    pages: int = 0
    compressions: set[int] = field(default_factory=set)
    photometrics: set[int] = field(default_factory=set)
    is_dng: bool = False


def read_contents(read: Read, size: int, *, max_pages: int) -> Contents:
    """Reads no further than one page more than `max_pages`.

    Raises CutShort if a directory, a value, a strip or a tile goes on behind the end of a file of `size` bytes: of all
    pages, of the directories inside of them, and of EXIF.
    """
    layout = LAYOUTS[read(4, 0)]
    walk = _Walk(read, size, layout)
    walk.read_pages(layout.first(read(HEAD_BYTES, 0)), max_pages)
    return walk.contents


@dataclass(slots=True)
class _Walk:
    read: Read
    size: int
    layout: Layout
    contents: Contents = field(default_factory=Contents)
    entries_left: int = MAX_ENTRIES
    numbers_left: int = _MAX_NUMBERS

    def read_pages(self, first: int, max_pages: int) -> None:
        """All pages in a row, and before the next one what is inside of the last."""
        seen: set[int] = set()
        pending = [(first, True)]
        while pending and self.contents.pages <= max_pages:
            at, is_page = pending.pop()
            if not at or at in seen:
                continue
            seen.add(at)
            directory = self._read_directory(at, MAX_ENTRIES)
            if directory is None:
                return
            self.contents.pages += is_page
            inner = self._read_page(directory, is_page=is_page)
            pending += [(directory.following, is_page), *((at, False) for at in inner)]

    def _read_directory(self, at: int, limit: int) -> Directory | None:
        """None if it has more entries than `limit`, or than may still be read of this file."""
        directory = _read_directory(self.read, self.size, self.layout, at, min(limit, self.entries_left))
        self.entries_left -= 1 if directory is None else max(len(directory.entries), 1)
        return directory

    def _read_page(self, page: Directory, *, is_page: bool) -> array[int]:
        """Returns where the directories inside of it are."""
        self._require_values(page)
        by_tag = {entry.tag: entry for entry in page.entries}
        contents = self.contents
        contents.is_dng |= _DNG_VERSION in by_tag
        if _PHOTOMETRIC in by_tag:
            contents.photometrics.update(self._numbers(by_tag[_PHOTOMETRIC], limit=1))
        if is_page and _COMPRESSION in by_tag:
            contents.compressions.update(self._numbers(by_tag[_COMPRESSION], limit=1))
        for offsets, counts in _STRIPS:
            if offsets in by_tag and counts in by_tag:
                self._require_strips(by_tag[offsets], by_tag[counts])
        for tag in _METADATA:
            if tag in by_tag:
                self._require_metadata(self.layout.offset(by_tag[tag].kind, by_tag[tag].field))
        return self._numbers(by_tag[_SUB_DIRECTORIES]) if _SUB_DIRECTORIES in by_tag else array("I")

    def _require_values(self, directory: Directory) -> None:
        if not directory.whole:
            raise CutShort
        for entry in directory.entries:
            if entry.size > self.layout.word and self._is_cut(self.layout.number(entry.field), entry.size):
                raise CutShort

    def _is_cut(self, at: int, size: int) -> bool:
        """Whether that was in the file once. What lies far away was never there: metadata may lie."""
        return at + size > self.size and at + size <= self.size * _MAX_LOSS

    def _require_metadata(self, at: int) -> None:
        """Writers that do not know it leave its place as it was: what is no directory says nothing."""
        if at > self.size * _MAX_LOSS:
            return
        directory = self._read_directory(at, _MAX_METADATA_ENTRIES)
        if directory is None:
            return
        tags = [entry.tag for entry in directory.entries]
        if tags == sorted(tags) and all(entry.size for entry in directory.entries):
            self._require_values(directory)

    def _require_strips(self, offsets: Entry, counts: Entry) -> None:
        if max(map(operator.add, self._numbers(offsets), self._numbers(counts)), default=0) > self.size:
            raise CutShort

    def _numbers(self, entry: Entry, limit: int = _MAX_NUMBERS) -> array[int]:
        """The first values of an entry whose type is one of whole numbers. None of others, and none if they are more
        than may still be read of this file: then the decoder finds out.
        """
        numbers = array(_ARRAY_CODES.get(entry.kind, "B"))
        count = min(entry.count, limit)
        self.numbers_left -= count
        if entry.kind in _ARRAY_CODES and self.numbers_left >= 0:
            at, size = self.layout.number(entry.field), count * numbers.itemsize
            data = entry.field[:size] if entry.size <= self.layout.word else self.read(size, at)
            numbers.frombytes(data[: len(data) // numbers.itemsize * numbers.itemsize])
            if self.layout.order != sys.byteorder:
                numbers.byteswap()
        return numbers
