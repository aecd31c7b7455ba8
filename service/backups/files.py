"""Copies of the images' files, which never change: what is there already is not copied again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.config.sizes import readable
from service.images.audit import MISSING, StoredRow, find_fault
from service.storage.files import open_regular
from service.storage.local.disk import NUM_SHARDS
from service.storage.local.originals import LocalOriginals

_READ_BYTES = 1 << 20


@dataclass(slots=True)
class Copies:
    """`bytes` are those that were copied."""

    copied: int = 0
    present: int = 0
    bytes: int = 0

    def describe(self) -> str:
        return f"{self.copied} files copied, {readable(self.bytes)}; {self.present} were there already"

    def add(self, row: StoredRow, places: Iterable[str | Path], target: Path) -> str | None:
        """Copies the file of an image from the first of the places that has it, whole or not at all.

        A copy that is there already is replaced only if its size is wrong and that of the file is right: the only good
        copy may be that one. Returns what is wrong with the image's copy now, or None. Raises OSError if the copy
        cannot be written.
        """
        size = _size(target)
        if size == row.size:
            self.present += 1
            return None
        for place in map(Path, places):
            try:
                found = place.stat().st_size
                if size is None or found == row.size:
                    _copy(place, target)
                    self.copied += 1
                    self.bytes += found
                    return find_fault(row, found, None)
            except FileNotFoundError:  # it lies at another place, or was deleted meanwhile
                continue
            except OSError:
                if (reason := _find_read_error(place)) is None:
                    raise
                return f"its file cannot be read: {reason}"
        return MISSING if size is None else find_fault(row, size, None)


def holds_images(storage: LocalOriginals) -> bool:
    """Returns whether any file is there, in its own place or on its way. Raises OSError."""
    for shard in range(NUM_SHARDS):
        with suppress(FileNotFoundError):  # the folders are not made yet
            if storage.list_shard(shard):
                return True
    with suppress(FileNotFoundError):
        return any(storage.incoming.iterdir())
    return False


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _find_read_error(path: Path) -> str | None:
    """Returns why a file cannot be read to its end, e.g. a damaged block of its disk; None if it can."""
    try:
        with open_regular(str(path)) as file:
            while file.read(_READ_BYTES):
                pass
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None
