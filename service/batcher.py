"""Group commit: all that wait are written by one statement and one commit."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeAlias, TypeVar

import structlog

from service.errors import ServiceError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


_Entry: TypeAlias = tuple[Item, asyncio.Future[Outcome]]

log = structlog.get_logger("service")

_CANCEL_AGAIN_S = 0.2
# So long a batch waits for what is about to come. Each batch costs messages between processes whatever its size, and
# those whom it answers come back together, so that other batches grow too.
_GATHER_S = 0.008
# A dependency that hangs is not asked again by each batch of a queue, whose last would wait for all the time-outs.
_LONG_S = 1.0


class Batcher(Generic[Item, Outcome]):
    """Collects items while the batch before is being written.

    `write` gets up to `limit` items and answers an outcome for each, in order; an outcome that is an exception is
    raised to its submitter alone. Where `write` raises a ServiceError, all of the batch get it, and so do those that
    arrived meanwhile if it took long; after any other exception the items are written one by one. What waits is bounded
    by the callers, each of which waits for its own item. A batch is written at once, unless `crowded` says that more
    items are about to come.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | Exception]]],
        *,
        limit: int = 256,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._write = write
        self._crowded = crowded
        self._limit = limit
        self._waiting: deque[_Entry[Item, Outcome]] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    async def submit(self, item: Item) -> Outcome:
        """Once a batch holds the item, cancelling this call does not take it back: the outcome is unknown then.

        Raises CancelledError where `run` has ended.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._ended:
            future.cancel()
        self._waiting.append((item, future))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Write batches until cancelled; the owner of the batcher keeps this as its one task."""
        try:
            while True:
                await self._arrived.wait()
                if self._crowded():
                    await asyncio.sleep(_GATHER_S)
                self._arrived.clear()
                while self._waiting:
                    await self._write_next()
        finally:
            self._ended = True
            for _, future in self._waiting:
                future.cancel()

    async def _write_next(self) -> None:
        count = min(len(self._waiting), self._limit)
        batch = [entry for entry in (self._waiting.popleft() for _ in range(count)) if not entry[1].done()]
        try:
            await self._write_and_tell(batch)
        finally:
            for _, future in batch:  # where this task was cancelled
                future.cancel()

    async def _write_and_tell(self, batch: Sequence[_Entry[Item, Outcome]]) -> None:
        if not batch:
            return
        outcomes: Sequence[Outcome | Exception]
        began = time.monotonic()
        try:
            outcomes = await self._write([item for item, _ in batch])
        except ServiceError as error:  # a dependency is away: for each of them
            if time.monotonic() - began > _LONG_S:
                batch = [*batch, *self._waiting]
                self._waiting.clear()
            outcomes = [error] * len(batch)
        except Exception as error:
            if len(batch) > 1:  # one of them may have spoilt it for the others
                for entry in batch:
                    await self._write_and_tell([entry])
                return
            outcomes = [error]
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


@asynccontextmanager
async def running(loop: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Own a task for the length of a block."""
    task = asyncio.create_task(loop)
    task.add_done_callback(_expect_cancelled)
    try:
        yield
    finally:
        # Again and again: asyncio.wait_for before Python 3.12, which redis uses, can swallow a cancellation.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)


def _expect_cancelled(task: asyncio.Task[None]) -> None:
    """A process without one of its tasks would hang its clients: it ends, and whoever watches it starts another."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("task.died", exc_info=error)
        signal.raise_signal(signal.SIGTERM)
