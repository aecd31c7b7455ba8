"""Work that many requests want at the same time, and that is done once for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class SharedCall(Generic[Result]):
    """One call at a time: its result goes to all who ask while it runs.

    A call that hangs is not cancelled, since a thread that waits for a disk cannot be; it holds one task and perhaps
    one thread, however many ask.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._running: asyncio.Task[Result] | None = None
        self._deadline = 0.0

    async def get(self, call: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Raises TimeoutError, at once if the call under way is older than the time limit, and what the call raises."""
        if self._running is None or self._running.done():
            self._deadline = time.monotonic() + self._timeout_s
            self._running = asyncio.create_task(call())
            self._running.add_done_callback(_retrieve_error)
        async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
            return await asyncio.shield(self._running)


def _retrieve_error(task: asyncio.Task[Any]) -> None:
    """All who asked may have left, and asyncio would log it."""
    if not task.cancelled():
        task.exception()
