"""The least pace of a transfer: a slow client or origin holds a connection, and perhaps a place, for a bounded time."""

from __future__ import annotations

import time

MIN_BYTES_PER_S = 1024
# A transfer may be slower for this long, e.g. at its beginning or in a pause.
GRACE_S = 30.0


class Pace:
    """How much of a transfer has moved, and how long this side has waited for it.

    Only waits for the other side count, so a slow disk here ends no transfer. Times are of the monotonic clock.
    """

    __slots__ = ("_grace_s", "_since", "_waited_s", "size")

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.size = 0
        self._grace_s = grace_s
        self._waited_s = 0.0
        self._since: float | None = None

    @property
    def waited_s(self) -> float:
        return self._waited_s + (0.0 if self._since is None else time.monotonic() - self._since)

    @property
    def left_s(self) -> float:
        """After so long a wait the transfer is too slow, if nothing more moves; 0 if it is too slow already."""
        return max(0.0, max(self._grace_s, self.size / MIN_BYTES_PER_S) - self.waited_s)

    @property
    def bytes_per_s(self) -> float:
        """The average. The first second counts as a whole one: a burst says little."""
        return self.size / max(1.0, self.waited_s)

    def begin_wait(self) -> None:
        """Does nothing if this side waits already."""
        if self._since is None:
            self._since = time.monotonic()

    def end_wait(self, count: int) -> None:
        """`count` bytes have moved meanwhile."""
        if self._since is not None:
            self._waited_s += time.monotonic() - self._since
            self._since = None
        self.size += count
