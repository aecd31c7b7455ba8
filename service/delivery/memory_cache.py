"""Pictures with their response headers, and a memory cache of recently sent ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

from service.expiring_cache import ExpiringCache
from service.ids import ImageId
from service.storage.files import SMALL_BYTES
from service.storage.interface import StoredFile

# The approximate size of an entry without the bytes of its picture.
_ENTRY_BYTES = 4096


class CachePolicy(NamedTuple):
    """How long clients and proxies may cache a picture. `expires` is the Unix time at which its signature expires."""

    max_age_s: int
    expires: int | None = None
    immutable: bool = False

    def header(self, now: float) -> str:
        """Returns the Cache-Control of a response sent at `now`, a Unix time: no cache outlives the signature."""
        remaining_s = self.max_age_s if self.expires is None else min(self.max_age_s, int(self.expires - now))
        return f"public, max-age={max(0, remaining_s)}{', immutable' if self.immutable else ''}"


@dataclass(slots=True)
class ServedPicture:
    """A picture with everything that its response needs.

    `image_ids` are the images that it shows: deleting one of them invalidates it. `headers` are those of every response
    except for Cache-Control, which comes from `caching`; `etag` is among them, here without quotes. `accel_path` is its
    path below the internal locations of a proxy. `threads` are those of the disk that has it. `head` caches the encoded
    head of a 200 response after the first one.
    """

    image_ids: tuple[ImageId, ...]
    stored: StoredFile
    etag: str
    modified_s: int
    headers: Mapping[str, str]
    caching: CachePolicy
    accel_path: str
    threads: Executor
    head: bytes = b""


class MemoryCache:
    """Caches small pictures by URL and accepted formats, up to `limit` bytes. Evicts the least recently used first.

    Each entry counts `entry_bytes` in addition to the bytes of its picture.
    """

    def __init__(self, limit: int, *, entry_bytes: int = _ENTRY_BYTES) -> None:
        self._entry_bytes = entry_bytes
        self._generation = 0
        self._pictures: ExpiringCache[Hashable, ServedPicture] = ExpiringCache(limit, on_remove=self._drop_from_index)
        self._keys: defaultdict[ImageId, set[Hashable]] = defaultdict(set)

    @property
    def generation(self) -> int:
        """Changes with every invalidation: a picture that was looked up before must not be added afterwards."""
        return self._generation

    def get(self, key: Hashable) -> ServedPicture | None:
        return self._pictures.get(key)

    def put(self, key: Hashable, picture: ServedPicture, *, until: float, generation: int) -> None:
        """`until` is on the monotonic clock. Ignores large pictures, and those looked up in an earlier `generation`."""
        if picture.stored.data is None or picture.stored.size > SMALL_BYTES or generation != self._generation:
            return
        self._pictures.remove(key)
        for image_id in picture.image_ids:
            self._keys[image_id].add(key)
        self._pictures.put(key, picture, until, weight=picture.stored.size + self._entry_bytes)

    def invalidate(self, image_ids: Iterable[ImageId]) -> None:
        self._generation += 1
        for image_id in image_ids:
            for key in list(self._keys.get(image_id, ())):
                self._pictures.remove(key)

    def invalidate_all(self) -> None:
        self._generation += 1
        self._pictures.clear()
        self._keys.clear()

    def _drop_from_index(self, key: Hashable, picture: ServedPicture) -> None:
        for image_id in picture.image_ids:
            self._keys[image_id].discard(key)
            if not self._keys[image_id]:
                del self._keys[image_id]
