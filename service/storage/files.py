"""File access from an event loop: calls in threads, errors for clients, and small files read in one step."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, TypeVar

import structlog

from service.dependencies.outages import STORAGE, Outage
from service.errors import ServiceError
from service.storage.interface import StoredFile

Result = TypeVar("Result")

log = structlog.get_logger("service")

# Threads only wait for the disk; with the default of cores + 4, six slow syncs would delay every other upload.
DISK_THREADS = 32
# Up to this size, a file is read when it is found, and may be cached in memory.
SMALL_BYTES = 256 << 10
_COPY_BYTES = 1 << 20
# `st_blocks` counts these whatever the file system's own blocks are (stat(2)).
_STAT_BLOCK = 512
# The block of ext4, XFS and Btrfs on nearly every machine.
_DISK_BLOCK = 4096


def disk_threads(name: str) -> ThreadPoolExecutor:
    """Returns a thread pool for one disk. If the disk hangs, e.g. over the network, only calls that need it wait."""
    return ThreadPoolExecutor(DISK_THREADS, thread_name_prefix=name)


async def in_thread(threads: Executor, call: Callable[[], Result]) -> Result:
    """Runs `call` in a thread and returns its result.

    Returns only when the thread is done, even if it is cancelled, so that the caller can remove what `call` created and
    close what it used. (Otherwise the number of a descriptor might belong to another file before the thread is done.)

    Raises OSError if the system cannot start a thread.
    """
    try:
        running = asyncio.get_running_loop().run_in_executor(threads, call)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        running.exception()  # marks it as retrieved, or asyncio would log it
        raise


class LoopCalls:
    """Runs short calls to one disk on the event loop. They are allowed if the disk `is_local`: there a thread costs
    more than the call itself.

    A call that takes longer than `max_s` means that the disk is busy or hangs. Then none is allowed for `slow_for_s`.
    """

    def __init__(self, *, is_local: bool, max_s: float = 0.05, slow_for_s: float = 60.0) -> None:
        self._is_local = is_local
        self._max_s = max_s
        self._slow_for_s = slow_for_s
        self._slow_until = 0.0

    @property
    def are_allowed(self) -> bool:
        return self._is_local and time.monotonic() >= self._slow_until

    def run(self, call: Callable[[], Result]) -> Result:
        """Returns the result of the call, which must be allowed. Raises what it raises."""
        started_at = time.monotonic()
        try:
            return call()
        finally:
            ended_at = time.monotonic()
            if ended_at - started_at > self._max_s:
                self._slow_until = ended_at + self._slow_for_s
                log.info("storage.slow", ms=round(1000 * (ended_at - started_at)))


class ShortCalls:
    """Runs short calls to one disk: on the event loop if that is allowed, and otherwise in a thread."""

    def __init__(self, threads: Executor, loop_calls: LoopCalls) -> None:
        self._threads = threads
        self._loop_calls = loop_calls

    async def run(self, call: Callable[[], Result]) -> Result:
        """Returns the result of the call. Raises what it raises, and what `in_thread` does."""
        return self._loop_calls.run(call) if self._loop_calls.are_allowed else await in_thread(self._threads, call)


@contextmanager
def storage_errors(outage: Outage | None = STORAGE) -> Iterator[None]:
    """Turns an OSError in the block into `storage-unavailable`, and reports it to the outage."""
    try:
        yield
    except OSError as error:
        if outage is not None:
            outage.report(error)
        raise ServiceError("storage-unavailable") from error


def size_on_disk(status: os.stat_result) -> int:
    """Returns the bytes of a file's blocks, at least whole blocks of 4 KB: some file systems count a new file late."""
    return max(status.st_blocks * _STAT_BLOCK, -(-status.st_size // _DISK_BLOCK) * _DISK_BLOCK, _DISK_BLOCK)


def open_regular(path: str) -> BufferedReader:
    """Opens a regular file. Refuses devices, and pipes, which would block forever. Blocks; raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file", path)
    return os.fdopen(handle, "rb")


def read_file(path: Path) -> StoredFile:
    """Reads the status of a file, and the content if it is small. Blocks; raises OSError."""
    with path.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        data = file.read(status.st_size) if status.st_size <= SMALL_BYTES else None
        return StoredFile(path, status.st_size, status.st_mtime_ns, data, size_on_disk(status))


async def starts_with(threads: Executor, file: StoredFile, magic: bytes) -> bool:
    """Returns whether these are the file's first bytes, and False if it was removed. Raises `storage-unavailable`."""
    if file.data is not None:
        return file.data.startswith(magic)

    def read() -> bytes:
        try:
            with file.path.open("rb", buffering=0) as opened:
                return opened.read(len(magic))
        except FileNotFoundError:
            return b""

    with storage_errors():
        return await in_thread(threads, read) == magic


def apply_patches(data: bytes, patches: Sequence[tuple[int, bytes]]) -> bytes:
    """Returns a copy in which each patch replaces the bytes at its offset. Raises OSError, as `check_patch`."""
    patched = bytearray(data)
    for offset, replacement in patches:
        check_patch(offset, replacement, len(data))
        patched[offset : offset + len(replacement)] = replacement
    return bytes(patched)


def copy_patched(source: Path, target: BinaryIO, patches: Sequence[tuple[int, bytes]]) -> None:
    """Copies a file, however large, and replaces the bytes at the offset of each patch. Blocks; raises OSError."""
    with source.open("rb") as original:
        shutil.copyfileobj(original, target, _COPY_BYTES)
    size = target.tell()
    for offset, data in patches:
        check_patch(offset, data, size)
        target.seek(offset)
        target.write(data)


def check_patch(offset: int, data: bytes, size: int) -> None:
    """Raises OSError if the patch is not within a file of this size."""
    if offset < 0 or offset + len(data) > size:
        raise OSError(errno.EINVAL, "a patch outside of its file")
