"""What every backend for renditions promises. A new backend joins BACKENDS."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from service.ids import ImageId
from service.storage.files import SMALL_BYTES
from service.storage.interface import RenditionKey, RenditionStorage, StoredFile
from service.storage.local.renditions import LocalRenditions
from service.storage.object_store.cache import FileCache
from service.storage.object_store.renditions import ObjectRenditions
from service.storage.shards import shard_of
from tests.conftest import NewObjectStore
from tests.support.waiting import until

ID, OTHER = ImageId("AAAAAAA"), ImageId("BBBBBBB")
KEYS = [RenditionKey(ID, f"{number:032x}") for number in range(3)]
OTHER_KEY = RenditionKey(OTHER, "0" * 32)

BACKENDS = ("local disk", "remote disk", "object store")


@pytest.fixture(params=BACKENDS)
def open_renditions(
    request: pytest.FixtureRequest, tmp_path: Path, new_object_store: NewObjectStore
) -> Callable[[], RenditionStorage]:
    """Returns a function that opens the same storage again and again, as several processes do."""
    if request.param != "object store":
        return partial(LocalRenditions, tmp_path / "renditions", is_local=request.param == "local disk")
    store = new_object_store()
    return lambda: ObjectRenditions(store, FileCache(tmp_path / "cache", 1 << 30, is_local=True))


@pytest.fixture
def renditions(open_renditions: Callable[[], RenditionStorage]) -> RenditionStorage:
    renditions = open_renditions()
    renditions.prepare()
    return renditions


def is_complete(file: StoredFile) -> bool:
    return file.size > 0


async def find(renditions: RenditionStorage, key: RenditionKey) -> bytes | None:
    file = await renditions.find(key, is_complete)
    return None if file is None else file.path.read_bytes()


@pytest.mark.parametrize("size", [1, SMALL_BYTES, SMALL_BYTES + 1])
async def test_written_rendition_is_found(renditions: RenditionStorage, size: int) -> None:
    data = os.urandom(size)
    written = await renditions.write(KEYS[0], data)
    assert (written.path, written.size) == (renditions.path(KEYS[0]), size)
    assert written.data == (data if size <= SMALL_BYTES else None)
    file = await renditions.find(KEYS[0], is_complete)
    assert file is not None
    assert file == written
    assert file.path.read_bytes() == data
    assert file.disk_size >= size


async def test_images_of_a_shard_are_listed(renditions: RenditionStorage) -> None:
    for key in (*KEYS, OTHER_KEY):
        await renditions.write(key, b"x")

    async def is_listed() -> bool:
        return await renditions.list_images(int(shard_of(ID), 16)) == [ID]

    await until(is_listed)  # by the clock of the disk


async def test_unknown_rendition_is_not_found(renditions: RenditionStorage) -> None:
    await renditions.write(KEYS[0], b"x")
    assert await renditions.find(KEYS[1], is_complete) is None


async def test_damaged_rendition_is_removed(renditions: RenditionStorage) -> None:
    await renditions.write(KEYS[0], b"x")
    assert await renditions.find(KEYS[0], lambda _: False) is None
    assert await renditions.find(KEYS[0], is_complete) is None


async def test_rendition_can_be_written_again(renditions: RenditionStorage) -> None:
    for data in (b"first", b"second"):
        await renditions.write(KEYS[0], data)
    assert await find(renditions, KEYS[0]) == b"second"


async def test_concurrent_writers_leave_a_whole_file(
    renditions: RenditionStorage, open_renditions: Callable[[], RenditionStorage]
) -> None:
    data, others = os.urandom(1 << 20), [open_renditions() for _ in range(4)]
    writing = [asyncio.create_task(other.write(KEYS[number % 3], data)) for number in range(3) for other in others]
    while not all(task.done() for task in writing):
        assert await find(renditions, KEYS[0]) in {None, data}
        await asyncio.sleep(0)  # a search may end without another turn of the event loop
    await asyncio.gather(*writing)
    assert [await find(renditions, key) for key in KEYS] == [data] * 3


async def test_patched_copy_differs_in_its_patches(renditions: RenditionStorage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    await renditions.write_patched(KEYS[0], source, [(0, b"ab"), (8, b"yz")])
    assert await find(renditions, KEYS[0]) == b"ab234567yz"
    assert source.read_bytes() == b"0123456789"
    with pytest.raises(OSError, match="outside of its file"):
        await renditions.write_patched(KEYS[1], source, [(9, b"yz")])
    assert await renditions.find(KEYS[1], is_complete) is None


async def test_keys_are_removed(renditions: RenditionStorage) -> None:
    for key in (*KEYS, OTHER_KEY):
        await renditions.write(key, b"x")
    assert await renditions.remove([KEYS[0], RenditionKey(OTHER, "f" * 32)]) == set()
    assert [await find(renditions, key) for key in (*KEYS, OTHER_KEY)] == [None, b"x", b"x", b"x"]


async def test_renditions_of_an_image_are_removed(renditions: RenditionStorage) -> None:
    for key in (*KEYS, OTHER_KEY):
        await renditions.write(key, b"x")
    assert await renditions.remove_for_images([ID, ImageId("CCCCCCC")]) == set()
    assert [await find(renditions, key) for key in (*KEYS, OTHER_KEY)] == [None, None, None, b"x"]


async def test_shards_list_every_rendition(renditions: RenditionStorage) -> None:
    """If there are shards."""
    sizes = {key: (await renditions.write(key, b"x")).disk_size for key in (*KEYS, OTHER_KEY)}

    async def list_all(age_s: float) -> dict[RenditionKey, int]:
        listed: dict[RenditionKey, int] = {}
        for number in range(renditions.num_shards):
            listed |= await renditions.list_shard(number, age_s)
        return listed

    async def are_listed() -> bool:
        return await list_all(0) == (sizes if renditions.num_shards else {})

    await until(are_listed)  # once the clock of the storage has gone on
    assert await list_all(3600) == {}


async def test_stale_drafts_are_removed_alone(renditions: RenditionStorage) -> None:
    await renditions.write(KEYS[0], b"x")
    await renditions.remove_stale_drafts(0)
    assert await find(renditions, KEYS[0]) == b"x"
