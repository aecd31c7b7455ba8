"""Threads for calls that may hang, e.g. at a disk over the network.

Why not ThreadPoolExecutor: its threads keep the process from ending while one of them hangs, and it takes twice as
long to hand a call over, which counts here: each picture takes one.
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
# Calls that have not ended. The jobs of a worker are fewer, unless they gave up calls that hang.
MAX_CALLS = 1000
# Another thread starts if no call has ended for this long. One is enough as long as none hangs: several would wait for
# each other at the interpreter's lock.
_SLOW_S = 0.005

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Call(Generic[Result]):
    run: Callable[[], Result]
    drop: Callable[[Result], None]
    future: asyncio.Future[Result]


class HangingThreads(Generic[Result]):
    """Its threads start when they are needed, and end with `close` or with the process, even if they hang."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[_Call[Result] | None] = SimpleQueue()
        self._threads = 0
        self._unfinished = 0
        self._finished = 0
        self._is_watched = False

    @property
    def are_scarce(self) -> bool:
        """Half of them are taken."""
        return self._unfinished >= MAX_THREADS // 2

    def submit(self, run: Callable[[], Result], drop: Callable[[Result], None]) -> asyncio.Future[Result]:
        """Returns the future of the call's result. `drop` gets the result if the future was cancelled before.

        Raises OSError if too many calls hang, or if the system gives no thread.
        """
        if self._unfinished >= MAX_CALLS:
            raise OSError(f"{MAX_CALLS} calls hang")
        if not self._threads:
            self._start_thread()
        loop = asyncio.get_running_loop()
        call = _Call(run, drop, loop.create_future())
        self._unfinished += 1
        self._calls.put(call)
        if not self._is_watched:
            self._watch(loop)
        return call.future

    def close(self) -> None:
        """Ends the threads, each after its call."""
        for _ in range(self._threads):
            self._calls.put(None)
        self._calls = SimpleQueue()  # what is submitted later gets threads of its own
        self._threads = 0

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_watched = True
        loop.call_later(_SLOW_S, self._help, loop, self._finished)

    def _help(self, loop: asyncio.AbstractEventLoop, finished: int) -> None:
        """Starts a thread for the calls that wait behind one that hangs, if any do."""
        self._is_watched = False
        if self._calls.empty() or self._threads >= MAX_THREADS:
            return
        if self._finished == finished:
            with suppress(OSError):
                self._start_thread()
        self._watch(loop)

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._work, args=(self._calls,), name=self._name, daemon=True).start()
        except RuntimeError as error:
            if not self._threads:
                raise OSError(str(error)) from error
        else:
            self._threads += 1

    def _work(self, calls: SimpleQueue[_Call[Result] | None]) -> None:
        while (call := calls.get()) is not None:
            results: list[Result] = []
            error = None
            try:
                if not call.future.done():  # else nobody waits any more
                    results.append(call.run())
            except Exception as failure:
                error = failure
            try:
                call.future.get_loop().call_soon_threadsafe(self._finish, call, results, error)
            except RuntimeError:  # the loop has ended, and with it all who wait
                _drop(call, results)

    def _finish(self, call: _Call[Result], results: Sequence[Result], error: Exception | None) -> None:
        self._unfinished -= 1
        self._finished += 1
        if call.future.done():
            _drop(call, results)
        elif error is not None:
            call.future.set_exception(error)
        else:
            call.future.set_result(*results)


def _drop(call: _Call[Result], results: Sequence[Result]) -> None:
    for result in results:
        call.drop(result)
