"""A pool of daemon threads for calls that may hang, e.g. on a network disk.

Why not ThreadPoolExecutor: its threads keep the process alive while one of them hangs, and it takes twice as long to
hand a call over, which every picture pays.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

MAX_THREADS = 32
# Unfinished calls. A worker has fewer jobs, so more of them are calls that hang and that their jobs gave up.
MAX_CALLS = 1000
# Another thread starts if no call has finished for this long. As long as no call hangs one thread is enough: several
# would compete for the interpreter's lock.
_STALL_S = 0.005

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Call(Generic[Result]):
    run: Callable[[], Result]
    discard: Callable[[Result], None]
    future: asyncio.Future[Result]


class DaemonThreadPool(Generic[Result]):
    """Starts threads on demand. They end with `close` or with the process, even if they hang."""

    def __init__(self, name: str) -> None:
        self.thread_count = 0
        self.unfinished = 0  # calls
        self.is_watched = False  # a timer runs that may start another thread
        self._name = name
        self._calls: SimpleQueue[_Call[Result] | None] = SimpleQueue()
        self._finished = 0

    @property
    def is_half_used(self) -> bool:
        return self.unfinished >= MAX_THREADS // 2

    def submit(self, run: Callable[[], Result], discard: Callable[[Result], None]) -> asyncio.Future[Result]:
        """Returns the future of the call's result. `discard` gets the result if the future is cancelled before.

        Raises OSError if too many calls hang, or if the system cannot start a thread.
        """
        if self.unfinished >= MAX_CALLS:
            raise OSError(f"{MAX_CALLS} calls hang")
        if not self.thread_count:
            self._start_thread()
        loop = asyncio.get_running_loop()
        call = _Call(run, discard, loop.create_future())
        self.unfinished += 1
        self._calls.put(call)
        if not self.is_watched:
            self._watch(loop)
        return call.future

    def close(self) -> None:
        """Ends each thread after its current call."""
        for _ in range(self.thread_count):
            self._calls.put(None)
        self._calls = SimpleQueue()  # later calls get threads of their own
        self.thread_count = 0

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_watched = True
        loop.call_later(_STALL_S, self._check_stall, loop, self._finished)

    def _check_stall(self, loop: asyncio.AbstractEventLoop, finished_before: int) -> None:
        """Starts a thread for the queued calls if no call has finished meanwhile."""
        self.is_watched = False
        if self._calls.empty() or self.thread_count >= MAX_THREADS:
            return
        if self._finished == finished_before:
            with suppress(OSError):
                self._start_thread()
        self._watch(loop)

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._work, args=(self._calls,), name=self._name, daemon=True).start()
        except RuntimeError as error:
            if not self.thread_count:
                raise OSError(str(error)) from error
        else:
            self.thread_count += 1

    def _work(self, calls: SimpleQueue[_Call[Result] | None]) -> None:
        while (call := calls.get()) is not None:
            results: list[Result] = []
            error = None
            try:
                if not call.future.done():  # it was cancelled while it was queued
                    results.append(call.run())
            except Exception as failure:
                error = failure
            try:
                call.future.get_loop().call_soon_threadsafe(self._finish, call, results, error)
            except RuntimeError:  # the loop is closed, so nobody waits for the result
                _discard(call, results)

    def _finish(self, call: _Call[Result], results: Sequence[Result], error: Exception | None) -> None:
        self.unfinished -= 1
        self._finished += 1
        if call.future.done():
            _discard(call, results)
        elif error is not None:
            call.future.set_exception(error)
        else:
            call.future.set_result(*results)


def _discard(call: _Call[Result], results: Sequence[Result]) -> None:
    for result in results:
        call.discard(result)
