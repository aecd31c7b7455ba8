"""Where the file of an image lies in the storage, and what is done there by way of the descriptor of its folder.

One descriptor is of one disk: a disk that is unmounted or mounted meanwhile cannot make a file look missing.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress

from service.ids import ImageId
from service.storage.identity import INCOMING, require_folder

SHARDS = 256


def shard_of(image_id: ImageId) -> str:
    """The name of one of the 256 folders."""
    return f"{zlib.crc32(image_id.encode()) % SHARDS:02x}"


def is_missing(image_id: ImageId, root: int) -> bool:
    """Whether the file is at none of its places. Blocks; raises OSError if one of their folders is not there."""
    shard = shard_of(image_id)
    for folder in (shard, INCOMING, shard):  # it may be moved between the first two looks
        with suppress(FileNotFoundError):
            os.stat(f"{folder}/{image_id}", dir_fd=root)
            return False
    for folder in (shard, INCOMING):
        require_folder(folder, root)
    return True


def remove(image_id: ImageId, root: int) -> None:
    """Removes the file from all of its places. Blocks; raises OSError if it cannot be removed, or one of the folders
    is not there.
    """
    for folder in (INCOMING, shard_of(image_id)):
        try:
            os.unlink(f"{folder}/{image_id}", dir_fd=root)
        except FileNotFoundError:
            require_folder(folder, root)
