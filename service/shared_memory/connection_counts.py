"""How many connections each API process holds, in memory that they share.

The one that is awake first would otherwise take all that arrive together, and leave the other processors idle.
"""

from __future__ import annotations

import mmap
import os
from typing import Self

from service.shared_memory.memory import create_memory

_CELL_BYTES = 4
# Processes may differ by so many connections and this part of them: an exact balance would make a burst wait.
_SLACK, _SLACK_PART = 3, 8


class ConnectionCounts:
    """The cell `number` is this process's own, from 0."""

    def __init__(self, descriptor: int, number: int) -> None:
        size = os.fstat(descriptor).st_size
        self._cells = memoryview(mmap.mmap(descriptor, size)).cast("I")
        self._number = number
        self._cells[number] = 0

    @classmethod
    def alone(cls) -> Self:
        """For one process that shares its socket with no other."""
        descriptor = create(1)
        try:
            return cls(descriptor, 0)
        finally:
            os.close(descriptor)

    @property
    def held(self) -> int:
        """By this process."""
        return self._cells[self._number]

    def add(self, connections: int) -> None:
        self._cells[self._number] += connections

    def is_ahead(self) -> bool:
        """Whether another process should take the next connection."""
        least = min(self._cells)
        return self._cells[self._number] > least + _SLACK + least // _SLACK_PART


def create(processes: int) -> int:
    """A descriptor for as many processes to inherit. It is the caller's to close."""
    return create_memory("connection counts", processes * _CELL_BYTES)
