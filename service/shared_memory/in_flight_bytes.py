"""The bytes of each account that are in flight to the API processes of one machine, in shared memory.

Each process writes its own region and reads the others. There is no lock: a reader may get a sum that is some
microseconds old.
"""

from __future__ import annotations

import mmap
import os
from typing import Self

from service.shared_memory.memory import create_memory

# Maximum accounts with uploads in flight to one process. Further accounts are counted in that process only.
SLOTS = 512
_CELL_BYTES = 8
# The highest number of slots ever in use, then an account and its bytes for each slot.
_REGION_CELLS = 1 + 2 * SLOTS
_REGION_BYTES = _CELL_BYTES * _REGION_CELLS


class InFlightBytes:
    """`number` is the index of this process's region. The values of an earlier process in it are cleared."""

    def __init__(self, descriptor: int, number: int) -> None:
        size = os.fstat(descriptor).st_size
        cells = memoryview(mmap.mmap(descriptor, size)).cast("q")
        regions = [cells[start : start + _REGION_CELLS] for start in range(0, size // _CELL_BYTES, _REGION_CELLS)]
        self._own = regions.pop(number)
        self._others = regions
        self._own[0] = 0
        self._slots: dict[int, int] = {}
        self._free = list(range(SLOTS))[::-1]

    @classmethod
    def unshared(cls) -> Self:
        """Returns the counter of a process that does not share it."""
        descriptor = create(1)
        try:
            return cls(descriptor, 0)
        finally:
            os.close(descriptor)

    def put(self, account_id: int, count: int) -> None:
        """Publishes the bytes of the account that are in flight to this process."""
        slot = self._slots.get(account_id)
        if slot is None:
            if count == 0 or not self._free:
                return
            slot = self._slots[account_id] = self._free.pop()
            self._own[2 * slot + 2] = 0
            self._own[2 * slot + 1] = account_id
            self._own[0] = max(self._own[0], slot + 1)
        self._own[2 * slot + 2] = count
        if count == 0:
            self._free.append(self._slots.pop(account_id))

    def count_others(self, account_id: int) -> int:
        """Returns the account's bytes in flight to the other processes."""
        total = 0
        for region in self._others:
            if slots := region[0]:
                accounts = region[1 : 2 * slots + 1].tolist()
                total += sum(accounts[place + 1] for place in range(0, 2 * slots, 2) if accounts[place] == account_id)
        return total


def create(processes: int) -> int:
    """Returns the descriptor of memory for that many processes to inherit. The caller closes it."""
    return create_memory("bytes in flight", processes * _REGION_BYTES)
