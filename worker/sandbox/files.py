"""Opens the files of pictures for child processes, which can open none themselves."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from io import FileIO
from typing import TypeAlias

from worker.file_headers import HEAD_BYTES, read_size, sniff
from worker.sandbox.process import ChildUnavailable
from worker.sandbox.threads import MAX_CALLS, HangingThreads

_READ_BYTES = 1 << 20

# Paths where the file of a picture may lie, in the order to look.
Places: TypeAlias = Sequence[str]


class PictureFile(FileIO):
    """An open file, and what is known of it by its first bytes, whatever a child says of it.

    `form` is None if they name no format, `header_size` if no width and height stand there.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            self.size = os.fstat(self.fileno()).st_size
            self._head = os.pread(self.fileno(), HEAD_BYTES, 0)
            self.form = sniff(self._head)
            self.header_size = read_size(self.form, self._read_at) if self.form else None
        except BaseException:
            self.close()
            raise

    def _read_at(self, size: int, at: int) -> bytes:
        """Few calls of the system: each may hand the interpreter to another thread and wait for it again."""
        if at + size <= len(self._head):
            return self._head[at : at + size]
        return os.pread(self.fileno(), size, at)


class OtherSize(Exception):
    """A file is not of the size that was stored."""


class PictureFiles:
    """Opens files in threads, so that a disk that hangs keeps nobody but the pictures on it waiting."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._threads: HangingThreads[Sequence[PictureFile]] = HangingThreads("pictures")
        # By the first place of a picture: since when it hangs, and when the next thread may try.
        self._hanging: dict[str, tuple[float, float]] = {}

    @asynccontextmanager
    async def opened(self, *pictures: Places, sizes: Sequence[int] = ()) -> AsyncIterator[Sequence[PictureFile]]:
        """Yields the open file of each picture, and closes them with the context.

        `sizes` are those that the files had when they were stored, 0 for one that is not known. Raises OtherSize,
        FileNotFoundError if one lies at none of its places, and ChildUnavailable if one cannot be opened in time or at
        all.
        """
        files = await self._open(pictures)
        try:
            for file, size in zip(files, sizes, strict=False):
                if size not in (0, file.size):
                    raise OtherSize(f"{file.name!r} has {file.size} bytes instead of {size}")
            yield files
        finally:
            _close_each(files)

    def close(self) -> None:
        self._threads.close()

    async def can_read(self, *pictures: Places) -> bool:
        """Whether this process can read all bytes of the files at this time, within the time of a picture."""
        try:
            await self._wait(self._threads.submit(partial(self._read_each, pictures), _close_each))
        except TimeoutError:
            self._note_hanging(pictures)
            return False
        except OSError:
            return False
        return True

    async def _open(self, pictures: Sequence[Places]) -> Sequence[PictureFile]:
        if self._hanging and any(self._is_put_off(places) for places in pictures):
            raise ChildUnavailable("its file does not open")
        began: list[float] = []
        try:
            return await self._wait(self._threads.submit(partial(self._open_each, pictures, began), _close_each))
        except FileNotFoundError:
            raise
        except TimeoutError as error:
            if began:  # else others hang, and no thread was left for it
                self._note_hanging(pictures)
            raise ChildUnavailable("its file does not open") from error
        except OSError as error:
            raise ChildUnavailable(repr(error)) from error

    async def _wait(self, opening: asyncio.Future[Sequence[PictureFile]]) -> Sequence[PictureFile]:
        # As asyncio.timeout, in half of its time: each picture takes one.
        timer = asyncio.get_running_loop().call_later(self._timeout_s, _expire, opening)
        try:
            return await opening
        except asyncio.CancelledError:
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                _close_each(opening.result())  # they came in the same turn of the loop
            raise
        finally:
            timer.cancel()

    def _is_put_off(self, places: Places) -> bool:
        """Whether its file hung, and either not for long enough or the threads are needed for files that did not."""
        if places[0] not in self._hanging:
            return False
        return self._threads.are_scarce or self._hanging[places[0]][1] > time.monotonic()

    def _note_hanging(self, pictures: Sequence[Places]) -> None:
        """Each try may take a thread for good, so that the next comes after as long as the file has hung already."""
        now = time.monotonic()
        if len(self._hanging) > MAX_CALLS:
            self._hanging.clear()  # some are deleted by now, and nobody asks for them any more
        for places in pictures:
            since, _ = self._hanging.get(places[0], (now - self._timeout_s, 0))
            self._hanging[places[0]] = since, 2 * now - since

    def _open_each(self, pictures: Sequence[Places], began: list[float]) -> Sequence[PictureFile]:
        """Blocks; raises OSError, and closes what it has opened then. `began` gets the time when it starts."""
        began.append(time.monotonic())
        try:
            with ExitStack() as stack:
                files = [stack.enter_context(_open_first(places)) for places in pictures]
                stack.pop_all()
                return files
        finally:
            for places in pictures:
                self._hanging.pop(places[0], None)

    def _read_each(self, pictures: Sequence[Places]) -> Sequence[PictureFile]:
        """Blocks; raises OSError. Returns no file, as they are closed."""
        files = self._open_each(pictures, [])
        try:
            for file in files:
                while file.read(_READ_BYTES):
                    pass
        finally:
            _close_each(files)
        return []


def _open_first(places: Places) -> PictureFile:
    for place in places:
        try:
            return PictureFile(place)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), places[0])


def _expire(opening: asyncio.Future[Sequence[PictureFile]]) -> None:
    if not opening.done():
        opening.set_exception(TimeoutError())


def _close_each(files: Sequence[PictureFile]) -> None:
    for file in files:
        file.close()
