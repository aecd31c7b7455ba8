"""The local copies of objects: complete or missing, bounded, and shared between processes."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from service.config.settings import SettingsError
from service.storage.clock import FolderClock
from service.storage.object_store.cache import FileCache
from tests.support.disks import fill, mounted

HOUR_S = 3600


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return open_cache(tmp_path)


def open_cache(folder: Path, max_bytes: int = 1 << 30) -> FileCache:
    cache = FileCache(folder / "cache", max_bytes, is_local=True)
    cache.prepare()
    while cache._is_trimming:  # as at each start
        time.sleep(0.001)
    return cache


def add(cache: FileCache, name: str, size: int = 100, *, age_s: float = 0) -> Path:
    draft = cache.draft_path()
    draft.write_bytes(b"x" * size)
    path = cache.add(name, draft, 1_000)
    used_ns = time.time_ns() - int(age_s * 10**9)
    os.utime(path, ns=(used_ns, 1_000))
    return path


async def download(path: Path) -> int:
    await asyncio.to_thread(path.write_bytes, b"content")
    return 1_000


async def test_copy_is_downloaded_once(cache: FileCache) -> None:
    downloads = 0

    async def count(path: Path) -> int:
        nonlocal downloads
        downloads += 1
        await asyncio.sleep(0.01)
        return await download(path)

    paths = await asyncio.gather(*(cache.fetch("ab/name", count) for _ in range(10)))
    assert set(paths) == {cache.path("ab/name")}
    assert paths[0].read_bytes() == b"content"
    assert paths[0].stat().st_mtime_ns == 1_000
    await cache.fetch("ab/name", count)
    assert downloads == 1


async def test_failed_download_leaves_nothing(cache: FileCache) -> None:
    async def fail(path: Path) -> int:
        await download(path)
        raise ConnectionResetError

    results = await asyncio.gather(*(cache.fetch("ab/name", fail) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionResetError] * 3
    assert [path for path in cache.folder.glob("*/**/*") if path.is_file()] == []
    assert (await cache.fetch("ab/name", download)).read_bytes() == b"content"


async def test_cancelled_request_disturbs_no_other(cache: FileCache) -> None:
    may_end = asyncio.Event()

    async def wait(path: Path) -> int:
        await may_end.wait()
        return await download(path)

    first, second = (asyncio.create_task(cache.fetch("ab/name", wait)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    may_end.set()
    assert (await second).read_bytes() == b"content"


def test_least_recently_used_copies_are_removed(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    paths = [add(cache, f"ab/{number}", age_s=(20 - number) * HOUR_S) for number in range(15)]
    cache._max_bytes = 1000  # so that no addition trims them
    cache.trim()
    assert [path.exists() for path in paths] == [False] * 6 + [True] * 9


def test_use_keeps_a_copy(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    paths = [add(cache, f"ab/{number}", age_s=(20 - number) * HOUR_S) for number in range(11)]
    cache._max_bytes = 1000  # so that no addition trims them
    assert cache.use("ab/0")
    assert paths[0].stat().st_mtime_ns == 1_000
    cache.trim()
    assert [path.exists() for path in paths] == [True, False, False, *[True] * 8]


def test_copies_in_use_are_not_removed(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, max_bytes=10)
    path = add(cache, "ab/name")
    cache.trim()
    assert path.exists()


def test_adding_trims_by_itself(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, max_bytes=10_000)
    old = add(cache, "ab/old", 10_000, age_s=HOUR_S)
    deadline = time.monotonic() + 5
    while old.exists():
        assert time.monotonic() < deadline
        add(cache, "ab/new", 400)
        time.sleep(0.01)


def test_drafts_of_a_crash_are_removed(cache: FileCache, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = cache.draft_path()
    draft.write_bytes(b"x")
    os.utime(draft, (0, 0))  # as that of an old object
    cache.trim()
    assert draft.exists()
    read = FolderClock.read
    monkeypatch.setattr(FolderClock, "read", lambda self, span_s: read(self, span_s) + 2 * HOUR_S)
    cache.trim()
    assert not draft.exists()


def test_copies_are_removed_by_prefix(cache: FileCache) -> None:
    paths = [add(cache, f"ab/{name}") for name in ("one-1", "one-2", "other-1")]
    cache.remove_prefix("ab/one-")
    cache.remove_prefix("none/one-")
    assert [path.exists() for path in paths] == [False, False, True]


def test_unusable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(SettingsError, match=r"DAGUERRE_CACHE: .*cache cannot be used"):
        open_cache(tmp_path)


def test_copies_are_removed_after_a_restart_of_the_machine(tmp_path: Path) -> None:
    """They were not synced, so a power cut may have left a part of each."""
    cache = open_cache(tmp_path)
    path = add(cache, "ab/name")
    open_cache(tmp_path)
    assert path.exists()
    (cache.folder / "boot-id").write_text("of another start")
    open_cache(tmp_path)
    assert not path.exists()
    assert sorted(path.name for path in cache.folder.iterdir()) == ["boot-id", "files", "incoming", "lock"]


def test_copies_give_way_on_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "cache", "8m"):
        cache = open_cache(tmp_path)
        old = add(cache, "ab/old", 1 << 20, age_s=HOUR_S)
        fill(cache.folder)
        with pytest.raises(OSError, match="No space left"):
            cache.try_write()
        while cache._is_trimming:
            time.sleep(0.001)
        assert not old.exists()
        cache.try_write()


def test_drafts_are_looked_for_again_and_again(cache: FileCache, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = cache.draft_path()
    draft.write_bytes(b"x")
    read = FolderClock.read
    monkeypatch.setattr(FolderClock, "read", lambda self, span_s: read(self, span_s) + 2 * HOUR_S)
    cache.draft_path()
    assert draft.exists()
    cache._trim_at = 0
    cache.draft_path()
    while cache._is_trimming:
        time.sleep(0.001)
    assert not draft.exists()
