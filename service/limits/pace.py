"""The minimum pace of a transfer, so that a slow client or origin holds a connection or a slot for a bounded time."""

from __future__ import annotations

import time

MIN_BYTES_PER_S = 1024
# A transfer may be slower for this long, e.g. at its beginning or in a pause.
GRACE_S = 30.0


class Pace:
    """How many bytes a transfer has moved, and how long this side has waited for them.

    Only waits for the other side count, so a slow disk here does not end a transfer. Times are of the monotonic clock.
    """

    __slots__ = ("_grace_s", "_waited_s", "_waiting_since", "size")

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.size = 0
        self._grace_s = grace_s
        self._waited_s = 0.0
        self._waiting_since: float | None = None

    @property
    def waited_s(self) -> float:
        return self._waited_s + (0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since)

    @property
    def left_s(self) -> float:
        """For how long nothing may move until the transfer is too slow, or 0 if it is too slow already."""
        return max(0.0, max(self._grace_s, self.size / MIN_BYTES_PER_S) - self.waited_s)

    @property
    def bytes_per_s(self) -> float:
        """The average so far. The first second counts as a whole one, since a burst says little."""
        return self.size / max(1.0, self.waited_s)

    def begin_wait(self) -> None:
        """Does nothing if this side waits already."""
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()

    def end_wait(self, count: int) -> None:
        """Counts `count` bytes that moved meanwhile."""
        if self._waiting_since is not None:
            self._waited_s += time.monotonic() - self._waiting_since
            self._waiting_since = None
        self.size += count
