"""A private copy of a file, and stretches of it that read as one although they may lie in pieces."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from worker.imaging.containers.tiff import MAX_ENTRIES, Order

_MOST_STEPS = MAX_ENTRIES
# Bytes looked at, for each of the file's: a file is read about once, except by structures that lie on each other.
_MOST_READINGS = 4
_LEAST_BYTES = 20_000_000


class Unreadable(Exception):
    """A structure goes on where its bytes do not, or took all the work that a file is worth."""


class Patch(NamedTuple):
    """Bytes to put at an offset of a file in place of as many that are there."""

    offset: int
    data: bytes


class Copy:
    """The bytes of a file, to be changed in place; the file itself is not. Patches are what it differs in."""

    def __init__(self, data: mmap.mmap | bytearray) -> None:
        self.data = data
        self.size = len(data)
        self._written: list[tuple[int, int]] = []
        self._steps_left = _MOST_STEPS
        self._bytes_left = _LEAST_BYTES + _MOST_READINGS * self.size

    def read(self, size: int, at: int) -> bytes:
        """Fewer bytes at the end of the file."""
        return bytes(self.data[at : at + size])

    def region(self, *pieces: tuple[int, int]) -> Region:
        """Of pairs of start and end, as far as they lie in the file."""
        return Region(self, ((max(0, start), min(end, self.size)) for start, end in pieces))

    def step(self, steps: int = 1) -> None:
        """Account for entries, segments or chunks. Raises Unreadable when a file has too many of them."""
        self._steps_left -= steps
        if self._steps_left < 0:
            raise Unreadable

    def spend(self, size: int) -> None:
        """Account for bytes that are read or written. Raises Unreadable when they are too many for the file."""
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise Unreadable

    def write(self, at: int, data: bytes) -> None:
        if self.data[at : at + len(data)] != data:
            self.data[at : at + len(data)] = data
            self._written.append((at, at + len(data)))

    @property
    def changed(self) -> int:
        """How many times something was written that was not there."""
        return len(self._written)

    def patches(self) -> list[Patch]:
        """In the order of the file; no two overlap."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(self._written):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        return [Patch(start, bytes(self.data[start:end])) for start, end in merged]


class Region:
    """Its offsets start at 0 and go on over its pieces."""

    def __init__(self, copy: Copy, pieces: Iterable[tuple[int, int]]) -> None:
        self.copy = copy
        self.pieces = [(start, end) for start, end in pieces if start < end]
        self._ends = list(accumulate(end - start for start, end in self.pieces))
        self.size = self._ends[-1] if self._ends else 0

    def read(self, at: int, size: int) -> bytes:
        """Fewer bytes at the end of the region."""
        pieces = list(self._within(at, size))
        self.copy.spend(sum(end - start for start, end in pieces))
        return b"".join(self.copy.read(end - start, start) for start, end in pieces)

    def number(self, at: int, size: int, order: Order = "big") -> int:
        """Raises Unreadable where it does not lie in the region."""
        data = self.read(at, size)
        if len(data) < size:
            raise Unreadable
        return int.from_bytes(data, order)

    def put(self, at: int, data: bytes) -> None:
        """What goes beyond the region is left out."""
        self.copy.spend(len(data))
        for start, end in self._within(at, len(data)):
            self.copy.write(start, data[: end - start])
            data = data[end - start :]

    def fill(self, at: int, size: int, byte: bytes = b"\0") -> None:
        self.put(at, byte * max(0, min(size, self.size - at)))

    def part(self, at: int, size: int) -> Region:
        """As far as it lies in the region."""
        return Region(self.copy, self._within(at, size))

    def _within(self, at: int, size: int) -> Iterator[tuple[int, int]]:
        """Where that lies in the file."""
        if at < 0:
            raise Unreadable
        number = bisect_right(self._ends, at)
        while size > 0 and number < len(self.pieces):
            start, end = self.pieces[number]
            start = end - (self._ends[number] - at)
            end = min(end, start + size)
            yield start, end
            size -= end - start
            at += end - start
            number += 1
