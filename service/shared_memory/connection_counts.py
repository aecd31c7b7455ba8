"""The number of connections of each API process, in shared memory.

Otherwise the process that wakes up first would accept all connections of a burst, and the other CPUs would stay idle.
"""

from __future__ import annotations

import mmap
import os
from typing import Self

from service.shared_memory.memory import create_memory

_CELL_BYTES = 4
# Processes may differ by 3 connections and an eighth: an exact balance would delay a burst.
_SLACK, _SLACK_PART = 3, 8


class ConnectionCounts:
    """`number` is the index of this process's cell."""

    def __init__(self, descriptor: int, number: int) -> None:
        size = os.fstat(descriptor).st_size
        self._cells = memoryview(mmap.mmap(descriptor, size)).cast("I")
        self._number = number
        self._cells[number] = 0

    @classmethod
    def unshared(cls) -> Self:
        """Returns the counter of a process that does not share its socket."""
        descriptor = create(1)
        try:
            return cls(descriptor, 0)
        finally:
            os.close(descriptor)

    @property
    def held(self) -> int:
        """The number of connections of this process."""
        return self._cells[self._number]

    def add(self, connections: int) -> None:
        self._cells[self._number] += connections

    def is_ahead(self) -> bool:
        """Returns whether another process should accept the next connection."""
        least = min(self._cells)
        return self._cells[self._number] > least + _SLACK + least // _SLACK_PART


def create(processes: int) -> int:
    """Returns the descriptor of memory for that many processes to inherit. The caller closes it."""
    return create_memory("connection counts", processes * _CELL_BYTES)
