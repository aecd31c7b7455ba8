"""The folder `unclaimed`: files without an image. They are not deleted, because their rows may be restored."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from service.storage.local.disk import publish

MAX_NAMES = 1000

_NUMBERED = re.compile(r"(?P<name>.+)\.[0-9]{1,3}")


class Quarantine:
    """Every method blocks and raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbered: dict[str, list[str]] | None = None

    def add(self, path: Path) -> Path:
        """Moves a file into the quarantine. Returns its new path, whose name ends in a number if the name is taken."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for number in range(MAX_NAMES):
            target = self._folder / (f"{path.name}.{number}" if number else path.name)
            with suppress(FileExistsError):
                publish(path, target)
                return target
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._folder / path.name))

    def find(self, name: str, size: int, sha256: bytes) -> Path | None:
        """Returns the file that was added under this name and has this content, or None."""
        for path in self._candidates(name):
            with suppress(OSError):  # a file that cannot be read does not hide the others
                if _has_content(path, size, sha256):
                    return path
        return None

    def _candidates(self, name: str) -> Iterator[Path]:
        """The folder is listed once, because most names have no number."""
        if self._numbered is None:
            self._numbered = self._list_numbered()
        for candidate in (name, *self._numbered.get(name, ())):
            yield self._folder / candidate

    def _list_numbered(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        with suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                if match := _NUMBERED.fullmatch(entry.name):
                    names.setdefault(match["name"], []).append(entry.name)
        return names


def _has_content(path: Path, size: int, sha256: bytes) -> bool:
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size == size and hashlib.file_digest(file, "sha256").digest() == sha256
