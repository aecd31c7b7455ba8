"""Files from an event loop: calls in threads, the errors that clients are told, and small files read at once."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from service.errors import ServiceError

Result = TypeVar("Result")

# Threads only wait for the disk; the default of cores + 4 would let six slow syncs hold up every other upload.
DISK_THREADS = 32
# Up to this size a file is read as it is found, and may be kept in memory.
SMALL_BYTES = 256 << 10
# `st_blocks` counts these whatever the file system's own blocks are (stat(2)).
_STAT_BLOCK = 512
# The block of ext4, XFS and Btrfs on nearly every machine.
_DISK_BLOCK = 4096


def disk_threads(name: str) -> ThreadPoolExecutor:
    """Threads for one disk: if it hangs, e.g. one over the network, nothing but what needs that disk waits for it."""
    return ThreadPoolExecutor(DISK_THREADS, thread_name_prefix=name)


async def in_thread(threads: Executor, call: Callable[[], Result]) -> Result:
    """Returns only when the thread is done, however often it is cancelled: what it makes can be removed then, and what
    it works with closed. (Else the number of a descriptor may be another one's before the thread is done with it.)

    Raises OSError where the system gives no thread.
    """
    try:
        working = asyncio.get_running_loop().run_in_executor(threads, call)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([working])
        working.exception()  # nobody is left to be told, and asyncio would log it
        raise


@contextmanager
def unavailable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServiceError("storage-unavailable") from error


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that was found: `data` is all of it where it is small, `disk_size` what it takes on disk where known."""

    path: Path
    size: int
    modified_ns: int
    data: bytes | None = None
    disk_size: int = 0


def size_on_disk(status: os.stat_result) -> int:
    """The bytes of its blocks, at least what whole blocks of 4 KB hold: some file systems count a new file late."""
    return max(status.st_blocks * _STAT_BLOCK, -(-status.st_size // _DISK_BLOCK) * _DISK_BLOCK, _DISK_BLOCK)


def open_regular(path: str) -> BufferedReader:
    """Opens a file for reading. A pipe in its place, whose open would wait for ever, and a device are refused.

    Blocks; raises OSError.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file", path)
    return os.fdopen(handle, "rb")


def look_at(path: Path) -> Stored:
    """Blocks; raises OSError."""
    with path.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        data = file.read(status.st_size) if status.st_size <= SMALL_BYTES else None
        return Stored(path, status.st_size, status.st_mtime_ns, data)


async def starts_with(threads: Executor, stored: Stored, magic: bytes) -> bool:
    """Whether the file's first bytes are these. False if it is gone. Raises `storage-unavailable`."""
    if stored.data is not None:
        return stored.data.startswith(magic)

    def read() -> bytes:
        try:
            with stored.path.open("rb", buffering=0) as file:
                return file.read(len(magic))
        except FileNotFoundError:
            return b""

    with unavailable():
        return await in_thread(threads, read) == magic
