"""Opens the files of pictures for child processes, which can open none themselves."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager, closing
from io import FileIO
from typing import TypeAlias

from service.storage.files import disk_threads
from worker.children.process import ChildUnavailable

# Paths where the file of a picture may lie, in the order to look.
Places: TypeAlias = Sequence[str]


class PictureFiles:
    """Opens files in threads, so that a disk that hangs keeps nobody but the pictures on it waiting."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._threads = disk_threads("pictures")
        self._hanging: set[str] = set()  # first places of pictures: at most one thread waits for each

    @asynccontextmanager
    async def opened(self, *pictures: Places) -> AsyncIterator[Sequence[FileIO]]:
        """Yields the open file of each picture, and closes them with the context.

        Raises FileNotFoundError if one lies at none of its places, and ChildUnavailable if one cannot be opened in
        time or at all.
        """
        with ExitStack() as stack:
            yield [stack.enter_context(closing(file)) for file in await self._open(pictures)]

    async def _open(self, pictures: Sequence[Places]) -> Sequence[FileIO]:
        if any(places[0] in self._hanging for places in pictures):
            raise ChildUnavailable("its file is still being opened")
        try:
            opening = self._threads.submit(_open_each, pictures)
        except RuntimeError as error:  # the system gives no thread
            raise ChildUnavailable(str(error)) from error
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(opening)
        except FileNotFoundError:
            raise
        except TimeoutError as error:
            self._abandon(opening, pictures)
            raise ChildUnavailable("the disk does not open its file") from error
        except OSError as error:
            raise ChildUnavailable(repr(error)) from error
        except asyncio.CancelledError:
            self._abandon(opening, pictures)
            raise

    def _abandon(self, opening: Future[Sequence[FileIO]], pictures: Sequence[Places]) -> None:
        """Closes the files when the disk has opened them after all."""
        names = {places[0] for places in pictures}

        def close(opening: Future[Sequence[FileIO]]) -> None:
            self._hanging.difference_update(names)
            if not opening.cancelled() and opening.exception() is None:
                for file in opening.result():
                    file.close()

        self._hanging.update(names)
        opening.add_done_callback(close)


def _open_each(pictures: Sequence[Places]) -> Sequence[FileIO]:
    """Blocks; raises OSError, and closes what it has opened then."""
    with ExitStack() as stack:
        files = [stack.enter_context(_open_first(places)) for places in pictures]
        stack.pop_all()
        return files


def _open_first(places: Places) -> FileIO:
    for place in places:
        try:
            return FileIO(place)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), places[0])
