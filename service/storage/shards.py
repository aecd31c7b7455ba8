"""The 256 shards, by which every backend divides its files. A file keeps its shard when it moves to another backend."""

from __future__ import annotations

import zlib

from service.ids import ImageId

NUM_SHARDS = 256


def shard_of(image_id: ImageId) -> str:
    """Returns the name of one of the 256 shards."""
    return shard_name(zlib.crc32(image_id.encode()) % NUM_SHARDS)


def shard_name(number: int) -> str:
    """Returns the name of a shard, from `00` to `ff`."""
    return f"{number:02x}"
