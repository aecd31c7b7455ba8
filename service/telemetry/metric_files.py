"""The folder where the processes of one host share their metrics, with a set of files for each process.

prometheus_client maps the files into memory and names them after the process. If files were named after pids, they
would accumulate if a process crashes repeatedly, and two containers would write to one file. So a process takes a slot:
a number whose lock it holds until it ends. The next process that takes the slot continues its counts.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.folders import make_folder

_GAUGES = "gauge_livesum"
# More than all metrics need. If a file had to grow on a full disk, the process would be killed by SIGBUS.
RESERVED_BYTES = {"counter": 128 << 10, "histogram": 128 << 10, _GAUGES: 4 << 10}

# The operator chooses the folder: other files in it are not touched.
_COUNTS = re.compile(r"(counter|histogram|gauge_livesum)_\d+\.db")
_LOCKS = re.compile(r"\d+\.lock")
_ANY = re.compile(rf"{_COUNTS.pattern}|{_LOCKS.pattern}|\w+_\d+\.new|starting")


def take_slot(folder: Path) -> str:
    """Takes a slot until this process ends and returns its name. The first process of all resets the counts.

    Raises OSError if the folder cannot be used, belongs to another user, or is on a full disk.
    """
    make_folder(folder)
    if folder.lstat().st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user")
    with _lock_folder(folder):
        held = _held_slots(folder)
        if not held:
            for path in _find(folder, _COUNTS):
                path.unlink()
        slot = next(name for name in map(str, itertools.count(1)) if name not in held)
        handle = _open(_lock_of(folder, slot))  # never closed
        fcntl.flock(handle, fcntl.LOCK_EX)  # a scrape may be checking it at this moment
        _file_of(folder, _GAUGES, slot).unlink(missing_ok=True)
        for kind, size in RESERVED_BYTES.items():
            _reserve(_file_of(folder, kind, slot), size)
    return slot


def list_files(folder: Path) -> list[str]:
    """Returns the counters and histograms of all processes, and the gauges of living ones."""
    held = _held_slots(folder)
    return [
        str(path)
        for path in _find(folder, _COUNTS)
        if not path.name.startswith(_GAUGES) or path.stem.rpartition("_")[2] in held
    ]


def remove(folder: Path) -> None:
    """Removes the metrics. Call it when no process writes there."""
    with suppress(OSError):  # the folder does not exist, or contains other files
        for path in _find(folder, _ANY):
            path.unlink()
        folder.rmdir()


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    handle = _open(folder / "starting")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _find(folder: Path, names: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if names.fullmatch(path.name))


def _held_slots(folder: Path) -> set[str]:
    return {path.stem for path in _find(folder, _LOCKS) if _is_held(path)}


def _is_held(lock: Path) -> bool:
    handle = _open(lock)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _reserve(path: Path, size: int) -> None:
    if path.exists():
        return
    new = path.with_suffix(".new")  # a scrape must not read an empty file
    with new.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.write(bytes(size))
    new.replace(path)


def _lock_of(folder: Path, slot: str) -> Path:
    return folder / f"{slot}.lock"


def _file_of(folder: Path, kind: str, slot: str) -> Path:
    return folder / f"{kind}_{slot}.db"


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
