"""The file of an upload while its body arrives."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from service.storage.files import in_thread, storage_errors
from service.storage.local.disk import publish


class LocalUploadFile:
    """The `UploadFile` of a disk.

    Each call waits for a thread, which costs more than what is done in it: callers gather chunks up to some hundred
    kilobytes, and a smaller body is written together with others, by `LocalOriginals.sync_batch`.
    """

    def __init__(self, path: Path, threads: Executor) -> None:
        self._path = path
        self._threads = threads
        self._file: BinaryIO | None = None
        self._rest: Sequence[bytes] = ()
        self._durable = self._abandoned = False

    async def write(self, chunks: Sequence[bytes]) -> None:
        with storage_errors():
            await in_thread(self._threads, partial(self._write, chunks))

    async def finish(self, chunks: Sequence[bytes]) -> None:
        """Takes the last chunks. A large body is synced here, so that others do not wait for it."""
        self._rest = chunks
        if self._file is not None:
            with storage_errors():
                await in_thread(self._threads, self._flush_and_sync)

    def flush(self) -> None:
        """Writes the last chunks, and asks the disk to begin. Blocks; raises OSError."""
        if self._durable:
            return
        if self._abandoned:
            raise OSError(errno.EIO, "the file could not be written before")
        self._write(self._rest)
        self._rest = ()
        assert self._file is not None  # noqa: S101 - _write opened it
        self._file.flush()
        if hasattr(os, "posix_fadvise"):
            # Linux starts to write at this advice. A file system like ext4 then commits the files of a group together,
            # and not one by one at their syncs.
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Makes the content durable; the name is durable after a sync of its folder. Blocks; raises OSError."""
        if not self._durable:
            assert self._file is not None  # noqa: S101 - _write opened it
            os.fsync(self._file.fileno())
            self._file.close()
            self._durable = True

    def move(self, path: Path) -> None:
        """Blocks; raises OSError, and FileExistsError if the path is taken."""
        publish(self._path, path)
        self._path = path

    def abandon(self) -> None:
        """Removes the file if this object made it. Not a coroutine, so that a cancelled request cleans up as well."""
        self._durable, self._abandoned = False, True
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):  # a full disk fails the close, too
                self._file.close()

    def _flush_and_sync(self) -> None:
        self.flush()
        self.sync()

    def _write(self, chunks: Sequence[bytes]) -> None:
        if self._file is None:
            self._file = self._path.open("xb")
        self._file.writelines(chunks)
