"""Copies the files of images, which never change: an existing copy is not copied again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.config.values import format_size
from service.images.integrity import MISSING, StoredRow, find_fault
from service.storage.files import open_regular
from service.storage.local.disk import NUM_SHARDS, publish
from service.storage.local.originals import LocalOriginals

_READ_BYTES = 1 << 20


@dataclass(slots=True)
class Copies:
    """Counts the files that were copied, their bytes, and copies that existed before."""

    copied: int = 0
    present: int = 0
    bytes: int = 0

    def describe(self) -> str:
        return f"{self.copied} files copied ({format_size(self.bytes)}), {self.present} already there"

    def add(self, row: StoredRow, paths: Iterable[str | Path], target: Path) -> str | None:
        """Copies the file of an image from the first path that has it, completely or not at all.

        An existing copy is replaced only if its size is wrong and the size of the file is right, because it may be the
        only good copy. Returns what is wrong with the copy now, or None. Raises OSError if it cannot be written.
        """
        size = _size(target)
        if size == row.size:
            self.present += 1
            return None
        for path in map(Path, paths):
            try:
                source_size = path.stat().st_size
                if size is None or source_size == row.size:
                    _copy(path, target, replaces=size is not None)
                    self.copied += 1
                    self.bytes += source_size
                    return find_fault(row, source_size, None)
            except FileNotFoundError:  # it has another path, or was deleted meanwhile
                continue
            except OSError:
                if (reason := _find_read_error(path)) is None:
                    raise
                return f"its file cannot be read: {reason}"
        return MISSING if size is None else find_fault(row, size, None)


def holds_images(storage: LocalOriginals) -> bool:
    """Returns whether there is any file, published or not. Raises OSError."""
    for shard in range(NUM_SHARDS):
        with suppress(FileNotFoundError):  # the folders do not exist yet
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


def _copy(source: Path, target: Path, *, replaces: bool) -> None:
    """Copies a file, and overwrites the target only if it `replaces` a copy of a wrong size."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
        if replaces:
            partial.replace(target)
        else:
            publish(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _find_read_error(path: Path) -> str | None:
    """Returns why a file cannot be read to its end, e.g. because a block of its disk is damaged; None if it can."""
    try:
        with open_regular(str(path)) as file:
            while file.read(_READ_BYTES):
                pass
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None
