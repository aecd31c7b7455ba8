"""The folder where the processes of one host put their metrics together, a set of files for each.

prometheus_client maps the files into memory and names them after a process. Named after its pid they would pile up
where a process dies again and again, and two containers would write into one file. So a process takes a slot, a number
whose lock it holds as long as it lives, however it ends: whoever takes it next counts on from where it stood.
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
# What all metrics take, and more; on a full disk a file that grows would end the process with SIGBUS.
_RESERVED_BYTES = {"counter": 128 << 10, "histogram": 128 << 10, _GAUGES: 4 << 10}

# The operator names the folder: nothing else that lies there is touched.
_COUNTS = re.compile(r"(counter|histogram|gauge_livesum)_\d+\.db")
_LOCKS = re.compile(r"\d+\.lock")
_ANY = re.compile(rf"{_COUNTS.pattern}|{_LOCKS.pattern}|\w+_\d+\.new|starting")


def take_slot(folder: Path) -> str:
    """The slot's name, until this process ends; its files are there. Whoever comes first starts from zero.

    Raises OSError if the folder cannot be used, is another user's, or is on a disk without room.
    """
    make_folder(folder)
    if folder.lstat().st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user")
    with _starting(folder):
        held = _held_slots(folder)
        if not held:
            for path in _find(folder, _COUNTS):
                path.unlink()
        slot = next(name for name in map(str, itertools.count(1)) if name not in held)
        handle = _open(_lock_of(folder, slot))  # never closed
        fcntl.flock(handle, fcntl.LOCK_EX)  # a scrape may be looking at it at this moment
        _file_of(folder, _GAUGES, slot).unlink(missing_ok=True)
        for kind, size in _RESERVED_BYTES.items():
            _reserve(_file_of(folder, kind, slot), size)
    return slot


def list_files(folder: Path) -> list[str]:
    """Everybody's counters and histograms, and the gauges of the processes that live."""
    held = _held_slots(folder)
    return [
        str(path)
        for path in _find(folder, _COUNTS)
        if not path.name.startswith(_GAUGES) or path.stem.rpartition("_")[2] in held
    ]


def remove(folder: Path) -> None:
    """Once nobody writes there any more."""
    with suppress(OSError):  # there is no such folder, or something else lies there too
        for path in _find(folder, _ANY):
            path.unlink()
        folder.rmdir()


@contextmanager
def _starting(folder: Path) -> Iterator[None]:
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
    new = path.with_suffix(".new")  # a scrape must not meet an empty file
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
