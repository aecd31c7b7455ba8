"""Reads what a TIFF contains according to its directories, and checks that the file has all of it."""

from __future__ import annotations

import operator
import sys
from array import array
from dataclasses import dataclass, field

from worker.file_headers import Read
from worker.imaging.containers.tiff import MAX_ENTRIES, Directory, Entry, Layout, read_directory, read_header

# Offsets and sizes of strips and tiles, and offsets of inner directories, of one file: 0.1 s.
_MAX_NUMBERS = 2_000_000
_MAX_METADATA_ENTRIES = 512
# A file that has only 1 in 40 of its bytes has almost none of its pixels.
_MAX_LOSS = 40

_ARRAY_CODES = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_STRIPS = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles
_COMPRESSION, _PHOTOMETRIC, _DNG_VERSION = 259, 262, 50706
_SUB_DIRECTORIES, _METADATA = 330, (34665, 34853, 40965)  # EXIF, GPS, interoperability


class Truncated(Exception):
    """The file ends before data that its directories refer to."""


@dataclass(slots=True)
class Contents:
    """`compressions` are the codes of all pages, and `photometrics` also those of the directories inside pages."""

    pages: int = 0
    compressions: set[int] = field(default_factory=set)
    photometrics: set[int] = field(default_factory=set)
    is_dng: bool = False


def read_contents(read: Read, size: int, *, max_pages: int) -> Contents:
    """Returns the contents. Reads at most one page more than `max_pages`.

    Raises Truncated if a directory, a value, a strip or a tile extends beyond the end of a file of `size` bytes: of any
    page, of the directories inside it, or of EXIF.
    """
    header = read_header(read)
    if header is None:
        raise Truncated
    layout, first = header
    walk = _Walk(read, size, layout)
    walk.read_pages(first, max_pages)
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
        """Reads the pages in order, and the directories inside a page before the next page."""
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
            pending += [(directory.following or 0, is_page), *((at, False) for at in inner)]

    def _read_directory(self, at: int, limit: int) -> Directory | None:
        """Returns None if it has more entries than `limit`, or than may still be read of this file."""
        limit = min(limit, self.entries_left)
        directory = read_directory(self.read, self.layout, at, max_entries=limit)
        is_read = directory.following is not None
        self.entries_left -= max(directory.entry_count, 1) if is_read else 1
        return None if directory.entry_count > limit else directory

    def _read_page(self, page: Directory, *, is_page: bool) -> array[int]:
        """Checks a page. Returns the offsets of the directories inside it."""
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
                self._require_metadata(self.layout.pointer(by_tag[tag]))
        return self._numbers(by_tag[_SUB_DIRECTORIES]) if _SUB_DIRECTORIES in by_tag else array("I")

    def _require_values(self, directory: Directory) -> None:
        if directory.following is None:
            raise Truncated
        for entry in directory.entries:
            if entry.size > self.layout.offset_bytes and self._is_truncated(
                self.layout.number(entry.field), entry.size
            ):
                raise Truncated

    def _is_truncated(self, at: int, size: int) -> bool:
        """Returns whether these bytes were cut off. Offsets far beyond the end are wrong metadata instead."""
        return at + size > self.size and at + size <= self.size * _MAX_LOSS

    def _require_metadata(self, at: int) -> None:
        """Checks a metadata directory. Ignores an invalid one: programs that do not know metadata copy stale
        pointers.
        """
        if at > self.size * _MAX_LOSS:
            return
        directory = self._read_directory(at, _MAX_METADATA_ENTRIES)
        if directory is None:
            return
        if directory.following is None:
            raise Truncated
        tags = [entry.tag for entry in directory.entries]
        if tags == sorted(tags) and all(entry.size for entry in directory.entries):
            self._require_values(directory)

    def _require_strips(self, offsets: Entry, counts: Entry) -> None:
        if max(map(operator.add, self._numbers(offsets), self._numbers(counts)), default=0) > self.size:
            raise Truncated

    def _numbers(self, entry: Entry, limit: int = _MAX_NUMBERS) -> array[int]:
        """Returns the first values of an entry of whole numbers.

        Returns none if the type is another, or if the limit of values per file is reached: then only the decoder checks
        them.
        """
        numbers = array(_ARRAY_CODES.get(entry.kind, "B"))
        count = min(entry.value_count, limit)
        self.numbers_left -= count
        if entry.kind in _ARRAY_CODES and self.numbers_left >= 0:
            data = self.layout.read_value(self.read, entry, count * numbers.itemsize)
            numbers.frombytes(data[: len(data) // numbers.itemsize * numbers.itemsize])
            if self.layout.order != sys.byteorder:
                numbers.byteswap()
        return numbers
