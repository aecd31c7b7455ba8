"""The memory cache: its size, expiry and invalidation."""

from __future__ import annotations

import time
from pathlib import Path

from service.delivery.memory_cache import CachePolicy, MemoryCache, ServedPicture
from service.ids import ImageId
from service.storage.files import disk_threads
from service.storage.interface import StoredFile

THREADS = disk_threads("test")
ONE, TWO = ImageId("AAAAAAA"), ImageId("BBBBBBB")
FAR = time.monotonic() + 1000


def open_cache(limit: int) -> MemoryCache:
    return MemoryCache(limit, entry_bytes=0)


def picture(*image_ids: ImageId, size: int = 10, small: bool = True) -> ServedPicture:
    stored = StoredFile(Path("x"), size, 0, b"x" * size if small else None)
    return ServedPicture(image_ids or (ONE,), stored, "etag", 0, {}, CachePolicy(60), "/x", THREADS)


def put(cache: MemoryCache, key: str, value: ServedPicture, until: float = FAR) -> None:
    cache.put(key, value, until=until, generation=cache.generation)


def test_entry_is_found_until_it_expires() -> None:
    cache = open_cache(100)
    put(cache, "a", picture())
    put(cache, "b", picture(), until=time.monotonic() - 0.001)
    assert cache.get("a") is not None
    assert cache.get("b") is None
    assert cache.get("c") is None


def test_least_recently_used_goes_first() -> None:
    cache = open_cache(30)
    for key in "abc":
        put(cache, key, picture())
    cache.get("a")
    put(cache, "d", picture())
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]


def test_entry_put_twice_counts_once() -> None:
    cache = open_cache(20)
    for _ in range(5):
        put(cache, "a", picture())
    put(cache, "b", picture())
    assert cache.get("a")
    assert cache.get("b")


def test_entry_beyond_the_limit_is_not_cached() -> None:
    cache = open_cache(5)
    put(cache, "a", picture())
    assert cache.get("a") is None
    put(cache, "b", picture(size=5))
    assert cache.get("b")


def test_large_file_is_not_cached() -> None:
    cache = open_cache(100)
    put(cache, "a", picture(small=False))
    assert cache.get("a") is None


def test_deleted_image_invalidates_its_pictures() -> None:
    cache = open_cache(100)
    put(cache, "a", picture(ONE))
    put(cache, "b", picture(TWO, ONE))  # it has the other as a watermark
    put(cache, "c", picture(TWO))
    cache.invalidate([ONE])
    assert [key for key in "abc" if cache.get(key)] == ["c"]
    cache.invalidate_all()
    assert cache.get("c") is None
    put(cache, "d", picture(size=100))
    assert cache.get("d")


def test_lookup_before_a_deletion_is_not_cached() -> None:
    cache = open_cache(100)
    generation = cache.generation
    cache.invalidate([TWO])
    cache.put("a", picture(ONE), until=FAR, generation=generation)
    assert cache.get("a") is None


def test_max_age_ends_with_the_signature() -> None:
    assert CachePolicy(60).header(1000.0) == "public, max-age=60"
    assert CachePolicy(60, immutable=True).header(1000.0) == "public, max-age=60, immutable"
    for now, remaining_s in [(1000.0, 60), (1950.0, 50), (1998.5, 1), (2000.0, 0), (2010.0, 0)]:
        assert CachePolicy(60, expires=2000).header(now) == f"public, max-age={remaining_s}"
