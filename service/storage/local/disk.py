"""The layout of originals on a disk, and the operations on it that are one step each. All of them block.

A descriptor of the storage's folder stands for one disk: a disk that is unmounted or mounted meanwhile cannot make a
file look missing.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.ids import ImageId

NUM_SHARDS = 256
INCOMING = "incoming"

# What `link` raises on file systems without hard links (exFAT, SMB, some of FUSE), and under Linux's
# fs.protected_hardlinks for a file of another user.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK})


def shard_of(image_id: ImageId) -> str:
    """Returns the name of one of the 256 folders."""
    return f"{zlib.crc32(image_id.encode()) % NUM_SHARDS:02x}"


def publish(source: Path, target: Path) -> None:
    """Moves a file to a path that is free, and never overwrites a file.

    Raises FileExistsError if the path is taken, and OSError. A crash may leave the file under both names. Without hard
    links it is a check and a rename, which are two steps.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # If another process moved the file, it is missing, and its target is no conflict.
        if not stat.S_ISREG(source.stat().st_mode):
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.rename(target)
    else:
        source.unlink(missing_ok=True)  # the image may have been deleted meanwhile


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Yields a descriptor of the folder. Raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable. Raises OSError."""
    with open_folder(path) as folder:
        os.fsync(folder)


def has_folder(name: str, root: int) -> bool:
    """Returns whether the folder is there. Raises OSError."""
    try:
        os.stat(name, dir_fd=root)
    except FileNotFoundError:
        return False
    return True


def require_folder(name: str, root: int) -> None:
    """Raises OSError, and never FileNotFoundError, if the folder is missing."""
    if not has_folder(name, root):
        raise OSError(errno.ENODEV, f"the folder {name} of the storage is missing")


def is_missing(image_id: ImageId, root: int) -> bool:
    """Returns whether neither folder has the file. Raises OSError if one of the folders is missing."""
    shard = shard_of(image_id)
    for folder in (shard, INCOMING, shard):  # it may be published between the first two
        with suppress(FileNotFoundError):
            os.stat(f"{folder}/{image_id}", dir_fd=root)
            return False
    for folder in (shard, INCOMING):
        require_folder(folder, root)
    return True


def remove(image_id: ImageId, root: int) -> None:
    """Removes the file from both folders. Raises OSError if it cannot be removed, or a folder is missing."""
    for folder in (INCOMING, shard_of(image_id)):
        try:
            os.unlink(f"{folder}/{image_id}", dir_fd=root)
        except FileNotFoundError:
            require_folder(folder, root)


def try_write(folder: Path) -> None:
    """Writes and removes a file. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()
