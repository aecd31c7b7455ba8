"""Local copies of objects, in a folder of bounded size that the processes of one machine share."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import structlog

from service.config.settings import SettingsError
from service.config.values import format_size
from service.folders import make_folder
from service.storage.clock import FolderClock
from service.storage.files import LoopCalls, ShortCalls, disk_threads

log = structlog.get_logger("service")

_FILES, _INCOMING, _LOCK, _BOOT, _OLD = "files", "incoming", "lock", "boot-id", "old-"
# The copies are measured when a process has added this part of the maximum, and then trimmed to `_TARGET_PART` of it.
_ADDED_PART, _TARGET_PART = 1 / 32, 0.9
# The use of a copy is recorded at most once in this time, and a copy used since then is not removed.
_USE_INTERVAL_S = 60
# Longer than any upload takes (settings.upload_timeout_s).
_STALE_DRAFT_S = 3600
# Drafts of a crash are looked for this often.
_TRIM_INTERVAL_S = 600
# The copies give way if less than this is free: a part of the disk, and at most so many bytes.
_FREE_PART, _MAX_FREE_BYTES = 0.05, 1 << 30
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# It changes when the machine starts. Only Linux has it.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class FileCache:
    """Copies by the names of their objects, of at most about `max_bytes`. Removes the least recently used first.

    A copy is complete or missing, since it is written as a draft and then renamed. It is not synced, so all copies are
    removed after the machine was restarted, which may be after a power cut. The access time of its file is the time of
    its last use; it is set here, because most systems do not record it. `is_local` means that short calls may run on
    the event loop. Methods without `async` block and raise OSError.
    """

    def __init__(self, folder: Path, max_bytes: int, *, is_local: bool) -> None:
        self.folder = folder
        self.is_local = is_local
        self.threads = disk_threads("cache")
        self.short_calls = ShortCalls(self.threads, LoopCalls(is_local=is_local))
        self._files, self._incoming = folder / _FILES, folder / _INCOMING
        self._clock = FolderClock(self._incoming)
        self._max_bytes = max_bytes
        self._added_bytes = 0
        self._is_trimming = False
        self._trim_at = 0.0
        self._downloads: dict[str, asyncio.Task[Path]] = {}
        self._draft_name, self._draft_numbers = secrets.token_hex(8), itertools.count()

    def prepare(self) -> None:
        """Creates the folders. Raises SettingsError if they cannot be used."""
        try:
            make_folder(self.folder)
            self._remove_unsynced()
            make_folder(self._files)
            self.try_write()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SettingsError(f"DAGUERRE_CACHE: {self.folder} cannot be used: {reason}") from error
        self._trim_later()

    def _remove_unsynced(self) -> None:
        """Removes all copies if the machine was restarted since the first of them. `trim` deletes their files."""
        try:
            boot_id = _BOOT_ID.read_text()
        except FileNotFoundError:
            return
        recorded = self.folder / _BOOT
        with (self.folder / _LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if recorded.exists() and recorded.read_text() == boot_id:
                return
            with suppress(FileNotFoundError):
                self._files.rename(self.folder / f"{_OLD}{secrets.token_hex(8)}")
            recorded.write_text(boot_id)

    def try_write(self) -> None:
        """Writes and removes a file. Creates the folder again if it was removed, and makes room if the disk is full."""
        try:
            make_folder(self._incoming)
            with tempfile.TemporaryFile(dir=self._incoming) as file:
                file.write(b"x")
                file.flush()
        except OSError as error:
            self.make_room(error)
            raise

    def path(self, name: str) -> Path:
        """Returns the path that the copy has or would have. Does not block."""
        return self._files / name

    def draft_path(self) -> Path:
        """Returns the path of a new file, which `add` takes. Does not block."""
        if time.monotonic() >= self._trim_at:
            self._trim_later(is_grown=False)
        return self._incoming / f"{self._draft_name}-{next(self._draft_numbers)}"

    def use(self, name: str) -> bool:
        """Returns whether there is a copy of the object, and records its use."""
        path = self.path(name)
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        now_ns = time.time_ns()
        if now_ns - status.st_atime_ns > _USE_INTERVAL_S * 10**9:
            with suppress(FileNotFoundError):
                os.utime(path, ns=(now_ns, status.st_mtime_ns))
        return True

    async def fetch(self, name: str, download: Callable[[Path], Awaitable[int]]) -> Path:
        """Returns the path of an object's copy. `download` writes a new file, and returns the object's time in ns.

        Concurrent calls share a download. Raises what `download` raises, and OSError.
        """
        task = self._downloads.get(name)
        if task is None:
            if await self.short_calls.run(partial(self.use, name)):
                return self.path(name)
            task = self._downloads.get(name) or self._start(name, download)
        return await asyncio.shield(task)

    def _start(self, name: str, download: Callable[[Path], Awaitable[int]]) -> asyncio.Task[Path]:
        task = self._downloads[name] = asyncio.create_task(self._download(name, download))
        task.add_done_callback(partial(self._finish, name))
        return task

    async def _download(self, name: str, download: Callable[[Path], Awaitable[int]]) -> Path:
        draft = self.draft_path()
        try:
            await self.short_calls.run(partial(make_folder, self._incoming))  # which may have been removed
            modified_ns = await download(draft)
            return await self.short_calls.run(partial(self.add, name, draft, modified_ns))
        except BaseException as error:
            draft.unlink(missing_ok=True)
            self.make_room(error)
            raise

    def _finish(self, name: str, task: asyncio.Task[Path]) -> None:
        del self._downloads[name]
        if not task.cancelled():
            task.exception()  # its requests may be gone, and asyncio would log it

    def add(self, name: str, draft: Path, modified_ns: int | None = None) -> Path:
        """Makes a complete draft the copy of an object, with the object's time if that is given. Returns its path."""
        path, status = self.path(name), draft.stat()
        if modified_ns is not None:
            os.utime(draft, ns=(time.time_ns(), modified_ns))
        try:
            draft.rename(path)
        except FileNotFoundError:
            make_folder(path.parent)
            draft.rename(path)
        self._added_bytes += status.st_size
        if self._added_bytes > self._max_bytes * _ADDED_PART:
            self._trim_later()
        return path

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self.path(name).unlink(missing_ok=True)

    def remove_prefix(self, prefix: str) -> None:
        """Removes all copies of objects whose names begin with the prefix, in one folder."""
        folder, _, start = prefix.rpartition("/")
        with suppress(FileNotFoundError), os.scandir(self._files / folder) as entries:
            for entry in entries:
                if entry.name.startswith(start):
                    Path(entry.path).unlink(missing_ok=True)

    def make_room(self, error: BaseException) -> None:
        """Removes copies if the error is that of a full disk. Does not block."""
        if isinstance(error, OSError) and error.errno in _FULL:
            self._trim_later()

    def _trim_later(self, *, is_grown: bool = True) -> None:
        self._trim_at = time.monotonic() + _TRIM_INTERVAL_S
        if is_grown:
            self._added_bytes = 0
        if not self._is_trimming:
            self._is_trimming = True
            self.threads.submit(self._trim_and_log, is_grown=is_grown)

    def _trim_and_log(self, *, is_grown: bool) -> None:
        try:
            with _lock(self.folder / _LOCK) as is_locked:
                if is_locked:  # otherwise another process trims
                    self.trim(is_grown=is_grown)
        except OSError as error:
            log.warning("cache.trim_failed", folder=str(self.folder), error=repr(error))
        finally:
            self._is_trimming = False

    def trim(self, *, is_grown: bool = True) -> None:
        """Removes the least recently used copies if there are too many or the disk is nearly full, and drafts that a
        crash left.

        Only the sizes by the time of use are kept in memory, so the number of copies does not matter. If the copies
        have not grown, they are measured only if the disk is nearly full.
        """
        for folder in self.folder.glob(f"{_OLD}*"):
            shutil.rmtree(folder, ignore_errors=True)
        stale_before = self._clock.read(_STALE_DRAFT_S) - _STALE_DRAFT_S
        for entry in _scan(self._incoming):
            if entry.stat().st_ctime < stale_before:  # the other times may be those of the object
                Path(entry.path).unlink(missing_ok=True)
        if not is_grown and self._find_shortage() <= 0:
            return
        sizes: Counter[int] = Counter()
        for entry in _scan(self._files):
            status = entry.stat()
            sizes[int(status.st_atime // _USE_INTERVAL_S)] += status.st_size
        total = sum(sizes.values())
        max_bytes = min(self._max_bytes, total - self._find_shortage())
        if total <= max_bytes:
            return
        excess = total - int(max_bytes * _TARGET_PART)
        last, removed, now = 0, 0, time.time()  # the clock of `use`
        for used in sorted(sizes):
            if excess <= 0 or used > now // _USE_INTERVAL_S - 2:  # a copy that was used just now is needed
                break
            excess -= sizes[used]
            last = used
        for entry in _scan(self._files):
            if entry.stat().st_atime // _USE_INTERVAL_S <= last:
                Path(entry.path).unlink(missing_ok=True)
                removed += 1
        log.info("cache.trimmed", files=removed, bytes_before=format_size(total))

    def _find_shortage(self) -> int:
        """Returns the bytes that the disk lacks, or a number up to 0 if enough are free."""
        disk = shutil.disk_usage(self.folder)
        return min(int(disk.total * _FREE_PART), _MAX_FREE_BYTES) - disk.free


def create_draft(path: Path) -> BinaryIO:
    """Opens a new draft, unbuffered. Creates its folder again if that was removed. Blocks; raises OSError."""
    make_folder(path.parent)
    return path.open("xb", buffering=0)


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yields all files in a folder and its subfolders, also while others remove some."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _scan(Path(entry.path))
            else:
                with suppress(FileNotFoundError):
                    entry.stat()
                    yield entry


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Yields whether this process has the lock."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
