"""A private copy of a file, and regions of it, which may consist of several pieces."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from worker.imaging.containers.tiff import MAX_ENTRIES

_MAX_STEPS = MAX_ENTRIES
# The limit of bytes that are read and written, in sizes of the file. A file is read about once, unless structures
# overlap.
_READ_FACTOR = 4
_MIN_BYTES = 20_000_000


class Unreadable(Exception):
    """A structure extends beyond its bytes, or the limit of work for the file is reached."""


class Patch(NamedTuple):
    """Bytes that replace as many bytes at an offset of a file."""

    offset: int
    data: bytes


class Copy:
    """The bytes of a file, which are changed only in this copy; the patches are the difference.

    It counts all work, so that a file cannot cause more than its size justifies.
    """

    def __init__(self, data: mmap.mmap | bytearray) -> None:
        self.data = data
        self.size = len(data)
        self.steps_left = _MAX_STEPS
        self._bytes_left = _MIN_BYTES + _READ_FACTOR * self.size
        self._written: list[tuple[int, int]] = []

    def read(self, size: int, at: int) -> bytes:
        """Returns fewer bytes at the end of the file."""
        return bytes(self.data[at : at + size])

    def region(self, *pieces: tuple[int, int]) -> Region:
        """Returns the region of these pairs of start and end, clipped to the file."""
        return Region(self, ((max(0, start), min(end, self.size)) for start, end in pieces))

    def step(self, steps: int = 1) -> None:
        """Counts entries, segments or chunks. Raises Unreadable if the file has too many of them."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise Unreadable

    def spend(self, size: int) -> None:
        """Counts bytes that are read or written. Raises Unreadable if they are too many for the file."""
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise Unreadable

    def write(self, at: int, data: bytes) -> None:
        if self.data[at : at + len(data)] != data:
            self.data[at : at + len(data)] = data
            self._written.append((at, at + len(data)))

    @property
    def changes(self) -> int:
        """The number of writes that changed a byte."""
        return len(self._written)

    def patches(self) -> list[Patch]:
        """Returns the changes in the order of the file, without overlaps."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(self._written):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        return [Patch(start, bytes(self.data[start:end])) for start, end in merged]


class Region:
    """Bytes of a copy. Offsets start at 0 and continue over the pieces."""

    def __init__(self, copy: Copy, pieces: Iterable[tuple[int, int]]) -> None:
        self.copy = copy
        self._pieces = [(start, end) for start, end in pieces if start < end]
        self._ends = list(accumulate(end - start for start, end in self._pieces))
        self.size = self._ends[-1] if self._ends else 0

    def read(self, size: int, at: int) -> bytes:
        """Returns fewer bytes at the end of the region."""
        pieces = list(self._pieces_within(at, size))
        self.copy.spend(sum(end - start for start, end in pieces))
        return b"".join(self.copy.read(end - start, start) for start, end in pieces)

    def read_all(self) -> bytes:
        return self.read(self.size, 0)

    def number(self, size: int, at: int) -> int:
        """Returns a big-endian number. Raises Unreadable if it is not within the region."""
        data = self.read(size, at)
        if len(data) < size:
            raise Unreadable
        return int.from_bytes(data)

    def write(self, data: bytes, at: int) -> None:
        """Writes bytes, without those beyond the end of the region."""
        self.copy.spend(len(data))
        for start, end in self._pieces_within(at, len(data)):
            self.copy.write(start, data[: end - start])
            data = data[end - start :]

    def fill(self, at: int, size: int, byte: bytes = b"\0") -> None:
        self.write(byte * max(0, min(size, self.size - at)), at)

    def part(self, at: int, size: int) -> Region:
        """Returns the region from an offset on, clipped to this region."""
        return Region(self.copy, self._pieces_within(at, size))

    def _pieces_within(self, at: int, size: int) -> Iterator[tuple[int, int]]:
        """Yields start and end, in the file, of the pieces of a part. Raises Unreadable at a negative offset."""
        if at < 0:
            raise Unreadable
        number = bisect_right(self._ends, at)
        while size > 0 and number < len(self._pieces):
            start, end = self._pieces[number]
            start = end - (self._ends[number] - at)
            end = min(end, start + size)
            yield start, end
            size -= end - start
            at += end - start
            number += 1
