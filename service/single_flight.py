"""Single flight: concurrent requests for the same work share one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """One call at a time. Its result goes to all callers while it runs, and for `ttl_s` after it finished.

    A call that hangs is not cancelled, since a thread that waits for a disk cannot be. It holds one task and at most
    one thread, however many callers there are.
    """

    def __init__(self, timeout_s: float, *, ttl_s: float = 0) -> None:
        self.ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._running: asyncio.Task[Result] | None = None
        self._deadline = 0.0
        self._finished_at = 0.0

    async def get(self, call: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Returns the result. Raises what the call raises, and TimeoutError, at once if the call is overdue already."""
        if self._running is None or (self._running.done() and not self._is_fresh(self._running)):
            self._deadline = time.monotonic() + self._timeout_s
            self._running = asyncio.create_task(call())
            self._running.add_done_callback(self._on_done)
        if self._running.done():
            return self._running.result()
        async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
            return await asyncio.shield(self._running)

    def _is_fresh(self, call: asyncio.Task[Result]) -> bool:
        succeeded = not call.cancelled() and call.exception() is None
        return succeeded and time.monotonic() < self._finished_at + self.ttl_s

    def _on_done(self, call: asyncio.Task[Result]) -> None:
        self._finished_at = time.monotonic()
        if not call.cancelled():
            call.exception()  # otherwise asyncio logs it if no caller is left
