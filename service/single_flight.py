"""Work that many requests want at the same time, and that is done once for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """One call at a time: its result goes to all who ask while it runs, and for `ttl_s` after its end.

    A call that hangs is not cancelled, since a thread that waits for a disk cannot be; it holds one task and perhaps
    one thread, however many ask.
    """

    def __init__(self, timeout_s: float, *, ttl_s: float = 0) -> None:
        self.ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._running: asyncio.Task[Result] | None = None
        self._deadline = 0.0
        self._ended_at = 0.0

    async def get(self, call: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Raises TimeoutError, at once if the call under way is older than the time limit, and what the call raises."""
        if self._running is None or (self._running.done() and not self._is_kept(self._running)):
            self._deadline = time.monotonic() + self._timeout_s
            self._running = asyncio.create_task(call())
            self._running.add_done_callback(self._note_end)
        if self._running.done():
            return self._running.result()
        async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
            return await asyncio.shield(self._running)

    def _is_kept(self, call: asyncio.Task[Result]) -> bool:
        is_good = not call.cancelled() and call.exception() is None
        return is_good and time.monotonic() < self._ended_at + self.ttl_s

    def _note_end(self, call: asyncio.Task[Result]) -> None:
        self._ended_at = time.monotonic()
        if not call.cancelled():
            call.exception()  # all who asked may have left, and asyncio would log it
