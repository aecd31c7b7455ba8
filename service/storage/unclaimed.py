"""The folder `unclaimed`: files that belong to no image, kept for the case that their rows come back."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from service.storage.incoming import publish

MAX_SET_ASIDE_NAMES = 1000

_NUMBERED = re.compile(r"(?P<name>.+)\.[0-9]{1,3}")


class Unclaimed:
    """Every method blocks and raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbered: dict[str, list[str]] | None = None

    def set_aside(self, path: Path) -> Path:
        """Moves a file here and returns its new path, which has a number behind the name if the name is taken."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for number in range(MAX_SET_ASIDE_NAMES):
            place = self._folder / (f"{path.name}.{number}" if number else path.name)
            with suppress(FileExistsError):
                publish(path, place)
                return place
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._folder / path.name))

    def find(self, name: str, size: int, sha256: bytes) -> Path | None:
        """Returns a file that was set aside under this name and has this content, or None."""
        for path in self._candidates(name):
            with suppress(OSError):  # one that cannot be read is no hindrance to the others
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
