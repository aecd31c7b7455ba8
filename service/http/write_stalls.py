"""Detects clients that stop reading: a response without progress for too long ends its connection.

The write buffer of the transport alone does not show progress: the kernel accepts megabytes at once, and frees them
late. So progress is counted in bytes that the peer has acknowledged.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from contextlib import suppress

from service.limits.slots import Pace

# The maximum time in which a client acknowledges nothing.
WRITE_STALL_TIMEOUT_S = 30
# Progress is checked several times within the timeout, so that a stalled connection ends soon after it.
CHECKS_PER_TIMEOUT = 6


def unacked_bytes(descriptor: int) -> int:
    """Returns the bytes of a socket that the peer has not acknowledged; 0 if the kernel does not report them."""
    count = bytes(struct.calcsize("i"))
    with suppress(OSError):
        count = fcntl.ioctl(descriptor, termios.TIOCOUTQ, count)
    return int(struct.unpack("i", count)[0])


class WriteStallWatch:
    """Watches a transport from `start` until `stop`, while it has bytes to write.

    Calls `on_stall` with the number of unsent bytes if the client acknowledges nothing for `timeout_s`, or is slower
    than the minimum pace. `transport.close` would wait for such a client forever.
    """

    def __init__(self, transport: asyncio.Transport, timeout_s: float, on_stall: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        self._timeout_s = timeout_s
        self._on_stall = on_stall
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        pace = Pace(self._timeout_s)
        pace.start_wait()
        self._schedule(self._count_unsent(), self._loop.time(), pace)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, unsent: int, progress_at: float, pace: Pace) -> None:
        interval_s = self._timeout_s / CHECKS_PER_TIMEOUT
        self._timer = self._loop.call_later(interval_s, self._check, unsent, progress_at, pace)

    def _check(self, before: int, progress_at: float, pace: Pace) -> None:
        unsent, now = self._count_unsent(), self._loop.time()
        if unsent < before:
            progress_at = now
            pace.end_wait(before - unsent)
            pace.start_wait()
        if now - progress_at < self._timeout_s and pace.remaining_s > 0:
            self._schedule(unsent, progress_at, pace)
        else:
            self._on_stall(unsent)

    def _count_unsent(self) -> int:
        return self._transport.get_write_buffer_size() + unacked_bytes(self._descriptor)


async def wait_writable(descriptor: int, sent: int, pace: Pace, timeout_s: float) -> None:
    """Waits until a socket is writable again. `sent` counts the bytes that the kernel has accepted so far, `pace` those
    that the client has acknowledged.

    Continues to wait if the client acknowledges some bytes: the kernel frees a large part of its buffer before it
    accepts more. Raises ConnectionResetError if the client stalls for `timeout_s`, or is slower than the minimum pace.
    """
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(descriptor, writable.set)
    try:
        unacked, progress_at = unacked_bytes(descriptor), loop.time()
        while not writable.is_set():
            pace.start_wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pace.remaining_s, timeout_s / CHECKS_PER_TIMEOUT)):
                    await writable.wait()
            before, unacked = unacked, unacked_bytes(descriptor)
            pace.end_wait(max(0, sent - unacked - pace.size))
            if unacked < before:
                progress_at = loop.time()
            if not writable.is_set() and (loop.time() - progress_at >= timeout_s or pace.remaining_s == 0):
                raise ConnectionResetError("the client reads nothing, or too slowly")
    finally:
        loop.remove_writer(descriptor)
