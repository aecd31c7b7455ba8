"""Group commit: everything that waits is written by one statement and one commit.

`Batcher` is for requests that wait for an outcome, `WriteBehind` for records that nobody waits for.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeAlias, TypeVar

import structlog

from service.errors import ServiceError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_Entry: TypeAlias = tuple[Item, asyncio.Future[Outcome]]

log = structlog.get_logger("service")

_CANCEL_AGAIN_S = 0.2


class Batcher(Generic[Item, Outcome]):
    """Collects items while the previous batch is written.

    `write` gets up to `limit` items and returns an outcome for each, in order; an outcome that is an exception is
    raised to its submitter alone. If `write` raises a ServiceError, the whole batch gets it. After any other exception
    the items are written one by one. Callers that wait for their items bound the backlog.

    A batch waits `wait_s()` for more items, by default not at all. A batch costs the same messages between processes at
    any size, so a short wait pays under load. Clients that get their responses together send their next requests
    together, so later batches grow too.

    If a ServiceError took longer than `slow_s`, items that arrived meanwhile get it as well. Otherwise each batch of a
    backlog would wait for the timeout of a dependency that hangs, and the last item for all of them.

    Beyond `max_backlog` the oldest item is dropped, and its submitter cancelled.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | Exception]]],
        *,
        limit: int = 256,
        wait_s: Callable[[], float] = lambda: 0,
        slow_s: float = 1.0,
        max_backlog: int | None = None,
    ) -> None:
        self.wait_s = wait_s
        self._write = write
        self._limit = limit
        self._slow_s = slow_s
        self._max_backlog = max_backlog
        self._backlog: deque[_Entry[Item, Outcome]] = deque()
        self._submitted = asyncio.Event()
        self._stopped = False

    async def submit(self, item: Item) -> Outcome:
        """Returns the item's outcome, or raises it.

        After a batch has taken the item, cancelling this call does not take it back: the outcome is unknown then.
        Raises CancelledError after `run` has ended.
        """
        return await self.enqueue(item)

    def enqueue(self, item: Item) -> asyncio.Future[Outcome]:
        """Returns the future of what `submit` returns."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._stopped:
            future.cancel()
        self._backlog.append((item, future))
        if self._max_backlog is not None and len(self._backlog) > self._max_backlog:
            self._backlog.popleft()[1].cancel()
        self._submitted.set()
        return future

    async def run(self) -> None:
        """Writes batches until cancelled. The owner of the batcher runs it once, as a task."""
        try:
            while True:
                await self._submitted.wait()
                if (wait_s := self.wait_s()) > 0:
                    await asyncio.sleep(wait_s)
                self._submitted.clear()
                while self._backlog:
                    await self._write_next()
        finally:
            self._stopped = True
            for _, future in self._backlog:
                future.cancel()

    async def _write_next(self) -> None:
        count = min(len(self._backlog), self._limit)
        batch = [entry for entry in (self._backlog.popleft() for _ in range(count)) if not entry[1].done()]
        try:
            await self._write_batch(batch)
        finally:
            for _, future in batch:  # if this task was cancelled
                future.cancel()

    async def _write_batch(self, batch: Sequence[_Entry[Item, Outcome]]) -> None:
        if not batch:
            return
        outcomes: Sequence[Outcome | Exception]
        started_at = time.monotonic()
        try:
            outcomes = await self._write([item for item, _ in batch])
        except ServiceError as error:
            if time.monotonic() - started_at > self._slow_s:
                batch = [*batch, *self._backlog]
                self._backlog.clear()
            outcomes = [error] * len(batch)
        except Exception as error:
            if len(batch) > 1:  # one item may have failed the whole batch
                for entry in batch:
                    await self._write_batch([entry])
                return
            outcomes = [error]
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


class WriteBehind(Generic[Item]):
    """Writes records in batches after the responses to their requests; nobody waits for a record.

    `write` may get an item twice. If it raises a ServiceError it is called again every `retry_s`. After any other
    exception the items are written one by one, and those that fail are dropped. `on_error` gets every exception. Beyond
    `max_backlog` the oldest items are dropped.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[object]],
        on_error: Callable[[Exception], None],
        *,
        limit: int = 500,
        max_backlog: int = 50_000,
        gather_s: float = 0.5,
        retry_s: float = 1.0,
        drain_timeout_s: float = 2.0,
    ) -> None:
        self.retry_s = retry_s
        self._write = write
        self._on_error = on_error
        self._limit = limit
        self._drain_timeout_s = drain_timeout_s
        self._pending: dict[asyncio.Future[None], Item] = {}  # in the order of their arrival
        self.batcher: Batcher[Item, None] = Batcher(
            self._write_until_done, limit=limit, wait_s=lambda: gather_s, max_backlog=max_backlog
        )

    @property
    def pending(self) -> int:
        """The number of items that are not written yet."""
        return len(self._pending)

    def add(self, item: Item) -> None:
        future = self.batcher.enqueue(item)
        self._pending[future] = item
        future.add_done_callback(self._finish)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Writes for the length of a block. Afterwards all pending items are written once, if that works in time."""
        async with running(self.batcher.run()):
            yield
            unwritten = list(self._pending.values())
        with suppress(ServiceError, OSError, TimeoutError):
            async with asyncio.timeout(self._drain_timeout_s):
                for start in range(0, len(unwritten), self._limit):
                    await self._write(unwritten[start : start + self._limit])

    async def _write_until_done(self, items: Sequence[Item]) -> Sequence[None]:
        while True:
            try:
                await self._write(items)
            except ServiceError as error:
                self._on_error(error)
                await asyncio.sleep(self.retry_s)
            else:
                return [None] * len(items)

    def _finish(self, future: asyncio.Future[None]) -> None:
        del self._pending[future]
        if not future.cancelled() and isinstance(error := future.exception(), Exception):
            self._on_error(error)


@asynccontextmanager
async def running(loop: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Owns a task for the length of a block."""
    task = asyncio.create_task(loop)
    task.add_done_callback(_terminate_on_error)
    try:
        yield
    finally:
        # Repeated, since asyncio.wait_for before Python 3.12, which redis uses, can swallow a cancellation.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)


def _terminate_on_error(task: asyncio.Task[None]) -> None:
    """Terminates the process if a task fails, because its clients would hang; the supervisor restarts the process."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("task.died", exc_info=error)
        signal.raise_signal(signal.SIGTERM)
