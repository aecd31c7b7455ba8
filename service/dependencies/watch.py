"""A dependency of this process, its check, and the task that repeats the check during an outage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from service.batcher import running
from service.dependencies.outages import Outage
from service.single_flight import SingleFlight

# A check that takes longer fails.
CHECK_TIMEOUT_S = 2.0
# A failed check is not repeated for this long, because each may cost the server a refused connection and a log line.
_PROBLEM_TTL_S = 0.5
_POLL_INTERVAL_S = 1.0


class Dependency:
    """`check` raises the error that an upload would get."""

    def __init__(self, outage: Outage, check: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.outage = outage
        self._check = check
        self._call: SingleFlight[str | None] = SingleFlight(CHECK_TIMEOUT_S)
        self._problem: str | None = None  # of the last check
        self._check_again_at = 0.0

    async def find_problem(self) -> str | None:
        """Returns the public reason why an upload would fail, or None if it would not."""
        if self._problem is not None and time.monotonic() < self._check_again_at:
            return self._problem
        try:
            return await self._call.get(self._run)
        except TimeoutError as error:
            self.outage.report(error)
            return self.outage.explain(error)

    async def _run(self) -> str | None:
        try:
            await self._check()
        except Exception as error:
            self.outage.report(error)
            self._problem = self.outage.explain(error)
        else:
            self.outage.report_success()
            self._problem = None
        self._check_again_at = time.monotonic() + _PROBLEM_TTL_S
        return self._problem


@asynccontextmanager
async def watched(dependencies: Collection[Dependency]) -> AsyncIterator[None]:
    """Checks each dependency at the start, so that the log names those that fail, and repeatedly during an outage."""
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(dependency.find_problem() for dependency in dependencies))
        for dependency in dependencies:
            await stack.enter_async_context(running(_watch(dependency)))
        yield


async def _watch(dependency: Dependency) -> None:
    while True:
        await asyncio.sleep(_POLL_INTERVAL_S)
        if dependency.outage.is_under_way:
            await dependency.find_problem()
