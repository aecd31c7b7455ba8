"""Opens the files of pictures for decoders, which cannot open files in their sandbox. Uses daemon threads if the disk
may hang.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeAlias, TypeVar

from service.storage.files import LoopCalls
from worker.file_headers import PictureFile
from worker.sandbox.process import DecoderUnavailable

Result = TypeVar("Result")

_CHUNK_BYTES = 1 << 20

# Paths where the file of a picture may be, in the order to try.
CandidatePaths: TypeAlias = Sequence[str]


class SizeMismatch(Exception):
    """A file does not have the size that was recorded for it."""


class PictureFiles:
    """Opens files in threads, so that a disk that hangs delays only the pictures on it. On a local disk, which hardly
    ever does, opens them on the event loop, because each thread would cost more than the call.
    """

    def __init__(self, timeout_s: float, *, is_local: bool = False) -> None:
        self.threads: DaemonThreadPool[Sequence[PictureFile]] = DaemonThreadPool("pictures")
        self._timeout_s = timeout_s
        self._loop_calls = LoopCalls(is_local=is_local)
        # By the first path of a picture: since when it hangs, and when the next attempt may start.
        self._hanging: dict[str, tuple[float, float]] = {}

    @asynccontextmanager
    async def open(self, *pictures: CandidatePaths, sizes: Sequence[int] = ()) -> AsyncIterator[Sequence[PictureFile]]:
        """Yields the open file of each picture, and closes them with the context.

        `sizes` are the recorded sizes of the files, 0 if unknown. Raises SizeMismatch, FileNotFoundError if none of a
        picture's paths exists, and DecoderUnavailable if a file cannot be opened, or not in time.
        """
        files = await self._open(pictures)
        try:
            for file, size in zip(files, sizes, strict=False):
                if size not in (0, file.size):
                    raise SizeMismatch(f"{file.name!r} has {file.size} bytes instead of {size}")
            yield files
        finally:
            _close_each(files)

    def close(self) -> None:
        self.threads.close()

    async def can_read(self, *pictures: CandidatePaths) -> bool:
        """Returns whether this process can read all bytes of the files now, within the time limit of a picture."""
        try:
            await self._wait(self.threads.submit(partial(self._read_each, pictures), _close_each))
        except TimeoutError:
            self._record_hanging(pictures)
            return False
        except OSError:
            return False
        return True

    async def _open(self, pictures: Sequence[CandidatePaths]) -> Sequence[PictureFile]:
        if self._hanging and any(self._is_deferred(paths) for paths in pictures):
            raise DecoderUnavailable("its file does not open")
        started_at: list[float] = []
        open_each = partial(self._open_each, pictures, started_at)
        try:
            if self._loop_calls.are_allowed:
                return self._loop_calls.run(open_each)
            return await self._wait(self.threads.submit(open_each, _close_each))
        except FileNotFoundError:
            raise
        except TimeoutError as error:
            if started_at:  # otherwise other files hang, and no thread was free
                self._record_hanging(pictures)
            raise DecoderUnavailable("its file does not open") from error
        except OSError as error:
            raise DecoderUnavailable(repr(error)) from error

    async def _wait(self, opening: asyncio.Future[Sequence[PictureFile]]) -> Sequence[PictureFile]:
        # Like asyncio.timeout, but in half the time, because each picture needs one.
        timer = asyncio.get_running_loop().call_later(self._timeout_s, _expire, opening)
        try:
            return await opening
        except asyncio.CancelledError:
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                _close_each(opening.result())  # the files arrived in the same turn of the loop
            raise
        finally:
            timer.cancel()

    def _is_deferred(self, paths: CandidatePaths) -> bool:
        """Returns whether its file hangs, and it is too early to retry or the threads are needed for other files."""
        if paths[0] not in self._hanging:
            return False
        return self.threads.is_half_used or self._hanging[paths[0]][1] > time.monotonic()

    def _record_hanging(self, pictures: Sequence[CandidatePaths]) -> None:
        """Records files that hang. Each attempt may occupy a thread forever, so the wait before the next one
        doubles.
        """
        now = time.monotonic()
        if len(self._hanging) > MAX_CALLS:
            self._hanging.clear()  # entries of deleted images would never be removed otherwise
        for paths in pictures:
            since, _ = self._hanging.get(paths[0], (now - self._timeout_s, 0))
            self._hanging[paths[0]] = since, 2 * now - since

    def _open_each(self, pictures: Sequence[CandidatePaths], started_at: list[float]) -> Sequence[PictureFile]:
        """Blocks. Opens all files or none. Appends the time to `started_at` when it starts. Raises OSError."""
        started_at.append(time.monotonic())
        try:
            with ExitStack() as stack:
                files = [stack.enter_context(_open_first(paths)) for paths in pictures]
                stack.pop_all()
                return files
        finally:
            for paths in pictures:
                self._hanging.pop(paths[0], None)

    def _read_each(self, pictures: Sequence[CandidatePaths]) -> Sequence[PictureFile]:
        """Blocks. Returns no files: they are closed again. Raises OSError."""
        files = self._open_each(pictures, [])
        try:
            for file in files:
                while file.read(_CHUNK_BYTES):
                    pass
        finally:
            _close_each(files)
        return []


def _open_first(paths: CandidatePaths) -> PictureFile:
    for path in paths:
        try:
            return PictureFile(path)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), paths[0])


def _expire(opening: asyncio.Future[Sequence[PictureFile]]) -> None:
    if not opening.done():
        opening.set_exception(TimeoutError())


def _close_each(files: Sequence[PictureFile]) -> None:
    for file in files:
        file.close()


MAX_THREADS = 32
# Maximum unfinished calls. A worker has fewer jobs, so others are calls that hang and that their jobs abandoned.
MAX_CALLS = 1000
# Another thread starts if no call has finished for this long. If no call hangs, one thread is enough: several would
# compete for the interpreter's lock.
_STALL_S = 0.005


@dataclass(frozen=True, slots=True)
class _Call(Generic[Result]):
    run: Callable[[], Result]
    discard: Callable[[Result], None]
    future: asyncio.Future[Result]


class DaemonThreadPool(Generic[Result]):
    """Starts threads on demand. They end with `close` or with the process, even if they hang.

    Why not ThreadPoolExecutor: its threads keep the process alive while one of them hangs, and it takes twice as long
    to pass a call to a thread, for every picture.
    """

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
        self._calls = SimpleQueue()  # later calls start new threads
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
