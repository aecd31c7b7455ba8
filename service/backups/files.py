"""Copies of the images' files, which never change: what is there already is not copied again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.ids import IMAGE_ID_PATTERN, ImageId
from service.sizes import readable
from service.storage.disk import SHARDS, DiskStorage


@dataclass(slots=True)
class Copies:
    """`bytes` are those that were copied."""

    copied: int = 0
    present: int = 0
    bytes: int = 0

    def describe(self) -> str:
        return f"{self.copied} files copied, {readable(self.bytes)}; {self.present} were there already"

    def add(self, source: Path, target: Path) -> None:
        """Copies one file, whole or not at all. A file that is gone meanwhile is left out. Raises OSError."""
        with suppress(FileNotFoundError):
            size = source.stat().st_size
            if _size(target) == size:
                self.present += 1
                return
            _copy(source, target)
            self.copied += 1
            self.bytes += size


def copy_shards(storage: DiskStorage, target: DiskStorage, copies: Copies) -> None:
    """Copies every file at its own path. Raises OSError."""
    for shard in range(SHARDS):
        for image_id in _list_ids(storage.list_shard(shard)):
            copies.add(storage.path(image_id), target.path(image_id))


def list_incoming(storage: DiskStorage) -> list[ImageId]:
    """Returns the ids of files that are not at their own path yet, whether or not they have a row."""
    return list(_list_ids(storage.incoming.iterdir()))


def _list_ids(paths: Iterable[Path]) -> Iterator[ImageId]:
    return (ImageId(path.name) for path in paths if IMAGE_ID_PATTERN.fullmatch(path.name) is not None)


def holds_images(storage: DiskStorage) -> bool:
    """Returns whether any file is there, in its own place or on its way. Raises OSError."""
    for shard in range(SHARDS):
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
