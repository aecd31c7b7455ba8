"""A body on its way to disk, and the move of a file that overwrites nothing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from service.storage.files import in_thread, unavailable

# What `link` raises on file systems without hard links (exFAT, SMB, some of FUSE), and under Linux's
# fs.protected_hardlinks for a file of another user.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK})


def publish(source: Path, target: Path) -> None:
    """Moves a file to a path where there is none; nothing is ever overwritten. Blocks.

    Raises FileExistsError if there is a file, and OSError. A crash may leave the file under both names. Without hard
    links it is a look and a rename, which are not one step.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file that another process moved is missing, and its target no conflict.
        if not stat.S_ISREG(source.stat().st_mode):
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.rename(target)
    else:
        source.unlink(missing_ok=True)  # a deletion of the image may have been first


class IncomingFile:
    """A body on its way to disk.

    Each call takes a thread's turn, which costs more than what is done in it: so chunks are best gathered to some
    hundred kilobytes, and a body that is no larger than that is written together with others, by `DiskStorage.seal`.
    """

    def __init__(self, path: Path, threads: Executor) -> None:
        self._path = path
        self._threads = threads
        self._file: BinaryIO | None = None
        self._rest: Sequence[bytes] = ()
        self._durable = self._abandoned = False

    async def write(self, chunks: Sequence[bytes]) -> None:
        with unavailable():
            await in_thread(self._threads, partial(self._write, chunks))

    async def finish(self, chunks: Sequence[bytes]) -> None:
        """The last chunks."""
        self._rest = chunks
        if self._file is not None:  # large: others should not wait for it
            with unavailable():
                await in_thread(self._threads, self._flush_and_sync)

    def flush(self) -> None:
        """Write what is left, and let the disk begin. Blocks; raises OSError."""
        if self._durable:
            return
        if self._abandoned:
            raise OSError(errno.EIO, "it could not be written before")
        self._write(self._rest)
        self._rest = ()
        assert self._file is not None  # noqa: S101 - what _write opened
        self._file.flush()
        if hasattr(os, "posix_fadvise"):
            # Linux starts to write at this advice. A file system like ext4 then commits the files of a group together,
            # and not one by one at their syncs.
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """The bytes are durable then, and the name once its folder is synced. Blocks; raises OSError."""
        if not self._durable:
            assert self._file is not None  # noqa: S101 - what _write opened
            os.fsync(self._file.fileno())
            self._file.close()
            self._durable = True

    def _flush_and_sync(self) -> None:
        self.flush()
        self.sync()

    def move(self, path: Path) -> None:
        """Blocks; raises OSError, and FileExistsError if the path is taken."""
        publish(self._path, path)
        self._path = path

    def abandon(self) -> None:
        """Remove it, if it was made here. Not a coroutine, so that a cancelled request cleans up as well."""
        self._durable, self._abandoned = False, True
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):  # a full disk fails the close, too
                self._file.close()

    def _write(self, chunks: Sequence[bytes]) -> None:
        if self._file is None:
            self._file = self._path.open("xb")
        self._file.writelines(chunks)
