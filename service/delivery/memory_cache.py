"""Pictures ready to be sent, and those that were sent lately, in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

from service.expiring_cache import ExpiringCache
from service.ids import ImageId
from service.storage.files import SMALL_BYTES, Stored

# What an entry takes beside the picture's own bytes, roughly.
_ENTRY_BYTES = 4096


class Caching(NamedTuple):
    """How long caches may keep a picture; `expires` is when its signature ends, a Unix time."""

    max_age_s: int
    expires: int | None = None
    immutable: bool = False

    def header(self, now: float) -> str:
        """Of an answer at this time: nothing is kept longer than its signature holds."""
        left_s = self.max_age_s if self.expires is None else min(self.max_age_s, int(self.expires - now))
        return f"public, max-age={max(0, left_s)}{', immutable' if self.immutable else ''}"


@dataclass(slots=True)
class Picture:
    """`headers` are those of every answer that shows it, beside what `caching` says; `etag` is one of them, without its
    quotes. `image_ids` are whose deletion ends it. `accel_path` is where it lies below the internal locations of a
    proxy, and `threads` are those of its disk. `head` is what all answers of 200 begin with, once one was written.
    """

    image_ids: tuple[ImageId, ...]
    stored: Stored
    etag: str
    modified_s: int
    headers: Mapping[str, str]
    caching: Caching
    accel_path: str
    threads: Executor
    head: bytes = b""


class HotPictures:
    """Small pictures by what was asked for, up to `limit` bytes in all; those asked for least recently go first."""

    def __init__(self, limit: int) -> None:
        self._generation = 0
        self._pictures: ExpiringCache[Hashable, Picture] = ExpiringCache(limit, on_remove=self._drop_from_index)
        self._keys: defaultdict[ImageId, set[Hashable]] = defaultdict(set)

    @property
    def generation(self) -> int:
        """Changes when something is forgotten: a picture that was looked up before must not be put any more."""
        return self._generation

    def get(self, key: Hashable) -> Picture | None:
        return self._pictures.get(key)

    def put(self, key: Hashable, picture: Picture, *, until: float, generation: int) -> None:
        """`until` is of the monotonic clock. Ignored for what is large, or where `generation` is past."""
        if picture.stored.data is None or picture.stored.size > SMALL_BYTES or generation != self._generation:
            return
        self._pictures.remove(key)
        for image_id in picture.image_ids:
            self._keys[image_id].add(key)
        self._pictures.put(key, picture, until, weight=picture.stored.size + _ENTRY_BYTES)

    def forget(self, image_ids: Iterable[ImageId]) -> None:
        self._generation += 1
        for image_id in image_ids:
            for key in list(self._keys.get(image_id, ())):
                self._pictures.remove(key)

    def forget_all(self) -> None:
        self._generation += 1
        self._pictures.clear()
        self._keys.clear()

    def _drop_from_index(self, key: Hashable, picture: Picture) -> None:
        for image_id in picture.image_ids:
            self._keys[image_id].discard(key)
            if not self._keys[image_id]:
                del self._keys[image_id]
