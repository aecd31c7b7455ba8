"""Pictures in memory: within their size, until their time, and gone with their image."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from service.delivery import memory_cache
from service.delivery.memory_cache import Caching, HotPictures, Picture
from service.ids import ImageId
from service.storage.files import disk_threads
from service.storage.interface import StoredFile

THREADS = disk_threads("test")
ONE, TWO = ImageId("AAAAAAA"), ImageId("BBBBBBB")
FAR = time.monotonic() + 1000


@pytest.fixture(autouse=True)
def _no_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_cache, "_ENTRY_BYTES", 0)


def picture(*image_ids: ImageId, size: int = 10, small: bool = True) -> Picture:
    stored = StoredFile(Path("x"), size, 0, b"x" * size if small else None)
    return Picture(image_ids or (ONE,), stored, "etag", 0, {}, Caching(60), "/x", THREADS)


def put(hot: HotPictures, key: str, shown: Picture, until: float = FAR) -> None:
    hot.put(key, shown, until=until, generation=hot.generation)


def test_what_was_put_is_found_until_its_time() -> None:
    hot = HotPictures(100)
    put(hot, "a", picture())
    put(hot, "b", picture(), until=time.monotonic() - 0.001)
    assert hot.get("a") is not None
    assert hot.get("b") is None
    assert hot.get("c") is None


def test_the_longest_unused_goes_first() -> None:
    hot = HotPictures(30)
    for key in "abc":
        put(hot, key, picture())
    hot.get("a")
    put(hot, "d", picture())
    assert [key for key in "abcd" if hot.get(key)] == ["a", "c", "d"]


def test_what_is_put_twice_counts_once() -> None:
    hot = HotPictures(20)
    for _ in range(5):
        put(hot, "a", picture())
    put(hot, "b", picture())
    assert hot.get("a")
    assert hot.get("b")


def test_one_that_is_larger_than_the_memory_is_not_kept() -> None:
    hot = HotPictures(5)
    put(hot, "a", picture())
    assert hot.get("a") is None
    put(hot, "b", picture(size=5))
    assert hot.get("b")


def test_a_large_file_is_not_kept() -> None:
    hot = HotPictures(100)
    put(hot, "a", picture(small=False))
    assert hot.get("a") is None


def test_a_deleted_image_takes_all_of_its_pictures_along() -> None:
    hot = HotPictures(100)
    put(hot, "a", picture(ONE))
    put(hot, "b", picture(TWO, ONE))  # it has the other as a watermark
    put(hot, "c", picture(TWO))
    hot.forget([ONE])
    assert [key for key in "abc" if hot.get(key)] == ["c"]
    hot.forget_all()
    assert hot.get("c") is None
    put(hot, "d", picture(size=100))
    assert hot.get("d")


def test_what_was_looked_up_before_a_deletion_is_not_put() -> None:
    hot = HotPictures(100)
    generation = hot.generation
    hot.forget([TWO])
    hot.put("a", picture(ONE), until=FAR, generation=generation)
    assert hot.get("a") is None


def test_no_cache_keeps_a_picture_longer_than_its_signature_holds() -> None:
    assert Caching(60).header(1000.0) == "public, max-age=60"
    assert Caching(60, immutable=True).header(1000.0) == "public, max-age=60, immutable"
    for now, left_s in [(1000.0, 60), (1950.0, 50), (1998.5, 1), (2000.0, 0), (2010.0, 0)]:
        assert Caching(60, expires=2000).header(now) == f"public, max-age={left_s}"
