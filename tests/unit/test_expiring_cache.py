"""A cache is bounded, forgets the least recently used entry first, and never returns what has expired."""

from __future__ import annotations

from service.expiring_cache import ExpiringCache


def test_entry_expires() -> None:
    now = 1000.0
    cache: ExpiringCache[str, int] = ExpiringCache(10, clock=lambda: now)
    cache.put("a", 1, 1004)
    cache.put("b", 2)
    now = 1003.9
    assert cache.get("a") == 1
    now = 1004
    assert cache.get("a") is None
    assert "a" not in cache
    assert cache.get("b") == 2


def test_entry_knows_its_expiry() -> None:
    cache: ExpiringCache[str, int] = ExpiringCache(10, clock=lambda: 1000)
    assert cache.put("a", 1, 1004).expires_at == 1004
    entry = cache.get_entry("a")
    assert entry is not None
    assert (entry.value, entry.expires_at) == (1, 1004)


def test_least_recently_used_entry_goes_first() -> None:
    cache: ExpiringCache[str, int] = ExpiringCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [key in cache for key in "abc"] == [True, False, True]
    cache.put("a", 4)  # replaced: used last
    cache.put("d", 5)
    assert [key in cache for key in "acd"] == [True, False, True]
    assert len(cache) == 2


def test_weights_are_bounded() -> None:
    removed: list[tuple[str, int]] = []
    cache: ExpiringCache[str, int] = ExpiringCache(10, on_remove=lambda key, value: removed.append((key, value)))
    for key in "abc":
        cache.put(key, ord(key), weight=4)
    assert removed == [("a", 97)]
    cache.put("b", 0, weight=6)
    cache.remove("c")
    cache.remove("c")
    assert removed == [("a", 97), ("b", 98), ("c", 99)]
    cache.put("d", 1, weight=4)
    assert len(cache) == 2


def test_entry_heavier_than_the_cache_is_not_held() -> None:
    cache: ExpiringCache[str, int] = ExpiringCache(10)
    cache.put("a", 1)
    cache.put("b", 2, weight=11)
    assert len(cache) == 0
    cache.put("c", 3, weight=10)
    assert cache.get("c") == 3


def test_cleared_cache_is_empty() -> None:
    cache: ExpiringCache[str, int] = ExpiringCache(10)
    cache.put("a", 1, weight=10)
    cache.clear()
    assert cache.get("a") is None
    cache.put("b", 2, weight=10)
    assert cache.get("b") == 2
